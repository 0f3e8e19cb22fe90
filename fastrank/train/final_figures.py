"""The figures of a trained network over whole splits, in evaluation mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastrank import GramState, matrix_rank
from fastrank.train.data import Data
from fastrank.train.splits import Split

#: [U] A.5 takes every sample for the solution rank, and 100,000 of ImageNet-1k.
SAMPLES = 100_000
BATCH = 512


def evaluate_run(model: nn.Module, data: Data, T: float, device: torch.device, workers: int = 0) -> dict[str, Any]:
    """Accuracies, solution rank (the numerical rank of the training set's logits [n, C]) with its interval, and norms.

    The logits pass through once and are not kept: their Gram matrix in float64 carries rank and norm.
    """
    logits = GramState(data.classes, mode="exact", device=device)
    train_accuracy = _accuracy(model, data.train, device, workers, logits)
    test_accuracy = _accuracy(model, data.test, device, workers, None)
    spectrum = logits.spectrum()
    rank = matrix_rank(spectrum)
    norm = float(spectrum.sigma.double().norm())
    return {
        "train_accuracy": train_accuracy,
        "test_accuracy": test_accuracy,
        "solution_rank": {
            "rank": int(rank),
            "lo": rank.lo,
            "hi": rank.hi,
            "tol": rank.tol,
            "definition": rank.definition,
            "samples": logits.n,
        },
        "logits_norm": norm,
        "logits_norm_over_T": norm / T,
        "logits_sigma": spectrum.sigma.tolist(),
    }


@torch.no_grad()
def _accuracy(model: nn.Module, split: Split, device: torch.device, workers: int, logits: GramState | None) -> float:
    was_training = model.training
    model.eval()
    right, seen = torch.zeros((), dtype=torch.int64, device=device), 0
    for images, labels in split.plain_batches(BATCH, SAMPLES, workers):
        z = model(images.to(device, non_blocking=True))
        right += (z.argmax(1) == labels.to(device, non_blocking=True)).sum()
        seen += len(labels)
        if logits is not None:
            logits.update(z.float())
    model.train(was_training)
    return float(right) / seen
