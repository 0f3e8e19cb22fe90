"""What a forward pass leaves per row; how the kernels see their tensors is the tempered cross-entropy's layout."""

from __future__ import annotations

import math

import torch
from fastrank.kernels import buffers
from fastrank.kernels.tempered_ce.layout import geometry, sample_shape
from fastrank.kernels.tempered_ce.reference import accumulator
from torch import Tensor

#: Planes of `rows` [planes, N * D], in the order of SquaredErrorPlane in csrc/tempered_mse/tempered_mse.h, in the
#: symbols of reference.py: max z, S, D, sum_j (d loss / d x_j) x_j, p_a (q d_a - M), w.
STATE = ("maximum", "total", "mean", "slope", "top", "weight")


def outputs(logits: Tensor, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows, denominator, grad) for a forward pass to fill: uninitialised but for the denominator, which is 1.

    `grad` is empty unless `with_grad`, and where the kernels could not write it in place.
    """
    acc = accumulator(logits.dtype)
    samples = sample_shape(logits)
    loss = torch.empty(samples if reduction == "none" else (), dtype=acc, device=logits.device)
    rows = torch.empty((len(STATE), math.prod(samples)), dtype=acc, device=logits.device)
    denominator = torch.ones((), dtype=acc, device=logits.device)
    if with_grad:
        grad = buffers.empty_like(logits)
        if geometry(grad) is not None:
            return loss, rows, denominator, grad
    return loss, rows, denominator, logits.new_empty(0)
