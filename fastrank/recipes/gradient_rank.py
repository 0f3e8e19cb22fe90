"""gradient-rank: the rank of a layer's input bounds that of its weight's gradient, and both collapse at high T.

Masarczyk et al. 2025, eq. 3 and Fig. 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastrank.recipes.effects import Effect, difference, proportion
from fastrank.recipes.figures import line, panels
from fastrank.recipes.recipe import Column, Recipe, Study
from fastrank.recipes.training import TEST_ACCURACY, TRAIN_ACCURACY, mlp_scales, train_jobs
from fastrank.record import Run
from fastrank.record.schema import split_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layers(run: Run) -> list[str]:
    """Those with a bound, in the network's order."""
    return [layer for kind, layer, metric in map(split_key, run.keys) if (kind, metric) == ("grad", "input_rank")]


def by_layer(run: Run, metric: str) -> np.ndarray:
    """[layers], means over training."""
    return np.array([run.series(f"grad/{layer}/{metric}")[1].mean() for layer in layers(run)])


def deep(run: Run, metric: str) -> float:
    """Mean over training and the second half of the hidden layers; the classifier's gradient has one row a class."""
    ranks = by_layer(run, metric)[:-1]
    return float(ranks[len(ranks) // 2 :].mean())


def effective_by_layer(run: Run) -> np.ndarray:
    """[hidden layers] effective ranks (Roy & Vetterli 2007) of their activations, means over training."""
    keys = [key for key, (kind, _, metric) in zip(run.keys, map(split_key, run.keys), strict=True)
            if (kind, metric) == ("act", "effective_rank")]  # fmt: skip
    return np.array([run.series(key)[1].mean() for key in keys])


def deep_effective(run: Run) -> float:
    """Mean over training and the second half of the layers that `deep` looks at."""
    ranks = effective_by_layer(run)[:-1]
    return float(ranks[len(ranks) // 2 :].mean())


def exceeded(run: Run) -> tuple[int, int]:
    """(pairs of layer and step at which the bound is certainly exceeded, all pairs)"""
    excess = np.concatenate([run.series(f"grad/{layer}/bound_excess")[1] for layer in layers(run)])
    return int((excess > 0).sum()), len(excess)


def effects(study: Study) -> list[Effect]:
    low, high = study.labels[0], study.labels[-1]
    counts = np.array([exceeded(run) for label in study.labels for run in study.of(label)]).sum(0)
    return [
        difference(study, "deep gradient rank", high, low, "<"),
        difference(study, "deep input rank", high, low, "<"),
        difference(study, "deep effective rank", high, low, "<", counts=False),
        # Eq. 3 holds for exact ranks; numerical ones have tolerances of their own on both sides.
        proportion("share of layers and steps within the bound", ">", int(counts[1] - counts[0]), int(counts[1]), 0.95),
    ]


def draw(study: Study) -> Figure:
    """As Fig. 4, one panel a temperature: ranks by layer, means over training, dots for seeds."""
    figure, axes = panels(1, len(study.labels), (4.0, 3.0), sharey=True)
    for place, label in zip(axes[0], study.labels, strict=True):
        for metric, name, colour in (("input_rank", "rank($A^i$)", "tab:blue"), ("rank", "rank($G^{i+1}$)", "tab:red")):
            ranks = np.stack([by_layer(run, metric) for run in study.of(label)])
            x = np.arange(ranks.shape[1])
            place.plot(x, ranks.mean(0), color=colour, label=name)
            place.plot(np.broadcast_to(x, ranks.shape), ranks, ".", color=colour, markersize=4)
        effective = np.stack([effective_by_layer(run) for run in study.of(label)])
        # A^i of the hidden layers; A^0 is the images.
        line(place, np.arange(1, 1 + effective.shape[1]), effective, "effective rank of $A^i$", color="tab:cyan")
        place.set(xlabel="layer i", title=label, yscale="log")
    axes[0, 0].set_ylabel("rank, mean over training")
    axes[0, 0].legend(fontsize=8)
    return figure


def notes(study: Study) -> list[str]:
    ranks = [by_layer(run, "input_rank").max() for label in study.labels for run in study.of(label)]
    batch = study.settings(study.labels[0])["train"]["batch_size"]
    if max(ranks) < batch:
        return []
    return [
        f"A batch of {batch} samples has at most that rank, and torch's default tolerance for it is "
        f"{batch * 1.2e-7:.0e} of the largest singular value: inputs at this ceiling cannot show a collapse of their "
        "smaller singular values. Over many more samples the default tolerance is as many times larger. The effective "
        "rank has no tolerance."
    ]


RECIPE = Recipe(
    name="gradient-rank",
    claim="The rank of a layer's input bounds the rank of its weight's gradient; at high temperature both collapse in "
    "the deep layers.",
    source="Masarczyk et al. 2025, eq. 3, Fig. 4",
    rule="Averaged over training and the second half of the hidden layers, the ranks of gradients and of inputs are "
    "both lower at the highest temperature than at T = 1; the bound is certainly exceeded at fewer than 5 % of all "
    "layers and steps.",
    scales=mlp_scales("act,bound"),
    columns=(
        TRAIN_ACCURACY,
        TEST_ACCURACY,
        Column("deep gradient rank", lambda run: deep(run, "rank")),
        Column("deep input rank", lambda run: deep(run, "input_rank")),
        Column("deep effective rank", deep_effective),
        Column("layers and steps beyond the bound", lambda run: exceeded(run)[0], form=".0f"),
    ),
    run=train_jobs,
    effects=effects,
    draw=draw,
    notes=notes,
)  # fmt: skip
