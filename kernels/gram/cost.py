"""Launches of the Gram ops on CUDA, counted from the cut of csrc/gram/kernels.cuh (which a test holds this file to).

One block of `gram_tiles` owns one 64 x 64 tile of the lower triangle and one split of the rows. A panel of 64 columns
of X belongs to `tile_rows` tiles, so the loads ask for X that many times; memory delivers it once while a split's
panels stay in L2. Products of padded columns, of rows padded to 16 and of the diagonal tiles' upper half are issued
and thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fastrank.kernels.cost import Launch
from fastrank.kernels.gram.config import FAST_BLOCK

# kTile, kStep, kSplitRows, kMaxSplits of csrc/gram/kernels.cuh.
TILE, STEP, SPLIT_ROWS, MAX_SPLITS = 64, 16, 2048, 64
#: Side of a tile of gram_mirror.
MIRROR = 32
_F64 = 8


@dataclass(frozen=True)
class Cut:
    """How a product of `rows` x `columns` is spread over blocks."""

    rows: int
    columns: int

    @property
    def tile_rows(self) -> int:
        return -(-self.columns // TILE)

    @property
    def tiles(self) -> int:
        return self.tile_rows * (self.tile_rows + 1) // 2

    @property
    def rows_per_split(self) -> int:
        wanted = min(max(-(-self.rows // SPLIT_ROWS), 1), MAX_SPLITS)
        per = max(-(-self.rows // wanted), 1)
        return -(-per // FAST_BLOCK) * FAST_BLOCK

    @property
    def splits(self) -> int:
        return -(-self.rows // self.rows_per_split) if self.rows else 0

    @property
    def padded_rows(self) -> int:
        """Rows of all splits, the last one's rounded up to a step."""
        return -(-self.rows // STEP) * STEP

    @property
    def workspace(self) -> int:
        """Bytes of partial sums."""
        if self.splits < 2:
            return 0
        return _F64 * self.splits * (self.tiles * TILE * TILE + self.tile_rows * TILE)


def accumulate(
    n: int, d: int, dtype: torch.dtype = torch.float32, mode: str = "exact", *, shift: bool = True, total: bool = True
) -> tuple[Launch, ...]:
    """Launches of `gram_accumulate_` for X [n, d] on CUDA (of [B, d, S] with n = B * S); none for an empty X."""
    if n == 0 or d == 0:
        return ()
    cut, itemsize = Cut(n, d), dtype.itemsize
    fast = mode == "fast" and dtype != torch.float64
    triangle, columns = d * (d + 1) // 2, d if total else 0
    products = "fp32" if fast else "fp64"
    own = _add({products: 2 * n * triangle}, {"fp64": n * (d if shift else 0) + n * columns})
    if fast:
        own = _add(own, {"fp64": triangle * -(-n // FAST_BLOCK)})
    issued = _issued(cut, fast, total)
    staged = n * d * cut.tile_rows  # numbers that the tiles' loads ask for
    # Sixteen threads of a block keep the shift of a column, for its two panels (one and the same on the diagonal).
    shifts = 16 * d * (cut.tile_rows + 1) * cut.splits if shift else 0
    read, result = n * d * itemsize + (d * _F64 if shift else 0), (triangle + columns) * _F64
    requested = staged * itemsize + shifts * _F64
    if cut.splits == 1:
        return (Launch("gram_tiles", read + result, result, own, issued, requested + result, cut.tiles),)
    written = cut.splits * (cut.tiles * TILE * TILE + (cut.tile_rows * TILE if total else 0)) * _F64
    reduce = Launch(
        "gram_reduce", (cut.splits + 1) * result, result, {"fp64": (cut.splits + 1) * (triangle + columns)},
        blocks=cut.tiles,
    )  # fmt: skip
    return Launch("gram_tiles", read, written, own, issued, requested, cut.tiles * cut.splits), reduce


def dual(n: int, d: int, dtype: torch.dtype = torch.float32, mode: str = "exact") -> tuple[Launch, ...]:
    """Launches of `gram_dual` for X [n, d] on CUDA: zeros, the product over columns, the mirror."""
    zeros = Launch("torch.zeros", 0, n * n * _F64)
    if n == 0 or d == 0:
        return (zeros, mirror(n)) if n else ()
    return zeros, *accumulate(d, n, dtype, mode, shift=False, total=False), mirror(n)


def mirror(n: int) -> Launch:
    """The upper triangle from the lower; tiles on the diagonal are read whole."""
    side = -(-n // MIRROR)
    blocks = [min(MIRROR, n - MIRROR * i) for i in range(side)]
    read = n * (n + 1) // 2 + sum(b * (b - 1) // 2 for b in blocks)
    return Launch("gram_mirror", read * _F64, n * (n - 1) // 2 * _F64, blocks=side * (side + 1) // 2)


def _issued(cut: Cut, fast: bool, total: bool) -> dict[str, int]:
    """Of gram_tiles: whole tiles times padded rows; the subtraction of every staged number (of 0 where no shift is)."""
    products = 2 * cut.tiles * TILE * TILE * cut.padded_rows
    sums = cut.tile_rows * TILE * cut.padded_rows if total else 0
    staged = cut.rows * cut.columns * cut.tile_rows
    flushes = cut.padded_rows // FAST_BLOCK if fast else 0
    # Every thread adds its block once more at the end, also where nothing is left in it.
    moved = cut.tiles * TILE * TILE * (flushes + cut.splits)
    return _add({"fp32" if fast else "fp64": products}, {"fp64": staged + sums + moved})


def _add(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {unit: a.get(unit, 0) + b.get(unit, 0) for unit in {**a, **b} if a.get(unit, 0) + b.get(unit, 0)}
