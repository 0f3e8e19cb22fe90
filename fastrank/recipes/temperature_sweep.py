"""temperature-sweep: higher T, lower rank, earlier best layer, more loss out of distribution.

Masarczyk et al. 2025, Tables 1, 7 .. 9 and Fig. 1, 11 .. 16 (probe accuracies by layer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrank.recipes.effects import Effect, difference, slope
from fastrank.recipes.evaluating import (
    COLLAPSE,
    KAPPA,
    RHO,
    evaluate_jobs,
    first_ood,
    on_other_sets,
    ood_probe_accuracies,
    probe_accuracies,
    probe_notes,
    rho,
    set_notes,
)
from fastrank.recipes.figures import colours, line, panels
from fastrank.recipes.recipe import Recipe, Scale, Study
from fastrank.recipes.training import (
    OUTCOME,
    SMALL_RESNET,
    SMOKE_MLP,
    UNTRACKED,
    over_temperatures,
    paper_resnet,
    rank_at,
    temperatures,
)
from fastrank.train.presets import PRESETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


#: Train accuracy in per cent from which a network counts as one that interpolates its data.
INTERPOLATES = 99.9
#: Table 9's, then natural adversarial examples (A, O; Hendrycks et al. 2021), renditions (R; the same), sketches (Wang
#: et al. 2019) and plants of no class of ImageNet (Huang & Li 2021). Each is a folder of classes, without splits.
IMAGENET_OOD = ("cifar100", "imagenet-a", "imagenet-o", "imagenet-r", "imagenet-sketch", "inaturalist")


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
        # Torch's default threshold is low for few samples; this is about that of the paper's 50,000.
        difference(study, rank_at(1e-2), last, first, "<", counts=False),
        *on_other_sets(study, "rho", rho, ">"),
    ]


def notes(study: Study) -> list[str]:
    """What the probes are, and which networks are not in the regime of which neural collapse speaks."""
    accuracies = {label: study.values(label, "train accuracy").mean() for label in study.labels}
    short = [f"{label} ({accuracy:.1f} %)" for label, accuracy in accuracies.items() if accuracy < INTERPOLATES]
    found = f"Train accuracy is below {INTERPOLATES:g} % at {', '.join(short)}: NC1 .. NC4 there are not the limits at "
    return [
        *set_notes(study),
        *probe_notes(study),
        *([found + "zero training error of which neural collapse speaks."] if short else []),
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
    for label, colour in zip(study.labels, colours(len(study.labels)), strict=True):
        draw_rank_curve(axes[0, 2], study, label, color=colour)
    axes[0, 2].legend(fontsize=8, title="dotted: torch's default", title_fontsize=8)
    return figure


def draw_rank_curve(axes: Axes, study: Study, label: str, **style: Any) -> None:
    """Rank of the training set's logits against the tolerance, and the tolerance that was used."""
    tolerances = np.logspace(-8, -0.5, 80)
    sigmas = [np.array(run.evaluation["logits_sigma"]) for run in study.of(label)]
    curves = np.stack([(sigma > tolerances[:, None] * sigma[0]).sum(1) for sigma in sigmas])
    line(axes, tolerances, curves, label, **style)
    used = study.of(label)[0].evaluation["solution_rank"]["tol"] / sigmas[0][0]
    axes.axvline(used, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="tolerance / $\\sigma_1$", ylabel="rank of the logits")


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
    revised="Three seeds had left rho open, at 0.025 [-0.028, 0.078]; five were then fixed, and run.",
    scales={
        "smoke": Scale(settings_of(SMOKE_MLP, (1, 10), ("glyphs",), ("ridge",)), 2, "seconds"),
        "quick": Scale(
            settings_of(SMALL_RESNET, (1, 10, 100), ("digits", "glyphs-rotated", "glyphs-noisy"), ("ridge",)), 5,
            "about 10 minutes",
        ),
        "full": Scale(
            settings_of(
                paper_resnet("resnet34_cifar", "cifar100"), (1, 10, 100, 200),
                ("folder:{data}/svhn", "folder:{data}/cifar10"), ("adam", "ridge"),
            ),
            3, "12 trainings of ResNet-34 on CIFAR-100, 164 epochs each",
        ),
        # The paper lengthens its high temperatures' trainings and changes their rate, and does not say to what.
        "imagenet": Scale(
            settings_of(
                {**PRESETS["paper-imagenet"], "data": "folder:{data}/imagenet"}, (1, 10, 100, 1000),
                [f"folder:{{data}}/{name}" for name in IMAGENET_OOD], ("adam", "ridge"),
            ),
            3, "12 trainings of ResNet-34 on ImageNet-1k, 120 epochs each; model=resnet50 by --set",
        ),
    },
    columns=(*OUTCOME, KAPPA, RHO, *COLLAPSE),
    run=evaluate_jobs,
    effects=effects,
    draw=draw,
    notes=notes,
)  # fmt: skip
