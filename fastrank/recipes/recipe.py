"""`Recipe`: an experiment of the papers as a value, and `Study`: what its run directories say.

A recipe is one file beside this one that ends in `RECIPE = Recipe(...)`, and one entry of `fastrank.recipes.FILES`. Its
functions see nothing but run directories, so every number of a result can be computed again from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastrank.errors import InputError
from fastrank.record import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastrank.recipes.effects import Effect

#: The scales of a recipe: seconds, for tests; minutes on two cores; the paper's.
SCALES = ("smoke", "quick", "full")
#: A scale more of what the paper also trains on ImageNet.
IMAGENET = "imagenet"


@dataclass(frozen=True)
class Scale:
    """What one scale of a recipe runs.

    settings: label -> what one job of that label runs (JSON types), in the order of table and figure. seeds: how many
    by default. cost: in words, for `fastrank reproduce --list`.
    """

    settings: Mapping[str, Mapping[str, Any]]
    seeds: int
    cost: str


@dataclass(frozen=True)
class Job:
    """One run directory: the settings of one label with one seed."""

    label: str
    settings: Mapping[str, Any]
    seed: int
    path: Path


@dataclass(frozen=True)
class Column:
    """One figure of a finished run, for the table.

    of: run -> the figure (NaN where the run has none). interval: run -> (lo, hi) that its own error leaves open, which
    widens every interval computed from it. form: a format specification.
    """

    name: str
    of: Callable[[Run], float]
    interval: Callable[[Run], tuple[float, float]] | None = None
    form: str = ".3g"


@dataclass(frozen=True)
class Recipe:
    """One experiment; see `fastrank.recipes.execute.reproduce`.

    Attributes:
        name: on the command line.
        claim: what the paper says, in one or two sentences. source: where it says so.
        rule: when the claim counts as held here, in words.
        scales: "smoke" (seconds, for tests), "quick" (at most 10 minutes on two cores), "full" (the paper's), and
            "imagenet" (the paper's on ImageNet-1k) where it has one.
        columns: the table's, one figure of a run each.
        run: (jobs, device) -> None; writes and finishes one run directory per job. Some of them may hold an interrupted
            run. All unfinished jobs come in one call, so that many small models can be simulated as one batch.
        effects: study -> what is compared, with intervals; those with `counts` decide the verdict.
        draw: study -> the figure, in the paper's form and with its axes.
        revised: what of the rule, of what is measured or of what is trained was changed after a first look at results,
            and what the look had shown; empty where nothing was.
        trained: the train accuracy that a setting must reach with every seed to be compared; None without training.
        notes: study -> remarks that a reader must see; what was not reproduced and why.
        shares: the recipe whose run directories this one reads and writes, with the same scales and `run`.
    """

    name: str
    claim: str
    source: str
    rule: str
    scales: Mapping[str, Scale]
    columns: Sequence[Column]
    run: Callable[[Sequence[Job], torch.device], None]
    effects: Callable[[Study], Sequence[Effect]]
    draw: Callable[[Study], Figure]
    revised: str = ""
    trained: float | None = 0.9
    notes: Callable[[Study], Sequence[str]] = field(default=lambda study: ())
    shares: str | None = None

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """The same with other training: `changes` to the "train" fields of every setting; its own run directories.

        Raises InputError for a recipe that trains nothing.
        """
        if not any("train" in old for scale in self.scales.values() for old in scale.settings.values()):
            raise InputError("set", "a recipe that trains networks", self.name)
        suffix = "+" + ",".join(f"{key}={value}" for key, value in sorted(changes.items()))

        def setting(old: Mapping[str, Any]) -> dict[str, Any]:
            return {**old, "train": {**old["train"], **changes}} if "train" in old else dict(old)

        scales = {
            name: replace(scale, settings={label: setting(old) for label, old in scale.settings.items()})
            for name, scale in self.scales.items()
        }
        shares = self.shares and self.shares + suffix
        return replace(self, name=self.name + suffix, scales=scales, shares=shares)


@dataclass(frozen=True)
class Study:
    """The finished runs of a recipe at one scale.

    runs: (label, seed) -> Run. labels: in the scale's order. seeds: ascending; every label has a run for each.
    """

    recipe: Recipe
    scale: str
    runs: Mapping[tuple[str, int], Run]
    labels: tuple[str, ...]
    seeds: tuple[int, ...]

    def settings(self, label: str) -> Mapping[str, Any]:
        return self.recipe.scales[self.scale].settings[label]

    def of(self, label: str) -> list[Run]:
        """The runs of one label, one a seed."""
        return [self.runs[label, seed] for seed in self.seeds]

    def column(self, name: str | Column) -> Column:
        """A column of the table by its name; one that the table lacks is its own."""
        if isinstance(name, Column):
            return name
        return next(column for column in self.recipe.columns if column.name == name)

    def values(self, label: str, column: str | Column) -> np.ndarray:
        """[seeds] float64"""
        of = self.column(column).of
        return np.array([of(run) for run in self.of(label)], np.float64)

    def half_widths(self, label: str, column: str | Column) -> np.ndarray:
        """[seeds] float64, how far each figure can be off by its own error; 0 where the column has no interval."""
        interval = self.column(column).interval
        if interval is None:
            return np.zeros(len(self.seeds))
        return np.array([(hi - lo) / 2 for lo, hi in map(interval, self.of(label))], np.float64)

    def series(self, label: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps [n], values [seeds, n]) of one recorded scalar, at the steps that all seeds have."""
        parts = [dict(zip(*map(np.ndarray.tolist, run.series(key)), strict=True)) for run in self.of(label)]
        steps = sorted(set.intersection(*map(set, parts)))
        return np.array(steps), np.array([[part[step] for step in steps] for part in parts])

    def untrained(self, label: str) -> str:
        """Why a setting must not be compared: a seed below the recipe's train accuracy; empty where none is."""
        if self.recipe.trained is None:
            return ""
        # A job that trains nothing has no accuracy and cannot fail to train.
        accuracies = [run.evaluation["train_accuracy"] for run in self.of(label) if "train_accuracy" in run.evaluation]
        low = [accuracy for accuracy in accuracies if not accuracy >= self.recipe.trained]
        if not low:
            return ""
        return f"{label} did not train: train accuracy {min(low):.0%} in {len(low)} of {len(accuracies)} seeds"


def evaluated(*path: str, scale: float = 1.0) -> Callable[[Run], float]:
    """run -> a figure of its stored evaluation, by the keys that lead to it; NaN where it is missing."""

    def of(run: Run) -> float:
        value: Any = run.evaluation
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return float("nan") if value is None else scale * float(value)

    return of


def rank_column(name: str, *path: str) -> Column:
    """A rank {"rank", "lo", "hi"} of the stored evaluation, with its interval."""
    lo, hi = evaluated(*path, "lo"), evaluated(*path, "hi")
    return Column(name, evaluated(*path, "rank"), lambda run: (lo(run), hi(run)))
