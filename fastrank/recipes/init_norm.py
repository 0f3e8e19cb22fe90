"""init-norm: the initial scale sets the first logits' norm and the final rank; T and LayerNorm undo it.

Masarczyk et al. 2025, appendix E, Fig. 17: penultimate rank after training against the logits' norm before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fastrank import GramState, matrix_rank
from fastrank.recipes.effects import Effect, of_values
from fastrank.recipes.figures import colours, log_ticks, panels
from fastrank.recipes.recipe import Job, Recipe, Scale, Study, rank_column
from fastrank.recipes.training import (
    FIRST_NORM,
    PAPER_MLP,
    SMALL_MLP,
    SMOKE_MLP,
    SOLUTION_RANK,
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    UNTRACKED,
    train_jobs,
)
from fastrank.train.data import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The three rows of Fig. 17, and what each adds to a label.
PLAIN, MATCHED, NORMED = "", ", matched by T", ", LayerNorm"
RANK = "penultimate rank"
BATCH = 1024


def _settings(train: Mapping[str, Any], inits: Sequence[str | float], norm: float) -> dict[str, dict[str, Any]]:
    """The three rows; `norm` is the first norm over T that the matched row has."""

    def row(suffix: str, fields: Mapping[str, Any], **kwargs: Any) -> dict[str, dict[str, Any]]:
        return {
            _label(init) + suffix: {
                "train": {**train, **fields, "model_kwargs": {**train.get("model_kwargs", {}), "init": init, **kwargs}}
            }
            for init in inits
        }  # fmt: skip

    matched = {"temperature_schedule": "norm-matched", "initial_norm": norm}
    return row(PLAIN, {}) | row(MATCHED, matched) | row(NORMED, {}, layer_norm=True)


def _label(init: str | float) -> str:
    return init if isinstance(init, str) else f"std {init:g}"


def run(jobs: Sequence[Job], device: torch.device) -> None:
    train_jobs(jobs, device, also=penultimate_rank)


@torch.no_grad()
def penultimate_rank(model: nn.Module, data: Data, T: float, job: Job) -> dict[str, Any]:
    """Rank of the classifier's inputs [n, width] over the training set, in evaluation mode."""
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    features = GramState(classifier.in_features, mode="exact", device=classifier.weight.device)

    def take(module: nn.Module, inputs: tuple) -> None:
        features.update(inputs[0].float())

    handle = classifier.register_forward_pre_hook(take)
    was_training = model.training
    model.eval()
    for images, _ in data.train.plain_batches(BATCH):
        model(images.to(classifier.weight.device))
    handle.remove()
    model.train(was_training)
    rank = matrix_rank(features.spectrum())
    return {
        "penultimate_rank": {"rank": int(rank), "lo": rank.lo, "hi": rank.hi, "tol": rank.tol,
                             "definition": rank.definition}
    }  # fmt: skip


def row_labels(study: Study, suffix: str) -> list[str]:
    others = [other for other in (MATCHED, NORMED) if other != suffix]
    return [label for label in study.labels if label.endswith(suffix) and not label.endswith(tuple(others))]


def ranks(study: Study, suffix: str) -> np.ndarray:
    """[inits, seeds]"""
    return np.stack([study.values(label, RANK) for label in row_labels(study, suffix)])


def slopes(study: Study, suffix: str) -> np.ndarray:
    """[seeds]: rank per decade of the first norm, over the initialisations of a row."""
    norms = np.log10(np.stack([study.values(label, FIRST_NORM.name) for label in row_labels(study, suffix)]))
    centred = norms - norms.mean(0)
    return (centred * ranks(study, suffix)).sum(0) / (centred**2).sum(0)


def effects(study: Study) -> list[Effect]:
    plain, matched, normed = (row_labels(study, suffix) for suffix in (PLAIN, MATCHED, NORMED))
    norms = np.stack([study.values(label, FIRST_NORM.name) for label in plain])
    spread = {suffix: np.ptp(ranks(study, suffix), 0) for suffix in (PLAIN, MATCHED)}
    lowest = int(norms.mean(1).argmin())
    return [
        of_values(
            "rank per decade of the first norm", ">", slopes(study, PLAIN), spoiled=_spoiled(study, plain),
            method="slope per seed, t over seeds",
        ),
        of_values(
            "spread of ranks over initialisations, matched by T minus T = 1", "<", spread[MATCHED] - spread[PLAIN],
            spoiled=_spoiled(study, plain + matched), method="paired t over seeds",
        ),
        of_values(
            f"{plain[lowest]}: rank with LayerNorm minus without", ">",
            ranks(study, NORMED)[lowest] - ranks(study, PLAIN)[lowest],
            spoiled=_spoiled(study, [plain[lowest], normed[lowest]]), method="paired t over seeds",
        ),
        of_values(
            "rank per decade of the first norm, matched by T minus T = 1", "<",
            slopes(study, MATCHED) - slopes(study, PLAIN), spoiled=_spoiled(study, plain + matched),
            method="slope per seed, paired t over seeds", counts=False,
        ),
    ]  # fmt: skip


def _spoiled(study: Study, labels: Sequence[str]) -> str:
    return "; ".join(filter(None, map(study.untrained, labels)))


def notes(study: Study) -> list[str]:
    noise = float(np.mean([ranks(study, suffix).std(1, ddof=1).mean() for suffix in (PLAIN, MATCHED)]))
    return [
        f"The rank of one initialisation deviates by {noise:.1f} over seeds, and the spread over initialisations of "
        "one seed, the range of few numbers, holds much of that. The slope over the first norm has less of it; it does "
        "not count, as the rule was made for the spread."
    ]


def draw(study: Study) -> Figure:
    """Three panels as the rows of Fig. 17: rank after training against the first logits' norm, a dot a seed."""
    figure, axes = panels(1, 3, (3.6, 3.0), sharex=True, sharey=True)
    titles = ("T = 1", "norms matched by T", "LayerNorm")
    for place, suffix, title in zip(axes[0], (PLAIN, MATCHED, NORMED), titles, strict=True):
        labels = row_labels(study, suffix)
        for label, colour in zip(labels, colours(len(labels)), strict=True):
            values = [study.values(label, name) for name in (FIRST_NORM.name, RANK)]
            trained = "o" if not study.untrained(label) else "x"
            place.plot(*values, trained, color=colour, label=label.removesuffix(suffix))
        place.set(xscale="log", xlabel="first norm of a sample's logits", title=title)
        log_ticks(place.xaxis)
    axes[0, 0].set_ylabel(RANK)
    axes[0, 0].legend(fontsize=7, title="x: did not train", title_fontsize=7)
    return figure


RECIPE = Recipe(
    name="init-norm",
    claim="The scale of the initial weights sets the first logits' norm and with it the final rank; matching the norms "
    "by T matches the ranks; LayerNorm prevents the collapse.",
    source="Masarczyk et al. 2025, appendix E, Fig. 17",
    rule="At T = 1 the penultimate rank rises with the first norm; over initialisations it spreads less where T "
    "matches the norms; at the smallest first norm it is higher with LayerNorm than without.",
    revised="Three seeds had left the second effect open, at -13 [-54, 27]; six were then fixed, and run.",
    scales={
        "smoke": Scale(_settings({**SMOKE_MLP, **UNTRACKED}, ("kaiming", 0.1), 1.0), 2, "seconds"),
        "quick": Scale(
            _settings({**SMALL_MLP, **UNTRACKED}, ("kaiming", "default", 0.065, 0.08), 0.1), 6, "about 10 minutes"
        ),
        "full": Scale(
            _settings({**PAPER_MLP, **UNTRACKED}, ("kaiming", "default", 0.01, 0.02, 0.03), 0.1), 3,
            "45 trainings of the MLP on CIFAR-10, 100 epochs each",
        ),
    },
    columns=(TRAIN_ACCURACY, TEST_ACCURACY, FIRST_NORM, rank_column(RANK, "penultimate_rank"), SOLUTION_RANK),
    run=run,
    effects=effects,
    draw=draw,
    notes=notes,
)  # fmt: skip
