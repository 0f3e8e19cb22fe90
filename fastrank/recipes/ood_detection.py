"""ood-detection: high T improves NECO's detection at the cost of generalisation out of distribution.

Masarczyk et al. 2025, Table 2 and Fig. 23 (OOD accuracy of the last layer's probe against detection). The networks are
those of temperature-sweep.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastrank.recipes import temperature_sweep
from fastrank.recipes.effects import Effect, correlation, difference
from fastrank.recipes.evaluating import (
    AUROC,
    FPR95,
    detection,
    evaluate_jobs,
    first_ood,
    on_other_sets,
    ood_probe_accuracies,
    set_notes,
)
from fastrank.recipes.figures import colours, panels
from fastrank.recipes.recipe import Column, Recipe, Study
from fastrank.recipes.training import SOLUTION_RANK, TRAIN_ACCURACY
from fastrank.record import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def last_probe(run: Run) -> float:
    """Accuracy of the last layer's probe on the out-of-distribution set, in per cent."""
    accuracies = list(ood_probe_accuracies(run).values())
    return 100 * accuracies[-1] if accuracies else math.nan


LAST_PROBE = Column("OOD accuracy, last layer", last_probe, form=".1f")


def effects(study: Study) -> list[Effect]:
    first, last = study.labels[0], study.labels[-1]
    x, y = (
        np.concatenate([study.values(label, name) for label in study.labels]) for name in (AUROC.name, LAST_PROBE.name)
    )
    return [
        difference(study, AUROC.name, last, first, ">"),
        difference(study, FPR95.name, last, first, "<"),
        difference(study, LAST_PROBE.name, last, first, "<"),
        # Points of one temperature are not independent of each other: shown, not judged.
        correlation("OOD accuracy with NECO AUROC over all networks", "<", x, y, counts=False),
        *on_other_sets(study, "NECO AUROC", lambda run, place: 100 * detection(run, "auroc", place=place), ">"),
        *on_other_sets(
            study, "NECO FPR95", lambda run, place: 100 * detection(run, "fpr95_id_positive", place=place), "<"
        ),
    ]


def draw(study: Study) -> Figure:
    """As Fig. 23: one dot a network."""
    figure, axes = panels(1, 1, (4.6, 3.4))
    for label, colour in zip(study.labels, colours(len(study.labels)), strict=True):
        axes[0, 0].plot(
            study.values(label, AUROC.name), study.values(label, LAST_PROBE.name), "o", color=colour, label=label
        )
    axes[0, 0].set(
        xlabel="NECO AUROC", ylabel="OOD accuracy of the last layer's probe", title=f"OOD: {first_ood(study)}"
    )
    axes[0, 0].legend(fontsize=8)
    return figure


RECIPE = Recipe(
    name="ood-detection",
    claim="High temperature improves out-of-distribution detection by NECO, at the cost of generalisation out of "
    "distribution in the last layers.",
    source="Masarczyk et al. 2025, Table 2, Fig. 23",
    rule="At the highest temperature, against T = 1: NECO's AUROC is higher, its false positive rate at 95 % of the "
    "in-distribution samples kept is lower, and the last layer's probe is less accurate on the OOD set.",
    scales=temperature_sweep.RECIPE.scales,
    columns=(
        TRAIN_ACCURACY,
        SOLUTION_RANK,
        AUROC,
        FPR95,
        Column("NECO FPR95, OOD as positive", lambda run: 100 * detection(run, "fpr95_ood_positive"), form=".1f"),
        Column("max-softmax AUROC", lambda run: 100 * detection(run, "auroc", "max_softmax"), form=".1f"),
        LAST_PROBE,
    ),
    run=evaluate_jobs,
    effects=effects,
    draw=draw,
    notes=set_notes,
    shares="temperature-sweep",
)
