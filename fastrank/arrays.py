"""Data from outside as tensors, and activations as views that a Gram kernel reads in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastrank.errors import InputError


def as_tensor(name: str, x: Any) -> Tensor:
    """A tensor that shares x's memory: torch as it is, NumPy and CuPy through DLPack.

    What DLPack cannot export (read-only or byte-swapped arrays, negative strides) is copied.

    Raises:
        InputError: x is not an array of numbers.
    """
    if isinstance(x, Tensor):
        return x
    if not hasattr(x, "__dlpack__"):
        raise InputError(name, "a torch, NumPy or CuPy array", type(x).__name__)
    try:
        return torch.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError):
        pass
    try:
        return torch.from_dlpack(x.astype(x.dtype.newbyteorder("="), order="C", copy=True))
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(name, "an array of numbers", f"{type(x).__name__} ({error})") from error


def as_matrix(name: str, A: Any) -> Tensor:
    """A detached matrix [n, d] of real floating-point numbers, sharing A's memory where that is possible.

    Raises:
        InputError: A is not an array, not a dense matrix, or not float64, float32, bfloat16 or float16.
    """
    A = as_tensor(name, A).detach()
    if A.ndim != 2 or A.layout != torch.strided or A.device.type == "meta":
        what = "a sparse tensor" if A.layout != torch.strided else f"shape {tuple(A.shape)} on {A.device.type}"
        raise InputError(name, "a dense matrix [n, d]", what)
    if A.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise InputError(name, "float64, float32, bfloat16 or float16", str(A.dtype).removeprefix("torch."))
    return A


def as_matrices(A: Any) -> list[Tensor]:
    """`as_matrix` of each member of a list, named by its place in it, or of A itself."""
    if isinstance(A, list | tuple):
        return [as_matrix(f"A[{index}]", member) for index, member in enumerate(A)]
    return [as_matrix("A", A)]


def channel_views(x: Tensor) -> Iterator[Tensor]:
    """x [B, C, *spatial] as channel views [B, C, S], none of them a copy.

    One view where the spatial dimensions have a common stride (contiguous, channels_last, batch or channel slices);
    else one per index of the first spatial dimension, and so on.
    """
    spatial = x.shape[2:]
    if x.ndim == 3:
        yield x
        return
    try:
        yield x.view(x.shape[0], x.shape[1], spatial.numel())
    except RuntimeError:
        for part in x.unbind(2):
            yield from channel_views(part)
