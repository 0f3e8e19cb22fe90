"""alignment: at high T the top singular vectors of weights and representations align early, deep layers first.

Masarczyk et al. 2025, Fig. 3 (maximum averaged over layers; singular values), 10, 24 and 25 (15 x 15 cosines by layer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastrank.recipes.effects import Effect, difference, of_values
from fastrank.recipes.figures import colours, empty, line
from fastrank.recipes.recipe import Column, Recipe, Study
from fastrank.recipes.training import TEST_ACCURACY, TRAIN_ACCURACY, mlp_scales, train_jobs
from fastrank.record import Run
from fastrank.record.schema import split_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Share of the training that counts as early: the paper's Fig. 3 shows its effect in 25 of 100 epochs.
EARLY = 0.25
#: Rows of the grid of cosines, as shares of the early part.
MOMENTS = (0.0, 0.25, 0.5, 1.0)


def layers(run: Run) -> list[str]:
    """Those with an alignment, in the network's order."""
    return [layer for kind, layer, metric in map(split_key, run.keys) if (kind, metric) == ("align", "max")]


def early(values: np.ndarray) -> float:
    """Mean over the early part of the training."""
    return float(values[: max(1, round(EARLY * len(values)))].mean())


def early_alignment(run: Run) -> float:
    return early(run.series("align/mean_max")[1])


def deep_minus_shallow(run: Run) -> float:
    """Early alignment of the last third of the layers minus the first third's."""
    values = by_layer(run)
    third = max(1, len(values) // 3)
    return float(np.mean(values[-third:]) - np.mean(values[:third]))


def by_layer(run: Run) -> list[float]:
    """Early alignment of each layer."""
    return [early(run.series(f"align/{layer}/max")[1]) for layer in layers(run)]


def late_alignment(run: Run) -> float:
    return float(run.series("align/mean_max")[1][-1])


def chance(run: Run) -> float:
    return float(np.mean([run.series(f"align/{layer}/chance")[1].mean() for layer in layers(run)]))


def effects(study: Study) -> list[Effect]:
    low, high = study.labels[0], study.labels[-1]
    return [
        difference(study, "early alignment", high, low, ">"),
        of_values(
            f"{high}: early alignment, last third of the layers minus first third", ">",
            study.values(high, "deep minus shallow"), spoiled=study.untrained(high),
        ),
        difference(study, "alignment at the end", high, low, ">", counts=False),
    ]  # fmt: skip


def draw(study: Study) -> Figure:
    """Top row as Fig. 3; below as Fig. 10, one grid a temperature, one row a moment of the early training."""
    shown = (study.labels[0], study.labels[-1])
    names = layers(study.of(shown[0])[0])
    figure = empty((1.4 + 1.5 * len(names), 2.8 + 0.8 * len(MOMENTS)))
    above, below = figure.subfigures(2, 1, height_ratios=[2.8, 0.8 * len(MOMENTS)])
    top = above.subplots(1, 2)
    for label, colour in zip(study.labels, colours(len(study.labels)), strict=True):
        line(top[0], *study.series(label, "align/mean_max"), label, color=colour)
        run = study.of(label)[0]
        steps, sigma = run.spectra[f"act/{_last_hidden(run)}/sigma"]
        top[1].plot(steps, sigma[:, :5], color=colour, linewidth=0.9)
    top[0].axhline(chance(study.of(shown[0])[0]), color="grey", linewidth=0.8, linestyle=":")
    top[0].set(xlabel="step", ylabel="max alignment, mean over layers", ylim=(0, 1))
    top[0].legend(fontsize=7, title="dotted: chance", title_fontsize=7)
    top[1].set(xlabel="step", ylabel="top 5 $\\sigma$ of the last hidden layer", yscale="log")
    for part, label in zip(below.subfigures(1, 2), shown, strict=True):
        part.suptitle(f"{label}: cosines by layer, seed {study.seeds[0]}", fontsize=9)
        axes = part.subplots(len(MOMENTS), len(names), squeeze=False)
        for column, layer in enumerate(names):
            steps, cosines = study.of(label)[0].spectra[f"align/{layer}/cosines"]
            axes[0, column].set_title(f"{column + 1}", fontsize=7)
            for row, moment in enumerate(MOMENTS):
                at = min(round(moment * EARLY * len(steps)), len(steps) - 1)
                axes[row, column].imshow(cosines[at], vmin=0, vmax=1, cmap="magma")
                axes[row, column].set(xticks=[], yticks=[])
                axes[row, 0].set_ylabel(f"step {steps[at]}", fontsize=7)
    return figure


def notes(study: Study) -> list[str]:
    """What each end of the network adds to the comparison of deep with shallow layers."""
    high = study.labels[-1]
    first, *between, last = np.mean([by_layer(run) for run in study.of(high)], 0)
    if not between:
        return []
    return [
        f"Early alignment at {high}: {first:.2f} of the layer that reads the images, {np.mean(between):.2f} of those "
        f"between, {last:.2f} of the classifier. The first layer's input is the same throughout, and where a few "
        "directions carry most of it, as with these images, its weight soon follows them: a likely reason that 'deep "
        "layers first' is not seen here."
    ]


def _last_hidden(run: Run) -> str:
    """The last layer with activations before the classifier."""
    return [name for kind, name, metric in map(split_key, run.keys) if (kind, metric) == ("act", "rank")][-2]


RECIPE = Recipe(
    name="alignment",
    claim="At high temperature the top singular vectors of weights and representations align early in training, deep "
    "layers first; at T = 1 they hardly do.",
    source="Masarczyk et al. 2025, eq. 2, Fig. 3, 10, 24, 25",
    rule=f"Averaged over the first {EARLY:.0%} of training and over layers, the maximum of the 15 x 15 cosines is "
    "higher at the highest temperature than at T = 1, and at the highest it is larger in the last third of the layers "
    "than in the first third.",
    revised="Three seeds had left the second effect open, at -0.01 [-0.17, 0.15]; eight were then fixed, and run.",
    scales=mlp_scales("act,align", 8, 6),
    columns=(
        TRAIN_ACCURACY,
        TEST_ACCURACY,
        Column("early alignment", early_alignment),
        Column("deep minus shallow", deep_minus_shallow),
        Column("alignment at the end", late_alignment),
        Column("chance", chance),
    ),
    run=train_jobs,
    effects=effects,
    draw=draw,
    notes=notes,
)  # fmt: skip
