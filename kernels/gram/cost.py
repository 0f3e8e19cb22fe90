"""Launches of the Gram ops on CUDA, counted from the cut of csrc/gram/problem.cuh (which a test holds this file to).

One block of `gram_tiles` owns one tile of the lower triangle and one split of the rows. A panel of as many columns of X
belongs to `tile_rows` tiles, so the loads ask for X that many times; memory delivers it once while a split's panels
stay in L2. Products of padded columns, of rows padded to a step and of three quarters of the diagonal tiles (a quarter
lies in warps that have nothing below the diagonal) are issued, needed or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from fastrank.kernels.cost import Launch, together
from fastrank.kernels.gram.config import FAST_BLOCK

# kSmall, kWide, kWideColumns, kSmallBlocks, kWideBlocks, kSplitRows, kReduceThreads and kReduceSplits of
# csrc/gram/problem.cuh.
SMALL, WIDE, WIDE_COLUMNS, SMALL_BLOCKS, WIDE_BLOCKS, SPLIT_ROWS = 64, 128, 1024, 512, 256, 4
REDUCE_THREADS, REDUCE_SPLITS = 512, 16
#: Rows in a step: Converted and Copied of csrc/gram/staging.cuh.
STEP, COPIED_STEP = 8, 16
_F64 = 8


@dataclass(frozen=True)
class Cut:
    """How a product of `rows` x `columns` is spread over blocks."""

    rows: int
    columns: int

    @property
    def tile(self) -> int:
        return SMALL if self.columns < WIDE_COLUMNS else WIDE

    @property
    def tile_rows(self) -> int:
        return -(-self.columns // self.tile)

    @property
    def tiles(self) -> int:
        return self.tile_rows * (self.tile_rows + 1) // 2

    @property
    def rows_per_split(self) -> int:
        blocks = SMALL_BLOCKS if self.tile == SMALL else WIDE_BLOCKS
        wanted = min(-(-blocks // max(self.tiles, 1)), self.rows // (SPLIT_ROWS * self.tile))
        per = -(-max(self.rows, 1) // max(wanted, 1))
        return -(-per // FAST_BLOCK) * FAST_BLOCK

    @property
    def splits(self) -> int:
        return -(-self.rows // self.rows_per_split)

    @property
    def partial_size(self) -> int:
        """Numbers of a split's partial sums."""
        return self.tiles * self.tile**2 + self.tile_rows * self.tile

    @property
    def workspace(self) -> int:
        """Bytes of partial sums."""
        return _F64 * self.splits * self.partial_size if self.splits > 1 else 0

    @property
    def reduce_blocks(self) -> int:
        ways = 2 ** math.ceil(math.log2(-(-self.splits // REDUCE_SPLITS)))
        return -(-self.partial_size * ways // REDUCE_THREADS)


def unit(dtype: torch.dtype, mode: str, shift: bool) -> str:
    """What multiplies: fp64 tensor cores, fp32, or 16-bit tensor cores, which take numbers that have no shift."""
    if mode == "exact" or dtype == torch.float64:
        return "fp64_tensor"
    return "fp32" if shift or dtype == torch.float32 else "bf16_tensor"


def accumulate(
    n: int, d: int, dtype: torch.dtype = torch.float32, mode: str = "exact", *, shift: bool = True, total: bool = True,
    symmetric: bool = False,
) -> tuple[Launch, ...]:  # fmt: skip
    """Launches of `gram_accumulate_` for X [n, d] on CUDA (of [B, d, S] with n = B * S); none for an empty X.

    symmetric: what adds to C writes the upper triangle too.
    """
    if n == 0 or d == 0:
        return ()
    cut, itemsize, products = Cut(n, d), dtype.itemsize, unit(dtype, mode, shift)
    triangle, columns = d * (d + 1) // 2, d if total else 0
    own = _add({products: 2 * n * triangle}, {"fp64": n * (d if shift else 0) + n * columns})
    if products != "fp64_tensor":
        own = _add(own, {"fp64": triangle * -(-n // FAST_BLOCK)})
    issued = _issued(cut, products, shift, total)
    staged = n * d * cut.tile_rows  # numbers that the tiles' loads ask for
    # Every block loads the shift of its two panels, which are one and the same on the diagonal.
    shifts = d * (cut.tile_rows + 1) * cut.splits if shift and products != "bf16_tensor" else 0
    read, result = n * d * itemsize + (d * _F64 if shift else 0), (triangle + columns) * _F64
    written = result + (d * (d - 1) // 2 * _F64 if symmetric else 0)
    requested = staged * itemsize + shifts * _F64
    if cut.splits == 1:
        return (Launch("gram_tiles", read + result, written, own, issued, requested + result, cut.tiles),)
    reduce = Launch(
        "gram_reduce", (cut.splits + 1) * result, written, {"fp64": (cut.splits + 1) * (triangle + columns)},
        blocks=cut.reduce_blocks,
    )  # fmt: skip
    return Launch("gram_tiles", read, cut.splits * result, own, issued, requested, cut.tiles * cut.splits), reduce


@dataclass(frozen=True)
class Product:
    """One of a group; the fields are `accumulate`'s arguments."""

    n: int
    d: int
    dtype: torch.dtype = torch.float32
    mode: str = "exact"
    shift: bool = True
    total: bool = True
    symmetric: bool = False


def group(products: Iterable[Product]) -> tuple[Launch, ...]:
    """Launches of a group: one for each kernel that its products need, and one for what is left to reduce."""
    tiles: dict[tuple, list[Launch]] = {}
    reduces: list[Launch] = []
    for p in products:
        launches = accumulate(p.n, p.d, p.dtype, p.mode, shift=p.shift, total=p.total, symmetric=p.symmetric)
        if launches:
            first, *rest = launches
            kernel = p.dtype, unit(p.dtype, p.mode, p.shift), Cut(p.n, p.d).tile
            tiles.setdefault(kernel, []).append(first)
            reduces += rest
    return tuple(together(launches) for launches in [*tiles.values(), reduces] if launches)


def dual(n: int, d: int, dtype: torch.dtype = torch.float32, mode: str = "exact") -> tuple[Launch, ...]:
    """Launches of `gram_dual` for X [n, d] on CUDA: zeros, and the product over columns."""
    zeros = Launch("torch.zeros", 0, n * n * _F64)
    return (zeros, *accumulate(d, n, dtype, mode, shift=False, total=False, symmetric=True)) if n else ()


def _issued(cut: Cut, products: str, shift: bool, total: bool) -> dict[str, int]:
    """Of gram_tiles: whole tiles times padded rows; the subtraction from every staged number; column sums; flushes."""
    size = cut.tile**2
    step = COPIED_STEP if products == "bf16_tensor" else STEP
    padded = -(-cut.rows // step) * step
    multiplied = 2 * padded * (4 * cut.tiles - cut.tile_rows) * size // 4
    # A panel of the diagonal is staged once, others twice.
    subtracted = cut.rows * cut.tile_rows**2 * cut.tile if shift else 0
    # An addition for the sum, a fused multiply-add for what is not finite; two additions a thread and step.
    summed = cut.tile_rows * cut.tile * (3 * padded + 4 * (padded // step)) if total else 0
    flushed = cut.tiles * size * -(-cut.rows // FAST_BLOCK) if products != "fp64_tensor" else 0
    return _add({products: multiplied}, {"fp64": subtracted + summed + flushed})


def _add(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {unit: a.get(unit, 0) + b.get(unit, 0) for unit in {**a, **b} if a.get(unit, 0) + b.get(unit, 0)}
