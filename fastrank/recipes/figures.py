"""What the recipes' figures share: a figure without a window system, one colour per setting, bands over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrank.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


def empty(size: tuple[float, float]) -> Figure:
    """A figure of that size in inches, without axes."""
    return require("matplotlib.figure", "the figure").Figure(figsize=size, layout="constrained")


def panels(rows: int = 1, columns: int = 1, size: tuple[float, float] = (4.0, 3.0), **options: Any):
    """(figure, axes [rows, columns] array); `size` in inches is that of one panel. Touches no global state."""
    figure = empty((size[0] * columns, size[1] * rows))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def colours(count: int, name: str = "viridis") -> list[tuple[float, ...]]:
    """`count` colours from dark to light, for settings that have an order; the lightest, unreadable, are left out."""
    chosen = require("matplotlib", "the figure").colormaps[name]
    return [chosen(x) for x in np.linspace(0.0, 0.85, count)]


def log_ticks(axis: Axis) -> None:
    """Labels 1, 2, 5, 10 ... for a logarithmic axis of few decades, where the defaults are one label or too many."""
    ticker = require("matplotlib.ticker", "the figure")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(ticker.NullFormatter())


def line(axes: Axes, x: Sequence[float], y: np.ndarray, label: str, **style: Any) -> None:
    """Mean over seeds (the rows of y [seeds, n]) as a line, their standard deviation as a band."""
    y = np.asarray(y, np.float64)
    mean = y.mean(0)
    (drawn,) = axes.plot(x, mean, label=label, **style)
    if len(y) > 1:
        spread = y.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=drawn.get_color(), alpha=0.2, linewidth=0)
