"""How the kernels see their tensors: logits as [N, C, D], one row per (n, d)."""

from __future__ import annotations

import math

import torch
from fastrank.kernels import buffers
from torch import Tensor

#: The plane of what a forward pass leaves per row that holds sum_j (d loss / d x_j) x_j.
SLOPE = 3


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype a loss over logits of `dtype` is computed and returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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


def outputs(logits: Tensor, planes: int, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows [planes, N * D], denominator, grad) for a forward pass to fill, uninitialised.

    `grad` is empty unless `with_grad`, and where the kernels could not write it in place.
    """
    acc = accumulator(logits.dtype)
    loss = logits.new_empty(sample_shape(logits) if reduction == "none" else (), dtype=acc)
    rows = logits.new_empty((planes, logits.numel() // logits.shape[min(1, logits.dim() - 1)]), dtype=acc)
    denominator = logits.new_empty((), dtype=acc)
    if with_grad:
        grad = buffers.empty_like(logits)
        if geometry(grad) is not None:
            return loss, rows, denominator, grad
    return loss, rows, denominator, logits.new_empty(0)
