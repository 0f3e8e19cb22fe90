"""Gram matrices in float64 from data of any floating dtype, read in place with any strides.

Two ops, both with the modes

* ``exact``: products and sums in float64. A product of two float32 or 16-bit numbers is exact there.
* ``fast``: the (shifted) data is rounded to float32; float32 products and sums inside blocks of `FAST_BLOCK` rows,
  float64 across blocks. Squares must stay in float32's range: |x - shift| below about 1e19. float64 data is always
  exact.

TF32 is never used, 16-bit data is never squared in 16 bits, and results do not depend on the number of threads.
NaN and Inf go where arithmetic takes them: the rows and columns of the features (or samples) that hold them.
`bound.depth` says how large the rounding error can be.
"""

from __future__ import annotations

import torch
from fastrank.kernels.gram import register  # noqa: F401  (defines torch.ops.fastrank.gram_*)
from fastrank.kernels.gram.bound import Depth, depth
from fastrank.kernels.gram.config import FAST_BLOCK, MODES
from fastrank.kernels.gram.validate import check_accumulate, check_dual
from torch import Tensor

__all__ = ["FAST_BLOCK", "MODES", "Depth", "depth", "gram_accumulate_", "gram_dual"]


def gram_accumulate_(
    G: Tensor, total: Tensor, X: Tensor, shift: Tensor | None = None, mode: str = "exact", impl: str | None = None
) -> None:
    """In place: `lower(G) += (X - shift)^T (X - shift)` and `total += sum of the rows of X - shift`.

    Args:
        G: [d, d] float64, contiguous rows; only the lower triangle is read or written.
        total: [d] float64, contiguous.
        X: [n, d], or a channel view [B, d, S] whose n = B * S rows are the (b, s) pairs; float64, float32, bfloat16
            or float16; any strides; may be empty. Not differentiated.
        shift: [d] float64, or None for zeros.
        mode: "exact" or "fast".
        impl: "reference" or "native" to override the choice by device.

    Raises:
        TypeError: a dtype other than those above.
        ValueError: a shape, stride, device, mode or impl that does not fit.
        RuntimeError: an impl that cannot run here; a failed kernel launch.
    """
    check_accumulate(G, total, X, shift, mode)
    torch.ops.fastrank.gram_accumulate_(G, total, X.detach(), shift, mode, impl)


def gram_dual(X: Tensor, mode: str = "exact", impl: str | None = None) -> Tensor:
    """`X X^T` [n, n] float64, symmetric to the bit: the smaller side of X [n, d] for n < d.

    Arguments and errors as in `gram_accumulate_`; X is a matrix.
    """
    check_dual(X, mode)
    return torch.ops.fastrank.gram_dual(X.detach(), mode, impl)
