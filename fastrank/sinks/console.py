"""`Console`: the state of a run in one line, live on a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from fastrank.errors import InputError
from fastrank.extras import require

#: Seconds between refreshes on a terminal, and between lines elsewhere (a log file).
LIVE_SECONDS, LINE_SECONDS = 0.25, 10.0


class Console:
    """A sink that shows loss, accuracy, ranks over the layers (least, median, largest) and what tracking takes.

    On a terminal one line that is rewritten, elsewhere a line now and then; the last step is always shown.

    Args:
        seconds: between two lines; by default 0.25 on a terminal, 10 elsewhere.
        console: a rich.console.Console to print on; a new one on standard output if left out.
    """

    def __init__(self, seconds: float | None = None, console: Any = None) -> None:
        self._console = console or require("rich.console", "the console sink").Console()
        live = require("rich.live", "the console sink").Live
        self._text = require("rich.text", "the console sink").Text
        if seconds is not None and not seconds >= 0:
            raise InputError("seconds", "a number >= 0", repr(seconds))
        self._live = live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._seconds = (LIVE_SECONDS if self._live else LINE_SECONDS) if seconds is None else seconds
        self._shown, self._last = -math.inf, None

    def log_step(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        self._last = (step, scalars)
        if time.monotonic() - self._shown >= self._seconds:
            self._show()

    def close(self, finished: bool = True) -> None:
        self._show()
        if self._live:
            self._live.stop()

    def _show(self) -> None:
        if self._last is None:
            return
        line = self._text(describe(*self._last), overflow="ellipsis", no_wrap=True)
        if self._live:
            self._live.start()  # a second start does nothing
            self._live.update(line, refresh=True)
        else:
            self._console.print(line.plain, soft_wrap=True, highlight=False, markup=False)
        self._shown, self._last = time.monotonic(), None


def describe(step: int, scalars: Mapping[str, float]) -> str:
    """One line on one step, of what it has."""
    parts = [f"step {step}"]
    for key, text in (
        ("train/loss", "loss {:.4g}"),
        ("train/accuracy", "accuracy {:.1%}"),
        ("logits/rank", "logits rank {:.0f}"),
        ("logits/norm", "norm {:.3g}"),
    ):
        if key in scalars:
            parts.append(text.format(scalars[key]))
    for kind in ("act", "weight", "grad"):
        ranks = [value for key, value in scalars.items() if key.startswith(f"{kind}/") and key.endswith("/rank")]
        finite = [rank for rank in ranks if math.isfinite(rank)]
        if finite:
            lost = f" ({len(ranks) - len(finite)} NaN)" if len(finite) < len(ranks) else ""
            parts.append(f"{kind} rank {min(finite):.0f} / {median(finite):.0f} / {max(finite):.0f}{lost}")
    if "align/mean_max" in scalars:
        parts.append(f"alignment {scalars['align/mean_max']:.2f}")
    if math.isfinite(scalars.get("cost/share", math.nan)):
        parts.append(f"tracking +{scalars['cost/share']:.1%}")
    elif "cost/setup_ms" in scalars:
        parts.append(f"tracking set up in {scalars['cost/setup_ms'] / 1e3:.2g} s")
    return " · ".join(parts)
