"""temperature-sweep: the higher T, the lower the solution's rank (Masarczyk et al. 2025, Tables 1, 7 .. 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastrank.recipes.effects import Effect, difference, slope
from fastrank.recipes.figures import colours, panels
from fastrank.recipes.recipe import Recipe, Scale, Study
from fastrank.recipes.training import (
    LOGITS_NORM,
    NORM_OVER_T,
    SMALL_RESNET,
    SMOKE_MLP,
    SOLUTION_RANK,
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    UNTRACKED,
    over_temperatures,
    paper_resnet,
    temperatures,
    train_jobs,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def effects(study: Study) -> list[Effect]:
    first, last = study.labels[0], study.labels[-1]
    return [
        difference(study, "solution rank", last, first, "<"),
        slope(study, "solution rank", np.log10(temperatures(study)), study.labels, "<", "decade of T"),
        difference(study, "test accuracy", last, first, "<", counts=False),
    ]


def draw(study: Study) -> Figure:
    """Rank and norm of the solution against T, one dot a seed; the rank at every tolerance, mean over seeds."""
    figure, axes = panels(1, 3, (3.8, 3.2))
    x = temperatures(study)
    for place, name in enumerate(("solution rank", "logits norm")):
        y = np.stack([study.values(label, name) for label in study.labels])
        axes[0, place].plot(x, y.mean(1), color="black")
        axes[0, place].plot(x, y, "o", color="tab:blue", markersize=4)
        axes[0, place].set(xscale="log", xlabel="T", ylabel=name)
    axes[0, 1].set_yscale("log")
    tolerances = np.logspace(-8, -0.5, 80)
    for label, colour in zip(study.labels, colours(len(study.labels)), strict=True):
        curves = []
        for run in study.of(label):
            sigma = np.array(run.evaluation["logits_sigma"])
            curves.append((sigma[None] > tolerances[:, None] * sigma[0]).sum(1))
            used = run.evaluation["solution_rank"]["tol"] / sigma[0]
        axes[0, 2].plot(tolerances, np.mean(curves, 0), color=colour, label=label)
        axes[0, 2].axvline(used, color="grey", linewidth=0.8, linestyle=":")
    axes[0, 2].set(xscale="log", xlabel="tolerance / $\\sigma_1$", ylabel="rank of the logits")
    axes[0, 2].legend(fontsize=8, title="dotted: torch's default", title_fontsize=8)
    return figure


RECIPE = Recipe(
    name="temperature-sweep",
    claim="The higher the temperature, the lower the rank of the solution.",
    source="Masarczyk et al. 2025, Tables 1, 7, 8, 9; Fig. 1, 11 .. 16",
    rule="The solution rank at the highest temperature is below that at T = 1, and falls per decade of T.",
    scales={
        "smoke": Scale(over_temperatures({**SMOKE_MLP, **UNTRACKED}, (1, 10)), 2, "seconds"),
        "quick": Scale(over_temperatures({**SMALL_RESNET, **UNTRACKED}, (1, 10, 100)), 3, "about 10 minutes"),
        "full": Scale(
            over_temperatures({**paper_resnet("resnet34_cifar", "cifar100"), **UNTRACKED}, (1, 10, 100, 200)),
            3,
            "12 trainings of ResNet-34 on CIFAR-100, 164 epochs each",
        ),
    },
    columns=(TRAIN_ACCURACY, TEST_ACCURACY, SOLUTION_RANK, LOGITS_NORM, NORM_OVER_T),
    run=train_jobs,
    effects=effects,
    draw=draw,
)
