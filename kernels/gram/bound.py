"""How far a computed Gram matrix can be from the exact one: an a-priori bound, counted in roundings.

Write Y = X - shift in exact arithmetic, u = 2^-53 and v = 2^-24. On its way into G_ij the product y_ki y_kj is
multiplied by at most `fp64` factors (1 + e), |e| <= u, and `fp32` factors (1 + e), |e| <= v: those of the subtraction
(2, one per factor), of the product (1) and of the additions. With gamma_k(w) = k w / (1 - k w) (Higham, Accuracy and
Stability of Numerical Algorithms, Lemma 3.1) and c = (1 + gamma_fp32(v)) (1 + gamma_fp64(u)) - 1,

    |G - Y^T Y| <= c |Y|^T |Y|  element by element, hence  ||G - Y^T Y||_2 <= c ||Y||_F^2 = c trace(Y^T Y).

Products that underflow add at most `tiny` each, hence at most `tiny * n * d` to the 2-norm.

Where the op may round the numbers themselves ("rounded" in `fastrank.kernels.gram`), Y is what they were rounded to,
whose products are exact: what rounding changed is an error of the matrix, which the op adds up beside G. The sum of the
integer products of a block, below 2^56, rounds once on its way to float64.

How long the additions are follows from how the kernel cuts the work, not from n: a float64 sum of n terms in chunks of
256 has a depth of about 256 + n / 256. An accumulated G needs two numbers: the roundings `before` a product reaches G
(the largest over the updates counts), and the additions `adds` to G itself (those of all updates count).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from fastrank.kernels import backend
from fastrank.kernels.gram.config import FAST_BLOCK, REFERENCE_ROWS
from fastrank.kernels.gram.convolution import Convolution

_U, _V = 2.0**-53, 2.0**-24


@dataclass(frozen=True)
class Depth:
    """Roundings of one product: `fp32` and `before` (fp64) until it reaches G, then `adds` fp64 additions to G."""

    fp32: int = 0
    before: int = 0
    adds: int = 0

    def then(self, later: Depth) -> Depth:
        """Of a G that took in one update after another."""
        return Depth(max(self.fp32, later.fp32), max(self.before, later.before), self.adds + later.adds)

    def merged(self, other: Depth, extra: int) -> Depth:
        """Of the sum of two G's, each with `extra` roundings of its own first."""
        return Depth(max(self.fp32, other.fp32), max(self.before, other.before), max(self.adds, other.adds) + extra + 1)

    def factor(self, extra: int = 0) -> float:
        """The c above; `extra` counts float64 roundings made on G afterwards."""
        return (1 + _gamma(self.fp32, _V)) * (1 + _gamma(self.before + self.adds + extra, _U)) - 1

    @property
    def tiny(self) -> float:
        """Largest error of a product that underflows, flush-to-zero included."""
        return torch.finfo(torch.float32 if self.fp32 else torch.float64).tiny


def depth(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    mode: str,
    device: str = "cpu",
    impl: str | None = None,
    rounded: bool = False,
) -> Depth:
    """The Depth of one `gram_accumulate_` of X [rows, columns]; of `gram_dual(X [n, d])` with rows = d, columns = n.

    Args:
        dtype: that of X. mode: "exact" or "fast". device: its type, "cpu" or "cuda". impl: as passed to the op.
        rounded: whether the op was given `rounded`; what rounding the data changed is not counted here, but there.
    """
    if rows == 0:
        return Depth()
    if not _native(device, impl):
        return _of_reference(rows)
    core, fast = backend.core(), _fast(dtype, mode)
    if device == "cpu":
        cut = core.gram_depth_cpu(rows, columns, fast, rounded)
        return Depth(0, *cut) if fast and rounded and core.gram_digits else _of_kernel(rows, fast, cut)
    found = _of_kernel(rows, fast, core.gram_depth_cuda(rows, columns, fast))
    if not fast or dtype == torch.float32:
        return found
    return Depth(max(found.fp32, tensor_core_roundings(min(rows, FAST_BLOCK))), found.before, found.adds)


def depth_patches(
    shape: tuple[int, ...],
    convolution: Convolution,
    dtype: torch.dtype,
    mode: str,
    device: str = "cpu",
    impl: str | None = None,
) -> Depth:
    """The Depth of one `gram_patches_` of x of that shape; arguments as of `depth`."""
    if (rows := convolution.rows(shape)) == 0:
        return Depth()
    if not _native(device, impl):
        return _of_reference(rows)
    kernel, stride, padding, dilation, groups = convolution
    fast, core = _fast(dtype, mode), backend.core()
    sizes = tuple(shape), groups, kernel, stride, padding, dilation, fast
    if device != "cuda":
        return _of_kernel(rows, fast, core.gram_depth_patches_cpu(*sizes))
    before, adds = core.gram_depth_patches_cuda(*sizes)
    # Fast: the shift is subtracted in two fp32 parts (csrc/gram/patch_tile.cuh), 4 roundings of a factor.
    return Depth(min(rows, FAST_BLOCK) + 9, before, adds) if fast else Depth(0, before + 3, adds)


def _native(device: str, impl: str | None) -> bool:
    core = backend.core()
    return core is not None and impl != "reference" and (device == "cpu" or (device == "cuda" and core.cuda))


def _fast(dtype: torch.dtype, mode: str) -> bool:
    return mode == "fast" and dtype != torch.float64


def _of_reference(rows: int) -> Depth:
    # Blocks of whole images can be as small as half of REFERENCE_ROWS.
    return Depth(0, min(rows, REFERENCE_ROWS) + 3, math.ceil(2 * rows / REFERENCE_ROWS))


def _of_kernel(rows: int, fast: bool, cut: tuple[int, int]) -> Depth:
    before, adds = cut
    # Fast: the subtraction rounds in fp64 (2) and then to fp32 (2), the product in fp32 (1). Exact: 2 and 1 in fp64.
    return Depth(min(rows, FAST_BLOCK) + 3, before + 2, adds) if fast else Depth(0, before + 3, adds)


def tensor_core_roundings(rows: int) -> int:
    """What stands for the fp32 roundings of a sum of `rows` products of 16-bit numbers on tensor cores.

    The products are exact, but they are not added one by one: the sum so far and w products are aligned to the largest
    of them, what falls off is cut, and so is the result (Fasi, Higham, Mikaitis, Pranesh, Numerical behavior of NVIDIA
    tensor cores, PeerJ Computer Science 7:e330, 2021: w = 4 on V100, 8 on A100, no or few extra bits, towards zero).
    Each of the w + 1 addends and the result thus errs by at most 2^-23, twice v, of the sum of the addends' sizes: 2 (w
    + 2) v for w rows. That grows with smaller w; w = 4 covers them all. Later chips are assumed to be no worse.
    """
    return 2 * (4 + 2) * math.ceil(rows / 4)


def _gamma(k: int, w: float) -> float:
    return k * w / (1 - k * w) if k * w < 1 else math.inf
