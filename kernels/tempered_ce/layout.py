"""How the kernels see their tensors: logits as [N, C, D], one row per (n, d); what a forward pass leaves per row."""

from __future__ import annotations

import math

import torch
from fastrank.kernels import buffers
from fastrank.kernels.tempered_ce.reference import RowStats, accumulator
from torch import Tensor

#: Planes of `rows` [planes, N * D], in the order of RowPlane in csrc/tempered_ce/tempered_ce.h: the row's maximum,
#: sum_j e_j with e_j = exp((z_j - max) / T), the same without the target, sum_j (d loss / d x_j) x_j. `RowStats`
#: follow where they are asked for.
STATE = ("maximum", "total", "others", "slope")
SLOPE = STATE.index("slope")


def as_ncd(x: Tensor) -> Tensor | None:
    """`x` ([C], [N, C] or [N, C, d1, ...]) as [N, C, D] without a copy, or None where no strides express that."""
    if x.dim() == 1:
        return x[None, :, None]
    if x.dim() == 2:
        return x[:, :, None]
    if x.dim() == 3:
        return x
    try:
        return x.view(*x.shape[:2], math.prod(x.shape[2:]))
    except RuntimeError:
        return None


Geometry = tuple[tuple[int, int, int], tuple[int, int, int]]


def geometry(x: Tensor) -> Geometry | None:
    """Sizes and strides of `x` as [N, C, D] (see `as_ncd`): the same without the microseconds that a view costs."""
    dim = x.dim()
    if dim == 2:
        (n, c), (stride_n, stride_c) = x.shape, x.stride()
        return (n, c, 1), (stride_n, stride_c, 0)
    if dim == 1:
        return (1, x.shape[0], 1), (0, x.stride(0), 0)
    view = as_ncd(x)
    return None if view is None else (tuple(view.shape), view.stride())


def sample_shape(logits: Tensor) -> torch.Size:
    """Shape of the unreduced loss: [], [N] or [N, d1, ...]."""
    return logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else torch.Size(())


def outputs(logits: Tensor, reduction: str, stats: bool, with_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows, denominator, grad) for a forward pass to fill, uninitialised.

    `grad` is empty unless `with_grad`, and where the kernels could not write it in place.
    """
    acc = accumulator(logits.dtype)
    planes = len(STATE) + (len(RowStats._fields) if stats else 0)
    loss = logits.new_empty(sample_shape(logits) if reduction == "none" else (), dtype=acc)
    rows = logits.new_empty((planes, logits.numel() // logits.shape[min(1, logits.dim() - 1)]), dtype=acc)
    denominator = logits.new_empty((), dtype=acc)
    if with_grad:
        grad = buffers.empty_like(logits)
        if geometry(grad) is not None:
            return loss, rows, denominator, grad
    return loss, rows, denominator, logits.new_empty(0)


def stats_of(rows: Tensor, shape: torch.Size) -> RowStats:
    """The statistics among `rows`, each in the target's `shape`."""
    planes = rows.unbind()[len(STATE) :]
    if len(shape) != 1:  # a view costs as much as a small batch's kernel
        planes = [plane.view(shape) for plane in planes]
    *figures, rank = planes
    return RowStats(*figures, target_rank=rank.long())
