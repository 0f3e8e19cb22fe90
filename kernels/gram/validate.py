"""What the Gram ops accept; every message names the argument, what was expected and what came."""

from __future__ import annotations

import torch
from fastrank.kernels.gram.config import MODES
from torch import Tensor

#: The numbers are those of DType in csrc/gram/gram.h.
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def check_accumulate(G: Tensor, total: Tensor, X: Tensor, shift: Tensor | None, mode: str) -> None:
    _check_data(X, mode)
    if X.ndim not in (2, 3):
        raise ValueError(f"X: expected [n, d] or [B, d, S], got shape {tuple(X.shape)}")
    d = X.shape[1]
    _check_float64("G", G, (d, d), X.device)
    if d > 1 and G.stride(1) != 1:
        raise ValueError(f"G: expected contiguous rows, got strides {G.stride()}")
    if d > 1 and G.stride(0) < d:
        raise ValueError(f"G: expected rows that do not overlap, got strides {G.stride()}")
    _check_float64("total", total, (d,), X.device)
    if not total.is_contiguous():
        raise ValueError(f"total: expected a contiguous vector, got stride {total.stride(0)}")
    if shift is not None:
        _check_float64("shift", shift, (d,), X.device)


def check_dual(X: Tensor, mode: str) -> None:
    _check_data(X, mode)
    if X.ndim != 2:
        raise ValueError(f"X: expected a matrix [n, d], got shape {tuple(X.shape)}")


def _check_data(X: Tensor, mode: str) -> None:
    if X.dtype not in DTYPES:
        raise TypeError(f"X: expected float64, float32, bfloat16 or float16, got {X.dtype}")
    if mode not in MODES:
        raise ValueError(f"mode: expected 'exact' or 'fast', got {mode!r}")


def _check_float64(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if x.dtype != torch.float64:
        raise TypeError(f"{name}: expected float64, got {x.dtype}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape} to fit X, got {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name}: expected it on X's device, {device}, got {x.device}")
