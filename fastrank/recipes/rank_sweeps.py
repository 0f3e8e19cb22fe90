"""rank-sweeps: does the rank deficit hang on the threshold, on the number of samples, or on balanced classes?

Masarczyk et al. 2025, A.5, takes torch's default threshold (which grows with the number of samples), all samples, and
balanced classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fastrank import GramState, matrix_rank
from fastrank.recipes.effects import Effect, difference
from fastrank.recipes.figures import colours, line, log_ticks, panels
from fastrank.recipes.recipe import Column, Job, Recipe, Scale, Study
from fastrank.recipes.temperature_sweep import draw_rank_curve
from fastrank.recipes.training import (
    GLYPH_MLP,
    OUTCOME,
    SMOKE_MLP,
    SOLUTION_RANK,
    UNTRACKED,
    paper_resnet,
    rank_at,
    train_jobs,
)
from fastrank.record import Run
from fastrank.train.data import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Thresholds over sigma_1. Below 1e-3 float32's own rounding of that many samples begins: shown, not judged.
THRESHOLDS, SHOWN = (1e-3, 3e-3, 1e-2), (1e-5, 1e-4)
#: Shares of the training set.
SHARES = (1 / 16, 1 / 4, 1.0)
#: What the rank of fewer samples is counted at beside torch's default, whose threshold changes with their number.
FIXED = 3e-3
BATCH = 512


def _settings(
    train: Mapping[str, Any], temperatures: Sequence[float], balances: Sequence[float]
) -> dict[str, dict[str, Any]]:
    def label(T: float, balance: float) -> str:
        return f"T={T:g}" + (f", balance {balance:g}" if balance != 1 else "")

    return {
        label(T, balance): {
            "train": {**_as_many_steps(train, balance), **UNTRACKED, "temperature": T, "class_balance": balance}
        }
        for balance in balances
        for T in temperatures
    }


def _as_many_steps(train: Mapping[str, Any], balance: float) -> dict[str, Any]:
    """The training with its epochs over the share of the samples that this balance leaves."""
    share = (1 - balance) / -np.log(balance) if balance < 1 else 1.0  # mean of balance^x for x in 0 .. 1
    milestones = [round(epoch / share) for epoch in train.get("milestones", ())]
    return {**train, "epochs": round(train["epochs"] / share), "milestones": milestones}


def run(jobs: Sequence[Job], device: torch.device) -> None:
    train_jobs(jobs, device, also=ranks_by_samples)


@torch.no_grad()
def ranks_by_samples(model: nn.Module, data: Data, T: float, job: Job) -> dict[str, Any]:
    """Spectra of the logits of seeded samples of the training set, with torch's rank of each."""
    found, device = [], next(model.parameters()).device
    was_training = model.training
    model.eval()
    for share in SHARES:
        n = round(share * len(data.train))
        logits = GramState(data.classes, mode="exact", device=device)
        for images, _ in data.train.plain_batches(BATCH, n):
            logits.update(model(images.to(device)).float())
        spectrum = logits.spectrum()
        rank = matrix_rank(spectrum)
        found.append({"samples": logits.n, "rank": int(rank), "lo": rank.lo, "hi": rank.hi,
                      "sigma": spectrum.sigma.tolist()})  # fmt: skip
    model.train(was_training)
    return {"by_samples": found}


def _of_share(place: int) -> Column:
    def rank(run: Run) -> float:
        return float(run.evaluation["by_samples"][place]["rank"])

    def interval(run: Run) -> tuple[float, float]:
        found = run.evaluation["by_samples"][place]
        return float(found["lo"]), float(found["hi"])

    return Column(f"rank of {SHARES[place]:.3g} of the samples", rank, interval)


def _fixed(run: Run) -> list[float]:
    """Rank at `FIXED` of every share of the samples."""
    sigmas = (np.array(found["sigma"]) for found in run.evaluation["by_samples"])
    return [float((sigma > FIXED * sigma[0]).sum()) for sigma in sigmas]


def _fixed_share(place: int) -> Column:
    return Column(f"rank of {SHARES[place]:.3g} of the samples at {FIXED:g} of sigma_1", lambda run: _fixed(run)[place])


def _pairs(study: Study) -> list[tuple[str, str]]:
    """(T = 1, high T) by class balance, the balanced first."""
    return list(zip(study.labels[::2], study.labels[1::2], strict=True))


def effects(study: Study) -> list[Effect]:
    low, high = _pairs(study)[0]
    found = [difference(study, SOLUTION_RANK, b, a, "<") for a, b in _pairs(study)]
    found += [difference(study, rank_at(t), high, low, "<") for t in THRESHOLDS]
    found += [difference(study, rank_at(t), high, low, "<", counts=False) for t in SHOWN]
    found += [difference(study, _of_share(place), high, low, "<") for place in range(len(SHARES) - 1)]
    # What is left where the threshold does not change with the number of samples.
    found += [difference(study, rank_at(FIXED), b, a, "<", counts=False) for a, b in _pairs(study)[1:]]
    found += [difference(study, _fixed_share(place), high, low, "<", counts=False) for place in range(len(SHARES) - 1)]
    return found


def draw(study: Study) -> Figure:
    """Rank of the logits against threshold, number of samples and class balance; bands are deviations over seeds."""
    figure, axes = panels(1, 3, (4.0, 3.4))
    pairs = _pairs(study)
    for label, colour in zip(pairs[0], colours(2), strict=True):
        draw_rank_curve(axes[0, 0], study, label, color=colour)
        samples = [found["samples"] for found in study.of(label)[0].evaluation["by_samples"]]
        ranks = [[found["rank"] for found in run.evaluation["by_samples"]] for run in study.of(label)]
        line(axes[0, 1], samples, np.array(ranks), f"{label}, torch's default", color=colour, marker="o")
        fixed = np.array([_fixed(run) for run in study.of(label)])
        line(axes[0, 1], samples, fixed, f"{label}, {FIXED:g} of $\\sigma_1$", color=colour, marker="s", linestyle="--")
    balances = [study.settings(low)["train"]["class_balance"] for low, _ in pairs]
    for place, colour in enumerate(colours(2)):
        for column, style in ((SOLUTION_RANK, {"marker": "o"}), (rank_at(FIXED), {"marker": "s", "linestyle": "--"})):
            ranks = np.stack([study.values(pair[place], column) for pair in pairs], 1)
            line(axes[0, 2], balances, ranks, pairs[0][place] if column is SOLUTION_RANK else "", color=colour, **style)
    axes[0, 0].set(xlim=(1e-6, 0.5))
    axes[0, 1].set(xscale="log", xlabel="samples", ylabel="rank of the logits")
    axes[0, 2].set(
        xscale="log",
        xlabel="smallest class / largest",
        ylabel="rank of the logits",
        title=f"dashed: at {FIXED:g} $\\sigma_1$",
    )
    for place in axes[0, 1:]:
        log_ticks(place.xaxis)
    for place in axes[0]:
        place.set_ylim(0, 1.08 * place.get_ylim()[1])
        place.legend(fontsize=7)
    return figure


def notes(study: Study) -> list[str]:
    samples = [found["samples"] for found in study.of(study.labels[0])[0].evaluation["by_samples"]]
    least, most = (n * np.finfo(np.float32).eps for n in (samples[0], samples[-1]))
    return [
        f"Torch's default threshold is proportional to the number of samples: {least:.1e} of sigma_1 for {samples[0]}, "
        f"{most:.1e} for {samples[-1]}. A rank deficit that goes away with fewer samples, or with classes that have "
        f"fewer, goes with the threshold: compare the effects at {FIXED:g} of sigma_1, which do not count.",
        "Unbalanced classes shrink geometrically and none grows: a training with them has fewer samples, and as many "
        "more epochs, so that all take as many steps.",
    ]


RECIPE = Recipe(
    name="rank-sweeps",
    claim="The rank deficit at high temperature hangs neither on the threshold, nor on the number of samples, nor on "
    "balanced classes.",
    source="Masarczyk et al. 2025, A.5; questions of its readers",
    rule="The solution rank at the high temperature is below that at T = 1 at every class balance; with balanced "
    f"classes also at thresholds of {', '.join(f'{t:g}' for t in THRESHOLDS)} of the largest singular value and over "
    f"{' and '.join(f'{share:.3g}' for share in SHARES[:-1])} of the samples.",
    scales={
        "smoke": Scale(_settings(SMOKE_MLP, (1, 10), (1.0, 0.2)), 2, "seconds"),
        "quick": Scale(_settings(GLYPH_MLP, (1, 100), (1.0, 0.1)), 3, "about 5 minutes"),
        "full": Scale(
            _settings(paper_resnet("resnet34_cifar", "cifar100"), (1, 100), (1.0, 0.1, 0.01)), 3,
            "18 trainings of ResNet-34 on CIFAR-100, 164 epochs each",
        ),
    },
    columns=(*OUTCOME, *map(_of_share, range(len(SHARES) - 1)), *map(rank_at, THRESHOLDS)),
    run=run,
    effects=effects,
    draw=draw,
    notes=notes,
)  # fmt: skip
