"""What the Triton kernels of both losses share: from a program to its rows, and from a call's tensors to arguments."""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from fastrank.kernels.tempered_loss.layout import as_ncd
from torch import Tensor


@triton.jit
def number(value, ACC: tl.constexpr):
    """A number of the host's; for float64 its bits, as Triton passes every float as float32."""
    if tl.float64 == ACC:
        value = tl.cast(tl.cast(value, tl.int64), tl.float64, bitcast=True)
    return value


@triton.jit
def rows_of(first, R, D, stride_n, stride_d, ALIGN: tl.constexpr, ROWS: tl.constexpr, NESTED: tl.constexpr):
    """(row, n, offset of the row's first logit, whether the row exists) of ROWS rows from `first` on."""
    r = first + tl.arange(0, ROWS).to(tl.int64)
    n, offset = place(r, D, stride_n, stride_d, ALIGN, NESTED)
    return r, n, offset, r < R


@triton.jit
def place(r, D, stride_n, stride_d, ALIGN: tl.constexpr, NESTED: tl.constexpr):
    if NESTED:
        n = r // D
        offset = n * stride_n + (r - n * D) * stride_d
    else:
        n = r
        offset = r * stride_n * ALIGN
    return n, offset


@triton.jit
def temperature_of(temperature_ptr, T, n, stride, row_ok, HAS_T: tl.constexpr, ACC: tl.constexpr):
    if HAS_T:
        T = tl.load(temperature_ptr + n * stride, mask=row_ok, other=1.0).to(ACC)
        return tl.where((T > 0) & (T < float("inf")), T, float("nan"))  # noqa: SIM300
    return tl.full(n.shape, 1.0, ACC) * number(T, ACC)


def view_of(x: Tensor) -> Tensor:
    """x as [N, C, D], a copy where no strides express that."""
    view = as_ncd(x)
    return as_ncd(x.contiguous()) if view is None else view


def bits(x: float, acc: torch.dtype) -> float | int:
    """x as `number` reads it."""
    return struct.unpack("<q", struct.pack("<d", x))[0] if acc == torch.float64 else x


def alignment(*views: Tensor) -> int:
    """Largest power of two up to 16 that divides class count and row strides: given to the compiler as a constant
    factor, it turns a row's loads into 128-bit ones although neither number is a multiple of 16."""
    if views[0].shape[2] != 1:
        return 1
    align = 16
    while any(size % align for view in views for size in (view.shape[1], view.stride(0))):
        align //= 2
    return align
