"""Gram matrices in float64 from data of any floating dtype, read in place with any strides.

The modes of all of them:

* ``exact``: products and sums in float64. A product of two float32 or 16-bit numbers is exact there.
* ``fast``: the (shifted) data is rounded to float32; float32 products and sums inside blocks of `FAST_BLOCK` rows,
  float64 across blocks. Squares must stay in float32's range: |x - shift| below about 1e19. float64 data is always
  exact.

Where ``fast`` is given `rounded`, it may round the data instead, and add to `rounded` the square of what that changed
in Frobenius norm, at most: on a processor with AMX's integer tiles (`digits()`) the numbers of a column are rounded, in
blocks of `DIGITS_BLOCK` rows, to 24 bits of the largest, and their products are exact. An error of the matrix itself
moves its singular values by as much at most (Weyl), where one of the Gram matrix moves their squares.

TF32 is never used, 16-bit data is never squared in 16 bits, and results do not depend on the number of threads.
NaN and Inf go where arithmetic takes them: the rows and columns of the features (or samples) that hold them.
`bound.depth` says how large the rounding error can be.
"""

from __future__ import annotations

import torch
from fastrank.kernels import backend
from fastrank.kernels.gram import register
from fastrank.kernels.gram.bound import Depth, depth, depth_patches
from fastrank.kernels.gram.config import DIGITS_BLOCK, FAST_BLOCK, MODES
from fastrank.kernels.gram.convolution import Convolution
from fastrank.kernels.gram.validate import (
    check_accumulate,
    check_dual,
    check_dual_many,
    check_patch_rows,
    check_patches,
    check_rounded,
)
from fastrank.kernels.tracing import unobserved
from torch import Tensor

__all__ = [
    "DIGITS_BLOCK",
    "FAST_BLOCK",
    "MODES",
    "Convolution",
    "Depth",
    "depth",
    "depth_patches",
    "digits",
    "gram_accumulate_",
    "gram_dual",
    "gram_dual_many",
    "gram_patches_",
    "patch_rows",
]


def gram_accumulate_(
    G: Tensor, total: Tensor, X: Tensor, shift: Tensor | None = None, mode: str = "exact", impl: str | None = None,
    rounded: Tensor | None = None,
) -> None:  # fmt: skip
    """In place: `lower(G) += (X - shift)^T (X - shift)` and `total += sum of the rows of X - shift`.

    Args:
        G: [d, d] float64, contiguous rows; only the lower triangle is read or written.
        total: [d] float64, contiguous.
        X: [n, d], or a channel view [B, d, S] whose n = B * S rows are the (b, s) pairs; float64, float32, bfloat16
            or float16; any strides; may be empty. Not differentiated.
        shift: [d] float64, or None for zeros.
        mode: "exact" or "fast".
        impl: "reference" or "native" to override the choice by device.
        rounded: [1] float64 that takes up what rounding X changed, see above; None: X is not rounded.

    Raises:
        TypeError: a dtype other than those above.
        ValueError: a shape, stride, device, mode or impl that does not fit.
        RuntimeError: an impl that cannot run here; a failed kernel launch.
    """
    check_accumulate(G, total, X, shift, mode)
    check_rounded(rounded, 1, X)
    arguments = (G, total, X, shift, mode, impl, rounded)
    if unobserved(arguments):
        register.accumulate_(*arguments)  # the dispatcher takes longer than a small product
    else:
        torch.ops.fastrank.gram_accumulate_(G, total, X.detach(), shift, mode, impl, rounded)


def gram_dual(X: Tensor, mode: str = "exact", impl: str | None = None) -> Tensor:
    """`X X^T` [n, n] float64, symmetric to the bit: the smaller side of X [n, d] for n < d.

    Arguments and errors as in `gram_accumulate_`; X is a matrix.
    """
    check_dual(X, mode)
    return torch.ops.fastrank.gram_dual(X.detach(), mode, impl)


def gram_patches_(
    G: Tensor,
    total: Tensor,
    x: Tensor,
    convolution: Convolution,
    shift: Tensor | None = None,
    mode: str = "exact",
    impl: str | None = None,
) -> None:
    """In place, with P the patches that `convolution` sees in x: `lower(G) += P^T P` and `total += sum of P's rows`.

    Features are in the order of `F.unfold`, that of a weight [out, C / groups, kh, kw] flattened; the rows of all
    groups are stacked. P is never formed. At stride 1 the products that patches share are computed once
    (csrc/gram/patches.h): a 3 x 3 kernel has 25 differences of taps instead of 81 pairs.

    Args:
        G: [d, d] float64, contiguous rows, d = C / groups * kh * kw; only the lower triangle is read or written.
        total: [d] float64, contiguous.
        x: [B, C, H, W] float64, float32, bfloat16 or float16; any strides; B or C may be 0. Not differentiated.
        convolution: `Convolution.of(kernel_size, stride, padding, dilation, groups)`.
        shift: [C / groups] float64, subtracted from a channel in all its taps (padding is 0 - shift), or None.
        mode, impl: as of `gram_accumulate_`.

    Raises:
        TypeError, ValueError: as `gram_accumulate_`; also for patches larger than the padded input, and channels that
            `groups` does not divide.
    """
    check_patches(G, total, x, convolution, shift, mode)
    kernel_size, stride, padding, dilation, groups = convolution
    torch.ops.fastrank.gram_patches_(
        G, total, x.detach(), kernel_size, stride, padding, dilation, groups, shift, mode, impl
    )


def patch_rows(x: Tensor, convolution: Convolution, rows: Tensor, impl: str | None = None) -> Tensor:
    """Chosen rows of the patch matrix of `gram_patches_`: [m, d] in x's dtype, a copy.

    Args:
        x, convolution, impl: as of `gram_patches_`.
        rows: [m] int64 on x's device, in 0 .. `convolution.rows(x.shape)` - 1 (checked on the CPU): row
            ((image * groups + group) * H + y) * W + x of the outputs [H, W].

    Raises:
        TypeError, ValueError: as `gram_patches_`.
    """
    check_patch_rows(x, convolution, rows)
    x = x.detach()
    run = register.patch_rows if unobserved((x, rows)) else torch.ops.fastrank.patch_rows
    return run(x, *convolution, rows, impl)


def gram_dual_many(
    X: list[Tensor], mode: str = "exact", impl: str | None = None, rounded: Tensor | None = None
) -> list[Tensor]:
    """`gram_dual` of each of many matrices of any shapes and dtypes, in one call: all layers of a network.

    On the CPU small ones are spread over the threads whole and large ones are shared among them, on a GPU each kernel
    that they need is launched once. Every result has the bits of a call of its own, and memory of its own.

    Args:
        X: a list of matrices [n, d], all on one device; any of them, and the list, may be empty. Not differentiated.
        mode, impl: as of `gram_accumulate_`.
        rounded: [number of matrices] float64, each number of which takes up what rounding its matrix changed (see
            above); None: nothing is rounded.

    Raises:
        TypeError, ValueError, RuntimeError: as `gram_dual`; what is said of a matrix names its place in the list.
    """
    check_dual_many(X, mode)
    check_rounded(rounded, len(X), *X[:1])
    if unobserved((*X, rounded)):
        return register.duals(X, mode, impl, rounded)
    found, each = torch.ops.fastrank.gram_dual_many([x.detach() for x in X], mode, impl, rounded is not None)
    if rounded is not None:
        rounded += each
    return found


def digits(device: torch.device | None = None) -> bool:
    """Whether mode "fast" rounds where it may (see above)."""
    core = backend.core()
    return core is not None and core.gram_digits and (device is None or device.type == "cpu")
