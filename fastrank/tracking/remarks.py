"""Why a figure is missing or NaN: said once, kept with the run, and no reason to stop training."""

from __future__ import annotations

import warnings
from typing import Any


class Remarks:
    """Notes to the log `log` (or to nobody), each once until it changes.

    Attributes:
        step: the step to which a note belongs. disabled: {key: why} of what failed and is left out
            from then on.
    """

    def __init__(self, log: Any) -> None:
        self.step: int = 0
        self.disabled: dict[str, str] = {}
        self._log, self._reasons = log, {}

    def explain(self, key: str, reason: str) -> None:
        if self._reasons.get(key) != reason:
            self._reasons[key] = reason
            if self._log is not None:
                self._log.note(self.step, key, reason)

    def disable(self, key: str, reason: str, warning: str) -> None:
        """warning: none where it is empty, as another process has warned of it."""
        self.disabled[key] = reason
        self.explain(key, f"disabled: {reason}")
        if warning:
            warnings.warn(f"fastrank: {key} is no longer measured: {warning}", RuntimeWarning, stacklevel=4)

    def failed(self, key: str, error: Exception) -> None:
        """Said once: `key` is disabled by what went wrong with it."""
        if key not in self.disabled:
            self.disable(key, f"{type(error).__name__}: {error}", str(error))

    def guarded(self, key: str) -> Guard:
        """A context that gives whether `key` is still measured; a failure of its body is said once and disables it."""
        return Guard(self, key)


class Guard:
    """See `Remarks.guarded`. A class, as hooks enter it: contextlib's generators take twice as long."""

    def __init__(self, remarks: Remarks, key: str) -> None:
        self._remarks, self._key = remarks, key

    def __enter__(self) -> bool:
        self._enabled = self._key not in self._remarks.disabled
        return self._enabled

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not self._enabled or not isinstance(error, Exception):
            return False
        self._remarks.failed(self._key, error)
        return True
