"""temperature-sweep: higher T, lower rank, earlier best layer, more loss out of distribution.

Masarczyk et al. 2025, Tables 1, 7 .. 9 and Fig. 1, 11 .. 16 (probe accuracies by layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrank.recipes.effects import Effect, difference, slope
from fastrank.recipes.evaluating import (
    KAPPA,
    NC1,
    RHO,
    evaluate_jobs,
    first_ood,
    ood_probe_accuracies,
    probe_accuracies,
    probe_notes,
)
from fastrank.recipes.figures import colours, line, panels
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
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def settings_of(
    train: Mapping[str, Any], T: Sequence[float], ood: Sequence[str], probes: Sequence[str], **changes: Any
) -> dict[str, dict[str, Any]]:
    return over_temperatures({**train, **UNTRACKED, **changes}, T, evaluate={"ood": list(ood), "probes": list(probes)})


def effects(study: Study) -> list[Effect]:
    first, last = study.labels[0], study.labels[-1]
    return [
        difference(study, "solution rank", last, first, "<"),
        slope(study, "solution rank", np.log10(temperatures(study)), study.labels, "<", "decade of T"),
        difference(study, KAPPA.name, last, first, "<"),
        difference(study, RHO.name, last, first, ">"),
        difference(study, "test accuracy", last, first, "<", counts=False),
    ]


def draw(study: Study) -> Figure:
    """Above, rank and norm against T, one dot a seed, and the rank at every tolerance; below, as Fig. 1, probes."""
    figure, axes = panels(2, max(3, len(study.labels)), (3.6, 3.0))
    for row in axes[:, 3:], axes[1:, len(study.labels) :]:
        for place in row.flat:
            place.set_axis_off()
    for place, label in zip(axes[1], study.labels, strict=False):
        draw_probes(place, study, label)
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


def draw_probes(axes: Axes, study: Study, label: str) -> None:
    """Accuracy of linear probes by layer, in distribution on the left axis, out of distribution on the right."""
    right = axes.twinx()
    for place, of, colour in ((axes, probe_accuracies, "tab:blue"), (right, ood_probe_accuracies, "tab:red")):
        values = np.array([list(of(run).values()) for run in study.of(label)], np.float64)
        if values.size:
            line(place, np.arange(values.shape[1]), 100 * values, "", color=colour)
        place.tick_params(axis="y", colors=colour)
    axes.set(xlabel="layer", ylabel="probe accuracy", title=label)
    right.set_ylabel(f"OOD: {first_ood(study)}", color="tab:red")


RECIPE = Recipe(
    name="temperature-sweep",
    claim="The higher the temperature, the lower the solution's rank, the fewer layers until the last accuracy is "
    "reached (kappa), and the more is lost out of distribution in the last layers (rho).",
    source="Masarczyk et al. 2025, Tables 1, 7, 8, 9; Fig. 1, 11 .. 16",
    rule="At the highest temperature, against T = 1: solution rank and kappa are lower and rho is higher; the rank "
    "falls per decade of T.",
    scales={
        "smoke": Scale(settings_of(SMOKE_MLP, (1, 10), ("glyphs",), ("ridge",)), 2, "seconds"),
        "quick": Scale(
            settings_of(SMALL_RESNET, (1, 10, 100), ("digits", "glyphs-rotated", "glyphs-noisy"), ("ridge",)), 3,
            "about 10 minutes",
        ),
        "full": Scale(
            settings_of(
                paper_resnet("resnet34_cifar", "cifar100"), (1, 10, 100, 200),
                ("folder:{data}/svhn", "folder:{data}/cifar10"), ("adam", "ridge"),
            ),
            3, "12 trainings of ResNet-34 on CIFAR-100, 164 epochs each",
        ),
    },
    columns=(TRAIN_ACCURACY, TEST_ACCURACY, SOLUTION_RANK, KAPPA, RHO, LOGITS_NORM, NORM_OVER_T, NC1),
    run=evaluate_jobs,
    effects=effects,
    draw=draw,
    notes=probe_notes,
)  # fmt: skip
