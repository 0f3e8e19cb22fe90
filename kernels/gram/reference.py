"""The Gram ops in plain torch: the specification that every kernel is held to.

Both modes are computed in float64: `fast` allows a kernel to round as `bound.depth` says, it does not ask for it. And
a float32 product here would follow the user's TF32 and bfloat16 matmul settings, which a measurement must not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastrank.kernels.gram.config import REFERENCE_ROWS
from fastrank.kernels.gram.convolution import Convolution
from torch import Tensor


def gram_accumulate_(G: Tensor, total: Tensor, X: Tensor, shift: Tensor | None = None) -> None:
    for rows in _row_blocks(X):
        Y = rows.double()
        if shift is not None:
            Y = Y - shift
        G += (Y.T @ Y).tril()
        total += Y.sum(0)


def gram_patches_(G: Tensor, total: Tensor, x: Tensor, convolution: Convolution, shift: Tensor | None = None) -> None:
    kernel, stride, padding, dilation, groups = convolution
    if shift is not None:
        shift = shift.repeat_interleave(kernel[0] * kernel[1])
    of_image = max(1, convolution.rows((1, *x.shape[1:])))
    for images in x.split(max(1, REFERENCE_ROWS // of_image)):
        apart = images.unflatten(1, (groups, -1)).flatten(0, 1).double()
        if apart.numel():
            gram_accumulate_(G, total, F.unfold(apart, kernel, dilation, padding, stride), shift)


def patch_rows(x: Tensor, convolution: Convolution, rows: Tensor) -> Tensor:
    kernel, stride, padding, dilation, groups = convolution
    (pad_y, pad_x), (height, width) = padding, convolution.outputs(*x.shape[2:])
    windows = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
    for axis in (0, 1):
        windows = windows.unfold(2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])
    windows = windows[..., :: dilation[0], :: dilation[1]].unflatten(1, (groups, -1))  # [B, g, C, H, W, kh, kw]
    ox, oy, slot = rows % width, rows // width % height, rows // width // height
    return windows[slot // groups, slot % groups, :, oy, ox].flatten(1)


def gram_dual(X: Tensor) -> Tensor:
    K = torch.zeros(len(X), len(X), dtype=torch.float64, device=X.device)
    for columns in X.split(REFERENCE_ROWS, dim=1):
        Y = columns.double()
        K += (Y @ Y.T).tril()
    return K + K.tril(-1).T


def _row_blocks(X: Tensor):
    """The rows of X [n, d] or [B, d, S] as matrices [at most REFERENCE_ROWS, d]."""
    if X.ndim == 2:
        yield from X.split(REFERENCE_ROWS)
        return
    for images in X.split(max(1, REFERENCE_ROWS // max(1, X.shape[2]))):
        yield from images.transpose(1, 2).reshape(-1, X.shape[1]).split(REFERENCE_ROWS)
