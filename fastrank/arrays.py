"""Data from outside as tensors, and activations as views that a Gram kernel reads in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

from fastrank.errors import InputError

#: Patches formed at a time, at most (a single row of output positions may need more).
PATCH_BYTES = 32 << 20


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


def patch_views(x: Tensor, d: int, kernel_size, stride, padding, dilation, groups: int) -> Iterator[Tensor]:
    """The patches of x [B, C, H, W] as channel views [B * groups, d, positions], a bounded piece at a time.

    Raises:
        InputError: sizes that are no convolution of x, or that do not give d features.
    """
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (
        _sizes(name, value, least)
        for name, value, least in (
            ("kernel_size", kernel_size, 1),
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        )
    )
    _, C, H, W = x.shape
    if not isinstance(groups, int) or groups < 1 or C % groups:
        raise InputError("groups", f"a positive divisor of the {C} channels", repr(groups))
    if C // groups * kh * kw != d:
        raise InputError("x", f"C / groups * kh * kw = d = {d}", f"{C} / {groups} * {kh} * {kw}")
    reach_h, reach_w = dh * (kh - 1) + 1, dw * (kw - 1) + 1
    if H + 2 * ph < reach_h or W + 2 * pw < reach_w:
        raise InputError(
            "kernel_size", f"patches within the padded input {H + 2 * ph} x {W + 2 * pw}", f"{reach_h} x {reach_w}"
        )
    out_h, out_w = (H + 2 * ph - reach_h) // sh + 1, (W + 2 * pw - reach_w) // sw + 1
    x = x.unflatten(1, (groups, C // groups))
    if (kh, kw) == (1, 1) and (ph, pw) == (0, 0):
        for group in x[..., ::sh, ::sw].unbind(1):
            yield from channel_views(group)
        return
    row_bytes = C * kh * kw * out_w * x.element_size()  # of one row of output positions of one image
    rows = max(1, min(out_h, PATCH_BYTES // row_bytes))
    images = max(1, PATCH_BYTES // (row_bytes * rows))
    for part in x.split(images):
        for first in range(0, out_h, rows):
            last = min(out_h, first + rows)
            top, bottom = first * sh - ph, (last - 1) * sh + reach_h - ph  # input rows, some of them padding
            low, high = min(max(top, 0), H), min(max(bottom, 0), H)
            above = min(max(-top, 0), bottom - top)
            inside = part[:, :, :, low:high].flatten(0, 1)
            padded = F.pad(inside, (pw, pw, above, bottom - top - above - (high - low)))
            yield F.unfold(padded, (kh, kw), (dh, dw), 0, (sh, sw))


def _sizes(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = _pair(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise InputError(name, f"an integer >= {least} or a pair of them", repr(value))
    return pair
