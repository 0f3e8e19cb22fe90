"""Why a figure is missing or NaN: said once, kept with the run, and no reason to stop training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Remarks:
    """Notes to the log `log` (or to nobody), each once until it changes.

    Attributes:
        step: the step to which a note belongs. disabled: keys of what failed and is left out from then on.
    """

    def __init__(self, log: Any) -> None:
        self.step, self.disabled = 0, set()
        self._log, self._reasons = log, {}

    def explain(self, key: str, reason: str) -> None:
        if self._reasons.get(key) != reason:
            self._reasons[key] = reason
            if self._log is not None:
                self._log.note(self.step, key, reason)

    @contextmanager
    def guarded(self, key: str) -> Iterator[bool]:
        """Gives whether `key` is still measured; a failure of the body is said once and disables it."""
        if key in self.disabled:
            yield False
            return
        try:
            yield True
        except Exception as error:
            self.disabled.add(key)
            self.explain(key, f"disabled: {type(error).__name__}: {error}")
            warnings.warn(f"fastrank: {key} is no longer measured: {error}", RuntimeWarning, stacklevel=3)
