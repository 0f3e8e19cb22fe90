"""orthodev: high T brings the mean of OOD features closer to orthogonal to the class means.

Masarczyk et al. 2025, eq. 4, Fig. 7 and 22 (OrthoDev by layer). The networks are those of temperature-sweep.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastrank.recipes import temperature_sweep
from fastrank.recipes.effects import Effect, difference, slope
from fastrank.recipes.evaluating import (
    MEAN_SHARE,
    NC1,
    ORTHODEV,
    evaluate_jobs,
    first_ood,
    on_other_sets,
    ood_figures,
    orthodev,
    set_notes,
)
from fastrank.recipes.figures import colours, panels
from fastrank.recipes.recipe import Column, Recipe, Study
from fastrank.recipes.training import SOLUTION_RANK, TRAIN_ACCURACY, temperatures
from fastrank.record import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_layer(run: Run) -> list[float]:
    return list(ood_figures(run).get("orthodev_layers", {}).values())


def deep(run: Run) -> float:
    """Mean over the second half of the layers."""
    values = by_layer(run)
    return float(np.mean(values[len(values) // 2 :])) if values else math.nan


COMMON = Column("|cos| of OOD mean and common mean", lambda run: _figure(ood_figures(run).get("common_cosine")))


def _figure(value: float | None) -> float:
    return math.nan if value is None else float(value)


DEEP = Column("OrthoDev, second half of the layers", deep)


def effects(study: Study) -> list[Effect]:
    first, last = study.labels[0], study.labels[-1]
    return [
        difference(study, ORTHODEV.name, last, first, "<"),
        slope(study, ORTHODEV.name, np.log10(temperatures(study)), study.labels, "<", "decade of T"),
        difference(study, DEEP.name, last, first, "<", counts=False),
        difference(study, MEAN_SHARE.name, last, first, "<", counts=False),
        *on_other_sets(study, "OrthoDev", orthodev, "<"),
    ]


def draw(study: Study) -> Figure:
    """As Fig. 22: OrthoDev by layer, one line a temperature, dots for seeds."""
    figure, axes = panels(1, 1, (5.0, 3.4))
    place = axes[0, 0]
    for label, colour in zip(study.labels, colours(len(study.labels)), strict=True):
        values = np.array([by_layer(run) for run in study.of(label)], np.float64)
        x = np.arange(values.shape[1])
        place.plot(x, values.mean(0), color=colour, label=label)
        place.plot(np.broadcast_to(x, values.shape).T, values.T, ".", color=colour, markersize=4)
    place.set(xlabel="layer", ylabel="OrthoDev", title=f"out of distribution: {first_ood(study)}")
    place.legend(fontsize=8)
    return figure


def notes(study: Study) -> list[str]:
    """Of what OrthoDev consists here."""
    ends = study.labels[0], study.labels[-1]
    share, cosine = ([study.values(label, column.name).mean() for label in ends] for column in (MEAN_SHARE, COMMON))
    if not np.isfinite([*share, *cosine]).all():
        return set_notes(study)
    return [
        *set_notes(study),
        "Equation 4 does not centre, and after a ReLU no feature is negative, so all means have something in common. "
        f"From {ends[0]} to {ends[1]} its share of the class means' squared lengths goes from {share[0]:.2f} to "
        f"{share[1]:.2f}, and its cosine with the out-of-distribution mean from {cosine[0]:.2f} to {cosine[1]:.2f}. "
        "Where both grow OrthoDev grows, whatever becomes of the directions that tell the classes apart.",
    ]


RECIPE = Recipe(
    name="orthodev",
    claim="High temperature leads to a lower OrthoDev: the mean of out-of-distribution features is closer to "
    "orthogonal to the class means.",
    source="Masarczyk et al. 2025, eq. 4, Fig. 7, 22",
    rule="OrthoDev of the classifier's inputs at the highest temperature is below that at T = 1, and falls per decade.",
    revised="Three seeds had not held either, and five are now run (see temperature-sweep). The common mean's share "
    "was added to explain that, and does not count.",
    scales=temperature_sweep.RECIPE.scales,
    columns=(TRAIN_ACCURACY, SOLUTION_RANK, ORTHODEV, DEEP, MEAN_SHARE, COMMON, NC1),
    run=evaluate_jobs,
    effects=effects,
    draw=draw,
    notes=notes,
    shares="temperature-sweep",
)
