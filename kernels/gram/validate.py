"""What the Gram ops accept; every message names the argument, what was expected and what came."""

from __future__ import annotations

from functools import lru_cache

import torch
from fastrank.kernels.gram.config import MODES
from fastrank.kernels.gram.convolution import Convolution
from torch import Tensor

#: The numbers are those of DType in csrc/gram/gram.h.
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def check_accumulate(G: Tensor, total: Tensor, X: Tensor, shift: Tensor | None, mode: str) -> None:
    if _usual(G, total, X, shift, mode):
        return
    _check_data(X, mode)
    if X.ndim not in (2, 3):
        raise ValueError(f"X: expected [n, d] or [B, d, S], got shape {tuple(X.shape)}")
    _check_state(G, total, X, X.shape[1])
    if shift is not None:
        _check_float64("shift", shift, (X.shape[1],), X.device)


def _usual(G: Tensor, total: Tensor, X: Tensor, shift: Tensor | None, mode: str) -> bool:
    """Whether this is the call of most steps, known to be right; the questions one by one take as long as a small
    product."""
    if not all(isinstance(x, Tensor) for x in (X, G, total)):
        return False
    if not (X.dtype in DTYPES and X.ndim == 2 and X.layout is torch.strided and mode in MODES):
        return False
    d, device = X.shape[1], X.device
    fits = (
        G.dtype is torch.float64
        and total.dtype is torch.float64
        and G.shape == (d, d)
        and total.shape == (d,)
        and G.is_contiguous()
        and total.is_contiguous()
        and G.device == device
        and total.device == device
        and not G.requires_grad
        and not total.requires_grad
    )
    return fits and (shift is None or (shift.dtype is torch.float64 and shift.shape == (d,) and shift.device == device))


def check_patches(
    G: Tensor, total: Tensor, x: Tensor, convolution: Convolution, shift: Tensor | None, mode: str
) -> None:
    _check_data(x, mode, "x")
    _check_convolution(x, convolution)
    _check_state(G, total, x, convolution.features(x.shape[1]), "x")
    if shift is not None:
        _check_float64("shift", shift, (x.shape[1] // convolution.groups,), x.device, "x")


def check_patch_rows(x: Tensor, convolution: Convolution, rows: Tensor) -> None:
    _check_data(x, "exact", "x")
    _check_convolution(x, convolution)
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.ndim != 1 or rows.device != x.device:
        got = f"{rows.dtype} {tuple(rows.shape)} on {rows.device}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"rows: expected int64 [m] on {x.device}, got {got}")


def check_row_range(rows: Tensor, count: int) -> None:
    """What the native kernel says itself."""
    if rows.device.type == "cpu" and rows.numel():
        least, most = map(int, torch.aminmax(rows))
        if not 0 <= least <= most < count:
            expected = f"0 .. {count - 1}" if count else "none, of an empty x"
            raise ValueError(f"rows: expected {expected}, got {least} .. {most}")


@lru_cache(maxsize=256)
def _sound(convolution: Convolution) -> None:
    Convolution.of(*convolution)


def _check_convolution(x: Tensor, convolution: Convolution) -> None:
    if not isinstance(convolution, Convolution):
        raise TypeError(f"convolution: expected a Convolution, as Convolution.of(3), got {type(convolution).__name__}")
    try:
        _sound(convolution)
    except TypeError:  # pairs as lists
        Convolution.of(*convolution)
    if x.ndim != 4:
        raise ValueError(f"x: expected [images, channels, height, width], got shape {tuple(x.shape)}")
    channels, height, width = x.shape[1:]
    if channels % convolution.groups:
        raise ValueError(f"groups: expected a positive divisor of the {channels} channels, got {convolution.groups}")
    if min(height, width) < 1:
        raise ValueError(f"x: expected images of at least 1 x 1, got {height} x {width}")
    if min(convolution.outputs(height, width)) < 1:
        reach = [d * (k - 1) + 1 for k, d in zip(convolution.kernel_size, convolution.dilation, strict=True)]
        padded = [size + 2 * pad for size, pad in zip((height, width), convolution.padding, strict=True)]
        raise ValueError(
            f"kernel_size: expected patches within the padded input {padded[0]} x {padded[1]}, "
            f"got {reach[0]} x {reach[1]}"
        )


def check_rounded(rounded: Tensor | None, count: int, X: Tensor | None = None) -> None:
    """`rounded` of `count` problems; X: one of them."""
    if rounded is None:
        return
    _check_float64("rounded", rounded, (count,), rounded.device if X is None else X.device)
    if not rounded.is_contiguous():
        raise ValueError(f"rounded: expected a contiguous vector, got stride {rounded.stride(0)}")


def _check_state(G: Tensor, total: Tensor, X: Tensor, d: int, name: str = "X") -> None:
    _check_float64("G", G, (d, d), X.device, name)
    if d > 1 and G.stride(1) != 1:
        raise ValueError(f"G: expected contiguous rows, got strides {G.stride()}")
    if d > 1 and G.stride(0) < d:
        raise ValueError(f"G: expected rows that do not overlap, got strides {G.stride()}")
    _check_float64("total", total, (d,), X.device, name)
    if not total.is_contiguous():
        raise ValueError(f"total: expected a contiguous vector, got stride {total.stride(0)}")


def check_dual(X: Tensor, mode: str) -> None:
    _check_data(X, mode)
    if X.ndim != 2:
        raise ValueError(f"X: expected a matrix [n, d], got shape {tuple(X.shape)}")


def check_dual_many(X: list[Tensor], mode: str) -> None:
    if not isinstance(X, (list, tuple)):
        raise TypeError(f"X: expected a list of tensors, got {type(X).__name__}")
    if mode not in MODES:
        raise ValueError(f"mode: expected 'exact' or 'fast', got {mode!r}")
    for index, x in enumerate(X):
        try:
            check_dual(x, mode)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error} (at {index})") from None
        if x.device != X[0].device:
            raise ValueError(f"X: expected tensors on one device, {X[0].device}, got {x.device} at {index}")


def _check_data(X: Tensor, mode: str, name: str = "X") -> None:
    if not isinstance(X, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(X).__name__}")
    if X.layout != torch.strided or X.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got {'a nested one' if X.is_nested else X.layout}")
    if X.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float64, float32, bfloat16 or float16, got {X.dtype}")
    if mode not in MODES:
        raise ValueError(f"mode: expected 'exact' or 'fast', got {mode!r}")


def _check_float64(name: str, x: Tensor, shape: tuple[int, ...], device: torch.device, data: str = "X") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(x).__name__}")
    if x.requires_grad and name != "shift":
        raise ValueError(f"{name}: expected a tensor that is not differentiated, got one that requires grad")
    if x.dtype != torch.float64:
        raise TypeError(f"{name}: expected float64, got {x.dtype}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape} to fit {data}, got {tuple(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name}: expected it on {data}'s device, {device}, got {x.device}")
