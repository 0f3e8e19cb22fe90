"""temperature-sweep: the higher T, the lower the solution's rank (Masarczyk et al. 2025, Tables 1, 7 .. 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastrank.recipes.effects import Effect, difference, slope
from fastrank.recipes.figures import panels
from fastrank.recipes.recipe import Recipe, Scale, Study
from fastrank.recipes.training import (
    LOGITS_NORM,
    NORM_OVER_T,
    SOLUTION_RANK,
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    over_temperatures,
    train_jobs,
)
from fastrank.train.presets import PRESETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUIET: dict[str, Any] = {"track": "off", "every": 10}
SMOKE = {"model": "mlp", "model_kwargs": {"depth": 2, "width": 32}, "data": "digits", "image_size": 8, "lr": 0.05,
         "optimizer": "adam", "epochs": 8, "samples_per_class": 40, "batch_size": 100, "weight_decay": 0.0}  # fmt: skip


def effects(study: Study) -> list[Effect]:
    first, last = study.labels[0], study.labels[-1]
    temperatures = [np.log10(study.settings(label)["train"]["temperature"]) for label in study.labels]
    return [
        difference(study, "solution rank", last, first, "<"),
        slope(study, "solution rank", temperatures, study.labels, "<", "decade of T"),
    ]


def draw(study: Study) -> Figure:
    figure, axes = panels(1, 2, (4.2, 3.2))
    x = [study.settings(label)["train"]["temperature"] for label in study.labels]
    for place, name in enumerate(("solution rank", "logits norm")):
        y = np.stack([study.values(label, name) for label in study.labels])
        axes[0, place].plot(x, y.mean(1), color="black")
        axes[0, place].plot(x, y, "o", color="tab:blue", markersize=4)
        axes[0, place].set(xscale="log", xlabel="T", ylabel=name)
    axes[0, 1].set_yscale("log")
    return figure


RECIPE = Recipe(
    name="temperature-sweep",
    claim="The higher the temperature, the lower the rank of the solution.",
    source="Masarczyk et al. 2025, Tables 1, 7, 8, 9; Fig. 1, 11 .. 16",
    rule="The solution rank at the highest temperature is below that at T = 1, and falls per decade of T.",
    scales={
        "smoke": Scale(over_temperatures({**SMOKE, **QUIET}, (1, 100)), 2, "seconds"),
        "quick": Scale(over_temperatures({**PRESETS["demo"], **QUIET}, (1, 10, 100)), 3, "about 10 minutes"),
    },
    columns=(TRAIN_ACCURACY, TEST_ACCURACY, SOLUTION_RANK, LOGITS_NORM, NORM_OVER_T),
    run=train_jobs,
    effects=effects,
    draw=draw,
)
