"""`compare_runs`: runs side by side at one step, in text; the page of `write_report` shows them at all steps."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.record import Run, load_run
from fastrank.report.content import flatten, run_names

#: What is shown of the whole network, and of each layer, if nothing is asked for.
FIGURES = ("train/*", "logits/*", "align/mean_max", "cost/share", "cost/setup_ms")
LAYERS = ("act/*/rank",)
#: Settings that differ between any two runs and say nothing.
ALWAYS_DIFFER = ("out", "session", "watch.T")


@dataclass(frozen=True)
class Comparison:
    """Rows of one value a run, None where a run has none.

    Attributes:
        step: the figures are each run's last at or before it. runs: their names. settings: those that differ.
        figures: {key: [value]}; layers: the same, by layer. bounds: {key of a rank: [(lo, hi)]}.
    """

    step: int
    runs: list[str]
    settings: dict[str, list[Any]]
    figures: dict[str, list[float | None]]
    layers: dict[str, list[float | None]]
    bounds: dict[str, list[tuple[float, float] | None]]


def compare_runs(
    paths: Iterable[str | os.PathLike],
    step: int | None = None,
    figures: Sequence[str] = FIGURES,
    layers: Sequence[str] = LAYERS,
) -> Comparison:
    """The runs `paths` at `step`, by default the last that all of them have reached.

    Args:
        figures, layers: globs over keys such as "logits/rank" and "weight/*/stable_rank"; intervals come with ranks.
    Raises:
        InputError: fewer than two runs, a path that is no run, one without a step, or a glob that matches nothing.
    """
    runs = [load_run(path) for path in dict.fromkeys(Path(path).resolve() for path in paths)]
    if len(runs) < 2:
        raise InputError("runs", "two run directories or more", str(len(runs)))
    for run in runs:
        if not len(run.steps):
            raise InputError("runs", "runs with a step", f"none in {run.path}")
    step = min(int(run.steps[-1]) for run in runs) if step is None else step
    if step < max(int(run.steps[0]) for run in runs):
        raise InputError("step", f"{max(int(run.steps[0]) for run in runs)} or later, where all runs have begun", step)
    chosen = {name: _keys(runs, name, globs) for name, globs in (("figures", figures), ("layers", layers))}
    values = {key: [_at(run, key, step) for run in runs] for keys in chosen.values() for key in keys}
    ranks = [key for key in values if any(f"{key}_lo" in run.keys for run in runs)]
    edges = {key: [(_at(run, f"{key}_lo", step), _at(run, f"{key}_hi", step)) for run in runs] for key in ranks}
    return Comparison(
        step=step, runs=run_names(runs), settings=_differing(runs),
        figures={key: values[key] for key in chosen["figures"]}, layers={key: values[key] for key in chosen["layers"]},
        bounds={key: [None if None in pair else pair for pair in pairs] for key, pairs in edges.items()},
    )  # fmt: skip


def print_comparison(found: Comparison) -> None:
    """Tables on the terminal: settings that differ, figures, layers."""
    box, Text = require("rich.box", "tables"), require("rich.text", "tables").Text
    console = require("rich.console", "tables").Console()
    parts = (
        ("settings that differ", found.settings),
        (f"at step {found.step}", found.figures),
        ("layers", found.layers),
    )
    for title, rows in parts:
        if not rows:
            continue
        table = require("rich.table", "tables").Table(box=box.SIMPLE_HEAD)
        for head in (title, *found.runs):
            table.add_column(Text(head))
        for key, cells in rows.items():
            bounds = found.bounds.get(key, [None] * len(cells))
            table.add_row(Text(key), *(Text(_text(*cell)) for cell in zip(cells, bounds, strict=True)))
        console.print(table)


def _keys(runs: list[Run], name: str, globs: Sequence[str]) -> list[str]:
    every = [key for key in dict.fromkeys(key for run in runs for key in run.keys) if not key.endswith(("_lo", "_hi"))]
    found = {glob: fnmatch.filter(every, glob) for glob in globs}
    default = FIGURES if name == "figures" else LAYERS
    for glob, keys in found.items():
        if not keys and glob not in default:
            raise InputError(name, f"globs over keys such as {', '.join(every[:6])}", repr(glob))
    wanted = {key for keys in found.values() for key in keys}
    return [key for key in every if key in wanted]


def _at(run: Run, key: str, step: int) -> float | None:
    if key not in run.keys:
        return None
    steps, values = run.series(key)
    at = int(np.searchsorted(steps, step, side="right")) - 1
    return float(values[at]) if at >= 0 else None


def _differing(runs: list[Run]) -> dict[str, list[Any]]:
    configs = [flatten(run.config) for run in runs]
    keys = [key for key in dict.fromkeys(key for config in configs for key in config) if key not in ALWAYS_DIFFER]
    rows = {key: [config.get(key) for config in configs] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _text(value: Any, bounds: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.4g}" if math.isfinite(value) else str(value)
    return text if bounds is None or bounds[0] == bounds[1] else f"{text} [{bounds[0]:g}, {bounds[1]:g}]"
