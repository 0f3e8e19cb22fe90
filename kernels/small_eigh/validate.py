"""What the symmetric eigenproblems accept; every message names the argument, what was expected and what came."""

from __future__ import annotations

import torch
from fastrank.kernels.small_eigh.config import MOST_VECTORS
from torch import Tensor


def check_matrices(G: list[Tensor], vectors: bool = False) -> None:
    if not isinstance(G, (list, tuple)):
        raise TypeError(f"G: expected a list of tensors, got {type(G).__name__}")
    for index, g in enumerate(G):
        if not isinstance(g, Tensor):
            raise TypeError(f"G: expected a list of tensors, got {type(g).__name__} at {index}")
        if g.layout != torch.strided or g.dtype != torch.float64:
            got = g.dtype if g.layout == torch.strided else g.layout
            raise TypeError(f"G: expected dense float64 matrices, got {got} at {index}")
        if g.ndim != 2 or g.shape[0] != g.shape[1]:
            raise ValueError(f"G: expected square matrices, got shape {tuple(g.shape)} at {index}")
        if g.device != G[0].device:
            raise ValueError(f"G: expected tensors on one device, {G[0].device}, got {g.device} at {index}")
        if vectors and len(g) > MOST_VECTORS:
            raise ValueError(f"G: expected at most {MOST_VECTORS} rows, got {len(g)} at {index}")


def check_shift(shift: Tensor, G: list[Tensor]) -> None:
    if not isinstance(shift, Tensor):
        raise TypeError(f"shift: expected a torch tensor, got {type(shift).__name__}")
    if shift.dtype != torch.float64:
        raise TypeError(f"shift: expected float64, got {shift.dtype}")
    if tuple(shift.shape) != (len(G),):
        raise ValueError(f"shift: expected shape ({len(G)},), one for each matrix, got {tuple(shift.shape)}")
    if G and shift.device != G[0].device:
        raise ValueError(f"shift: expected it on G's device, {G[0].device}, got {shift.device}")
