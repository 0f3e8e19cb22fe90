"""Memory for large results on the CPU."""

from __future__ import annotations

import math

import torch
from fastrank.kernels import backend
from torch import Tensor

_DLPACK_CODES = {torch.float64: (2, 64), torch.float32: (2, 32), torch.bfloat16: (4, 16), torch.float16: (2, 16)}
#: Bytes below which torch's own allocator has memory at hand that was used before, without page faults.
_LARGE = 1 << 20


def empty_like(x: Tensor) -> Tensor:
    """`torch.empty_like(x)`; where that would be fresh memory, in memory that an earlier such tensor left (pages.h)."""
    plain = type(x) is Tensor and x.is_contiguous()  # a tracer's tensor is a subclass
    return empty(x.shape, x) if plain and x.nbytes >= _LARGE else torch.empty_like(x)


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(shape, dtype=dtype)`, as `empty_like`."""
    dtype = dtype or like.dtype
    plain = type(like) is Tensor and like.device.type == "cpu" and not torch.compiler.is_compiling()
    if not plain or math.prod(shape) * dtype.itemsize < _LARGE or (core := backend.core()) is None:
        return like.new_empty(shape, dtype=dtype)
    return torch.from_dlpack(core.empty(shape, *_DLPACK_CODES[dtype]))


def drop_idle() -> None:
    """Gives the system what is kept for the next result, after work that was larger than any to come."""
    if (core := backend.core()) is not None:
        core.drop_idle()
