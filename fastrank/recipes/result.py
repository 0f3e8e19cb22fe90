"""`Result`: the table, the effects and the verdict of one study, and their JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastrank.recipes.effects import Effect, decide, mean_interval
from fastrank.recipes.recipe import Study
from fastrank.record.export import finite
from fastrank.record.schema import jsonable


@dataclass(frozen=True)
class Cell:
    """One column of one setting: every seed's figure, their mean and standard deviation (n - 1), and their n.

    lo, hi: the smallest and largest figure that any seed's own error leaves open; None where there is no interval.
    mean_lo, mean_hi: 95 % interval of the mean by Student's t over seeds, widened by the mean of their own errors.
    text: as the table shows it.
    """

    values: tuple[float, ...]
    mean: float
    std: float
    n: int
    lo: float | None
    hi: float | None
    mean_lo: float
    mean_hi: float
    text: str


@dataclass(frozen=True)
class Result:
    """What a recipe found at one scale. table: label -> column -> Cell. revised: as of Recipe."""

    recipe: str
    scale: str
    claim: str
    source: str
    rule: str
    seeds: tuple[int, ...]
    table: Mapping[str, Mapping[str, Cell]]
    effects: tuple[Effect, ...]
    verdict: str
    notes: tuple[str, ...]
    revised: str

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types; a number that JSON has not is null."""
        content = asdict(self)
        content["effects"] = [{**asdict(effect), "verdict": effect.verdict} for effect in self.effects]
        return finite(jsonable(content))


def result_of(study: Study) -> Result:
    """Everything from the run directories alone."""
    recipe = study.recipe
    effects = tuple(recipe.effects(study))
    untrained = tuple(filter(None, map(study.untrained, study.labels)))
    return Result(
        recipe.name, study.scale, recipe.claim, recipe.source, recipe.rule, study.seeds,
        {label: {column.name: _cell(study, label, column.name) for column in recipe.columns} for label in study.labels},
        effects, decide(effects), (*untrained, *recipe.notes(study)), recipe.revised,
    )  # fmt: skip


def _cell(study: Study, label: str, name: str) -> Cell:
    column, values = study.column(name), study.values(label, name)
    mean, n = float(values.mean()), len(values)
    std = float(values.std(ddof=1)) if n > 1 else math.nan
    lo = hi = None
    text = format(mean, column.form) if math.isfinite(mean) else "-"
    if n > 1 and math.isfinite(mean):
        text += f" ± {format(std, column.form)}"
    if column.interval is not None:
        bounds = np.array([column.interval(run) for run in study.of(label)], np.float64)
        lo, hi = float(bounds[:, 0].min()), float(bounds[:, 1].max())
        text += f" [{lo:g}, {hi:g}]"
    _, mean_lo, mean_hi = mean_interval(values, study.half_widths(label, name))
    return Cell(tuple(values.tolist()), mean, std, n, lo, hi, mean_lo, mean_hi, text)


def upright(table: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], dict[str, list[Any]]]:
    """(heads, {row: cells}) of a table: its longer side, settings or columns, goes down the page."""
    columns = list(next(iter(table.values())))
    if len(columns) <= len(table):
        return columns, {label: list(cells.values()) for label, cells in table.items()}
    return list(table), {name: [cells[name] for cells in table.values()] for name in columns}
