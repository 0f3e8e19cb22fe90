"""Launches of the Gram of patches on CUDA, counted from the cuts of csrc/gram/patches.cuh and csrc/gram/shifts.cuh.

Both ways multiply tiles of 64 x 64, in steps of 8 positions; the general way tiles of the columns of P, the way of
shifts tiles of channels, once for each difference of taps. What is added beside the products (column sums, windows,
corrections at the padding) is counted where it grows with the data, not in patch_outside and patch_combine, which
memory bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from fastrank.kernels.cost import Launch
from fastrank.kernels.gram.config import FAST_BLOCK

# Constants of patch_tile.cuh, patches.cuh, shifts.cuh; kPartial of patches.cu; kTaps of patches.h.
TILE, STEP = 64, 8
SPLIT_ROWS, MAX_SPLITS, WANTED_BLOCKS = 2048, 64, 1024
LONG_CHUNK, SHORT_CHUNK, MAX_CHUNKS, SPACE = 13, 9, 128, 1 << 23
SUM_CHUNK, MAX_SUM_CHUNKS = 12, 64
PARTIAL, TAPS = 64, 11
_F64 = 8


@dataclass(frozen=True)
class Patches:
    """The patches of a convolution: `channels` of each group; pairs are rows first."""

    images: int
    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    pad: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def outputs(self, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (self.size[axis] + 2 * self.pad[axis] - reach) // self.step[axis] + 1

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def columns(self) -> int:
        return self.channels * self.taps

    @property
    def rows(self) -> int:
        return self.images * self.groups * self.outputs(0) * self.outputs(1)

    @property
    def positions(self) -> int:
        return self.images * self.groups * self.size[0] * self.size[1]

    def starts(self, axis: int) -> list[int]:
        """Where each tap meets the first output."""
        return [k * self.dilation[axis] - self.pad[axis] for k in range(self.kernel[axis])]

    def windows(self, axis: int) -> list[tuple[int, int]]:
        """The positions that each tap reaches."""
        size, outputs = self.size[axis], self.outputs(axis)
        return [(min(max(at, 0), size), min(max(at + outputs, 0), size)) for at in self.starts(axis)]

    def cuts(self, axis: int) -> list[int]:
        return sorted({0, self.size[axis], *(end for window in self.windows(axis) for end in window)})

    def fine(self, axis: int) -> list[int]:
        size, outputs = self.size[axis], self.outputs(axis)
        reach = [k * self.dilation[axis] for k in range(self.kernel[axis])]
        ends = [at for start in self.starts(axis) for at in (start, start + outputs)]
        inside = {at for at in (*ends, *reach, *(size - far for far in reach)) if 0 < at < size}
        return sorted({0, size, *inside})


@dataclass(frozen=True)
class Cut:
    """The general way."""

    p: Patches

    @property
    def tile_rows(self) -> int:
        return _up(self.p.columns, TILE)

    @property
    def tiles(self) -> int:
        return self.tile_rows * (self.tile_rows + 1) // 2

    @property
    def rows_per_split(self) -> int:
        wanted = min(_up(self.p.rows, SPLIT_ROWS), MAX_SPLITS, _up(WANTED_BLOCKS, self.tiles))
        return _up(max(_up(self.p.rows, max(wanted, 1)), 1), FAST_BLOCK) * FAST_BLOCK

    @property
    def splits(self) -> int:
        return _up(self.p.rows, self.rows_per_split)

    @property
    def workspace(self) -> int:
        """Numbers of partial sums."""
        return self.splits * (self.tiles * TILE * TILE + self.tile_rows * TILE) if self.splits > 1 else 0


@dataclass(frozen=True)
class Plan:
    """The way of shifts. An item is a tile of channels and a difference of taps; it has `slots` partial tiles."""

    p: Patches

    @property
    def tile_rows(self) -> int:
        return _up(self.p.channels, TILE)

    @property
    def across(self) -> tuple[int, int]:
        return 2 * self.p.kernel[0] - 1, 2 * self.p.kernel[1] - 1

    @cached_property
    def items(self) -> list[tuple[int, int, int]]:
        """(row, column, difference); of a tile on the diagonal the differences from 0 on."""
        count = self.across[0] * self.across[1]
        return [
            (i, j, d)
            for i in range(self.tile_rows)
            for j in range(i + 1)
            for d in range(count // 2 if i == j else 0, count)
        ]

    @cached_property
    def pieces(self) -> list[int]:
        """Positions of each."""
        rows, columns = (self.p.cuts(axis) for axis in (0, 1))
        return [
            self.p.images * self.p.groups * (b - a) * (d - c) for a, b in pairwise(rows) for c, d in pairwise(columns)
        ]

    @cached_property
    def chunk(self) -> int:
        """Logarithm of a chunk's positions."""
        log = LONG_CHUNK
        while log > SHORT_CHUNK and len(self.items) * _chunks(max(self.pieces), log) < WANTED_BLOCKS:
            log -= 1
        while _chunks(max(self.pieces), log) > MAX_CHUNKS:
            log += 1
        return log

    @cached_property
    def slots(self) -> int:
        return sum(_chunks(n, self.chunk) for n in self.pieces)

    @cached_property
    def batch(self) -> int:
        """Items of one launch."""
        batches = min(_up(len(self.items) * self.slots * TILE * TILE, SPACE), len(self.items))
        return _up(len(self.items), batches)

    @property
    def fine(self) -> int:
        return (len(self.p.fine(0)) - 1) * (len(self.p.fine(1)) - 1)

    @cached_property
    def sum_chunk(self) -> int:
        log = SUM_CHUNK
        while _chunks(self.p.positions, log) > MAX_SUM_CHUNKS:
            log += 1
        return log

    @property
    def workspace(self) -> int:
        """Numbers: partial tiles, sums, and the tables of what lies outside."""
        sums = _chunks(self.p.positions, self.sum_chunk) * self.fine * self.p.channels
        return self.batch * self.slots * TILE * TILE + sums + (self.p.channels + 1) * self.p.taps**2

    def work(self, item: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Of each piece that an item needs: its positions, and those where the other tap is in the image too."""
        taps = item[2] // self.across[1] - (self.p.kernel[0] - 1), item[2] % self.across[1] - (self.p.kernel[1] - 1)
        sides = []
        for axis, by in enumerate(taps):
            cuts, windows, shift = self.p.cuts(axis), self.p.windows(axis), by * self.p.dilation[axis]
            reached = [windows[k] for k in range(self.p.kernel[axis]) if 0 <= k + by < self.p.kernel[axis]]
            sides.append(
                [
                    (b - a, max(min(b, self.p.size[axis] - shift) - max(a, -shift), 0))
                    for a, b in pairwise(cuts)
                    if any(begin <= a and b <= end for begin, end in reached)
                ]
            )
        images = self.p.images * self.p.groups
        return [(images * y[0] * x[0], images * y[1] * x[1]) for y in sides[0] for x in sides[1]]


def by_shifts(p: Patches) -> bool:
    """Whether that way goes through fewer positions, all tiles together."""
    if p.step != (1, 1) or p.taps < 2 or max(p.kernel) > TAPS:
        return False
    cut, plan = Cut(p), Plan(p)
    return len(plan.items) * (p.positions + PARTIAL * plan.slots) < cut.tiles * (p.rows + PARTIAL * cut.splits)


def patches(
    p: Patches, dtype: torch.dtype = torch.float32, mode: str = "exact", *, shifts: bool | None = None
) -> tuple[Launch, ...]:
    """Launches for x with a shift and column sums; `shifts` chooses the way."""
    if p.rows == 0 or p.columns == 0:
        return ()
    fast = mode == "fast" and dtype != torch.float64
    return _shifts(p, dtype, fast) if (by_shifts(p) if shifts is None else shifts) else _general(p, dtype, fast)


def _general(p: Patches, dtype: torch.dtype, fast: bool) -> tuple[Launch, ...]:
    cut, unit = Cut(p), "fp32" if fast else "fp64_tensor"
    x, result = p.images * p.groups * p.channels * p.size[0] * p.size[1] * dtype.itemsize, _result(p)
    padded = sum(_up(min(cut.rows_per_split, p.rows - at), STEP) * STEP for at in range(0, p.rows, cut.rows_per_split))
    # Of a diagonal tile's four warps one lies above the diagonal.
    issued = 2 * padded * (cut.tiles * TILE**2 - cut.tile_rows * TILE**2 // 4)
    flops = p.rows * p.columns * (p.columns + 1)
    requested = p.rows * p.columns * cut.tile_rows * dtype.itemsize
    direct = result if cut.splits == 1 else 0
    written = direct or cut.workspace * _F64
    tiles = Launch(
        "patch_tiles", x + direct, written, {unit: flops}, {unit: issued}, requested + direct, cut.tiles * cut.splits
    )
    if direct:
        return (tiles,)
    return tiles, Launch("patch_reduce", (cut.splits + 1) * result, result, blocks=cut.tiles)


def _shifts(p: Patches, dtype: torch.dtype, fast: bool) -> tuple[Launch, ...]:
    plan, unit = Plan(p), "fp32" if fast else "fp64_tensor"
    x = p.positions * p.channels * dtype.itemsize
    sums = sum(
        _chunks(p.images * p.groups * (b - a) * (d - c), plan.sum_chunk)
        for a, b in pairwise(p.fine(0))
        for c, d in pairwise(p.fine(1))
    )
    padded = p.pad != (0, 0)
    table = (p.channels + 1) * p.taps**2 * _F64 if padded else 0
    total = p.columns * _F64
    launches = [
        Launch("patch_sums", x, sums * p.channels * _F64, {"fp64": 2 * p.positions * p.channels}),
        Launch("patch_outside", sums * p.channels * _F64 + total, table + total, blocks=p.channels),
    ]
    for first in range(0, len(plan.items), plan.batch):
        flops = issued = requested = partials = 0
        items = plan.items[first : first + plan.batch]
        for item in items:
            i, j, difference = item
            rows, columns = (min(TILE, p.channels - TILE * t) for t in (i, j))
            zero = i == j and difference == plan.across[0] * plan.across[1] // 2
            for piece, positions in plan.work(item):
                steps = _up(positions, STEP)  # a whole chunk is whole steps
                issued += 2 * steps * STEP * (TILE**2 * 3 // 4 if zero else TILE**2)
                flops += positions * (rows * (rows + 1) if zero else 2 * rows * columns)
                requested += positions * (rows + columns) * dtype.itemsize
                partials += _chunks(piece, plan.chunk)
        moved = partials * TILE * TILE * _F64
        launches.append(
            Launch("patch_pieces", x, moved, {unit: flops}, {unit: issued}, requested, len(items) * plan.slots)
        )
        share = _result(p) * len(items) // len(plan.items)
        tiles = len({item[:2] for item in items})
        launches.append(Launch("patch_combine", moved + table + share, share, blocks=tiles * min(TILE, p.channels)))
    return tuple(launches)


def _result(p: Patches) -> int:
    """Bytes of the lower triangle and the column sums."""
    return (p.columns * (p.columns + 1) // 2 + p.columns) * _F64


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _chunks(positions: int, log: int) -> int:
    return _up(positions, 1 << log)
