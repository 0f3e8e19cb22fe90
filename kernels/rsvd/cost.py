"""Launches of the randomized SVD ops on CUDA, counted from the Triton kernels (which tests hold this file to).

Bytes leave out the tables of addresses and sizes, some 200 bytes a matrix and 16 a program. Flops leave out the integer
arithmetic of the random words. `cost_step.py` has a step on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from fastrank.kernels.cost import Launch, together
from fastrank.kernels.rsvd.config import (
    COSINE_TILE,
    PASSES,
    SKETCH_ROWS,
    SKETCH_TILE,
    SKETCH_TILE_64,
    STEP_TILE,
    STEP_WIDTHS,
    TEST_TILE,
)  # fmt: skip
from fastrank.kernels.small_eigh import cost as small_eigh
from fastrank.kernels.small_eigh.config import JACOBI, tile

#: Flops of a normal number: half of the 46 that a pair of them takes (`normal_pair` of reference.py).
NORMAL = 23
#: Numbers that a program of `add_spans` adds up.
ADDED = 256
_F64 = 8


@dataclass(frozen=True)
class Block:
    """One matrix [n, d], of numbers of `size` bytes, and its block of q columns, padded to `width`; k pairs wanted."""

    n: int
    d: int
    q: int
    k: int
    width: int
    dtype: torch.dtype

    @property
    def high(self) -> int:
        """Blocks of rows."""
        return -(-self.n // STEP_TILE.rows)

    @property
    def wide(self) -> int:
        """Blocks of columns."""
        return -(-self.d // STEP_TILE.rows)

    @property
    def spans(self) -> int:
        return max(1, -(-self.d // SKETCH_ROWS))

    @property
    def acc(self) -> int:
        return _F64 if self.dtype == torch.float64 else 4

    @property
    def square(self) -> int:
        """Bytes of a matrix of the padded width."""
        return _F64 * self.width**2

    @property
    def y(self) -> int:
        """Bytes of a number for each row and column of the padded block."""
        return self.n * self.width * self.acc

    @property
    def z(self) -> int:
        return self.d * self.width * self.acc

    @property
    def matrix(self) -> int:
        return self.n * self.d * self.dtype.itemsize

    @property
    def unit(self) -> str:
        return "fp64_tensor" if self.acc == _F64 else "fp32"


def test_matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32, kind: str = "gaussian") -> Launch:
    programs = -(-rows // TEST_TILE.rows) * -(-columns // TEST_TILE.columns)
    draw = NORMAL if kind == "gaussian" else 0
    return Launch(
        "test_matrix", 0, rows * columns * dtype.itemsize, {"fp32": draw * rows * columns},
        {"fp32": draw * programs * TEST_TILE.rows * TEST_TILE.columns}, 0, programs,
    )  # fmt: skip


def sketch(n: int, d: int, q: int, dtype: torch.dtype = torch.float32, kind: str = "gaussian") -> tuple[Launch, ...]:
    """Launches of `sketch`: every program draws the numbers that it multiplies by."""
    if not n or not d or not q:
        return ()
    double = dtype == torch.float64
    acc, unit, tiles = (_F64, "fp64_tensor", SKETCH_TILE_64) if double else (4, "fp32", SKETCH_TILE)
    shape = next(t for t in tiles if q <= t.columns or t is tiles[-1])
    spans, high, wide = -(-d // SKETCH_ROWS), -(-n // shape.rows), -(-q // shape.columns)
    draw, depth, matrix = (
        NORMAL if kind == "gaussian" else 0,
        -(-d // shape.depth) * shape.depth,
        n * d * dtype.itemsize,
    )
    result = n * q * acc
    product = Launch(
        "sketch", matrix, spans * result, _added({unit: 2 * n * d * q}, {"fp32": draw * d * q}),
        _added(
            {unit: 2 * high * shape.rows * depth * wide * shape.columns},
            {"fp32": draw * depth * wide * shape.columns * high},
        ),
        wide * matrix, high * wide * spans,
    )  # fmt: skip
    if spans == 1:
        return (product,)
    sums = {"fp64" if double else "fp32": spans * n * q}
    return product, Launch("add_spans", spans * result, result, sums, blocks=-(-n * q // ADDED))


def steps(
    shapes: Iterable[tuple[int, int]], q: int, k: int, dtype: torch.dtype = torch.float32,
    sweeps: int = small_eigh.EXPECTED_SWEEPS,
) -> tuple[Launch, ...]:  # fmt: skip
    """Launches of `subspace_step_many` for matrices [n, d] with blocks of at most q columns, and k pairs; `sweeps` of
    Jacobi. Matrices lie in memory row by row, from multiples of 16 bytes on."""
    vector = 16 // dtype.itemsize
    launches = []
    for members in _groups(shapes, q, k, dtype, lambda d: d % vector == 0).values():
        last = _pairs(members) if k else ()
        launches += [*_first(members, sweeps), *orthonormalise(members, True), *last, _finish(members)]
    return tuple(launches)


def orthonormal(shapes: Iterable[tuple[int, int]], dtype: torch.dtype = torch.float32) -> tuple[Launch, ...]:
    """Launches of `orthonormal_many` for blocks [d, q]."""
    found: dict[int, list[Block]] = {}
    for d, q in shapes:
        found.setdefault(_width(q), []).append(Block(0, d, q, 0, _width(q), dtype))
    launches = []
    for members in found.values():
        launches += [_of(members, _start), *orthonormalise(members, False)]
    return tuple(launches)


def cosines(shapes: Iterable[tuple[int, int, int]], dtype: torch.dtype = torch.float32) -> tuple[Launch, ...]:
    """The launch of `cosines_many` for pairs [k, d] and [l, d], given as (k, l, d)."""
    shape, acc, members = COSINE_TILE, dtype.itemsize, []
    unit = "fp64_tensor" if acc == _F64 else "fp32"
    for k, l, d in shapes:
        high, wide, depth = -(-k // shape.rows), -(-l // shape.columns), -(-d // shape.depth) * shape.depth
        members.append(
            Launch(
                "cosines", (k + l) * d * acc, k * l * acc, {unit: 2 * k * l * d},
                {unit: 2 * high * wide * shape.rows * shape.columns * depth}, (wide * k + high * l) * d * acc,
                high * wide,
            )
        )  # fmt: skip
    return (together(members),) if members else ()


def workspace(n: int, d: int, q: int, dtype: torch.dtype) -> int:
    """Bytes that a step of one matrix needs beside its results."""
    b = Block(n, d, q, 0, _width(q), dtype)
    # Parts of Y, Y; Z, two blocks; Grams by blocks; two that Jacobi works on twice, and what it gives; T, M, X.
    return (b.spans + 1) * b.y + 3 * b.z + (b.high + b.wide + 2 + 4 + 2 + 3) * b.square


def orthonormalise(members: list[Block], checked: bool) -> list[Launch]:
    """PASSES of Cholesky QR; `checked`: V stays where the matrix was not finite. (That columns are lost is not counted:
    their random numbers are drawn on the spot.)"""
    launches = []
    for turn in range(PASSES):
        launches.append(_of(members, lambda b, turn=turn: _basis(b, turn > 0)))
        launches.append(_of(members, lambda b, turn=turn: _apply(b, turn == PASSES - 1, checked)))
    return launches


def _first(members: list[Block], sweeps: int) -> list[Launch]:
    each = (lambda b: _project(b, True), _rows, _columns, _small)
    launches = [_of(members, kernel) for kernel in each]
    launches.append(
        together([small_eigh.jacobi(b.q, tile(b.width, JACOBI), sweeps) for _ in range(2) for b in members])
    )  # fmt: skip
    return [*launches, _of(members, _rotations), _of(members, _right)]


def _pairs(members: list[Block]) -> list[Launch]:
    return [_of(members, _left), _of(members, lambda b: _project(b, False)), _of(members, _residual)]


def _project(b: Block, first: bool) -> Launch:
    block = b.d * (b.q if first else b.width) * b.acc
    padded = b.high * STEP_TILE.rows * _steps_of(b.d)
    squares = (2 * b.n * b.d, 2 * padded) if first else (0, 0)
    return Launch(
        "project", b.matrix + block, b.spans * b.y + (_F64 * b.high * b.spans if first else 0),
        _added({b.unit: 2 * b.n * b.d * b.q}, {"fp64": squares[0]}),
        _added({b.unit: 2 * padded * b.width}, {"fp64": squares[1]}),
        b.matrix + b.high * block, b.high * b.spans,
    )  # fmt: skip


def _rows(b: Block) -> Launch:
    moved = (b.spans + 1) * b.y
    own, issued = _gram(b, b.n, b.high)
    return Launch("rows", moved, b.y + b.high * (b.square + _F64), own, issued, moved, b.high)


def _columns(b: Block) -> Launch:
    gram = _gram(b, b.d, b.wide)
    own = {b.unit: 2 * b.n * b.d * b.q}
    issued = {b.unit: 2 * b.wide * STEP_TILE.rows * _steps_of(b.n) * b.width}
    return Launch(
        "columns", b.matrix + b.y + b.z + _F64 * b.high, b.z + b.wide * b.square, _added(own, gram[0]),
        _added(issued, gram[1]), b.matrix + b.z + b.wide * (b.y + _F64 * b.high), b.wide,
    )  # fmt: skip


def _small(b: Block) -> Launch:
    parts = (b.high + b.wide) * b.square + _F64 * b.high
    return Launch(
        "small", parts + 2 * b.square, 3 * b.square + 2 * _F64, {"fp64": 4 * b.q**3, "fp64_tensor": 4 * b.q**3},
        {"fp64": 8 * b.q * b.width**2 + (b.high + b.wide) * b.width**2, "fp64_tensor": 4 * b.width**3},
        parts + 4 * b.square, 1,
    )  # fmt: skip


def _rotations(b: Block) -> Launch:
    moved = _F64 * (2 * b.q + 2 * b.q**2 + 1) + 2 * b.square
    own, issued = {"fp64_tensor": 2 * b.q**3}, {"fp64_tensor": 2 * b.width**3}
    return Launch("rotations", moved, 2 * b.square + 2 * _F64 * b.width, own, issued, moved, 1)


def _right(b: Block) -> Launch:
    products, gram = _times(b, b.d, b.wide, 3), _gram(b, b.d, b.wide)
    v, facts = b.d * b.q * b.acc, _F64 * (2 * b.width + 2)
    return Launch(
        "right", 2 * b.z + v + 2 * b.square + facts, b.z + b.wide * (b.square + _F64 * b.width),
        _added(products[0], gram[0]), _added(products[1], gram[1]),
        3 * b.z + v + b.wide * (3 * b.square + facts), b.wide,
    )  # fmt: skip


def _start(b: Block) -> Launch:
    own, issued = _gram(b, b.d, b.wide)
    moved = b.d * b.q * b.acc + b.z
    return Launch("start", moved, b.z + b.wide * b.square, own, issued, moved, b.wide)


def _basis(b: Block, again: bool) -> Launch:
    moved = b.wide * b.square + (4 * b.width if again else 0)
    own, issued = {"fp64": 4 * b.q**3}, {"fp64": (8 * b.q + b.wide) * b.width**2}
    return Launch("basis", moved, b.square + 4 * b.width, own, issued, moved, 1)


def _apply(b: Block, last: bool, checked: bool) -> Launch:
    own, issued = _times(b, b.d, b.wide)
    out = b.d * b.q * b.acc
    if last:
        v = out if checked else 0
        facts = _F64 if checked else 0
        return Launch(
            "apply", b.z + b.square + v + facts, b.z + out, own, issued, b.z + v + b.wide * (b.square + facts), b.wide
        )
    gram = _gram(b, b.d, b.wide)
    small = b.square + 4 * b.width
    return Launch(
        "apply", 2 * b.z + small, b.z + b.wide * b.square, _added(own, gram[0]), _added(issued, gram[1]),
        2 * b.z + b.wide * small, b.wide,
    )  # fmt: skip


def _left(b: Block) -> Launch:
    own, issued = _times(b, b.n, b.high)
    small = b.square + _F64 * (b.width + 1)
    return Launch("left", b.y + small, b.n * b.k * b.acc, own, issued, b.y + b.high * small, b.high)


def _residual(b: Block) -> Launch:
    moved, small = b.spans * b.y + b.n * b.k * b.acc, _F64 * b.width
    own = {"fp64": 4 * b.n * b.k}
    issued = {"fp64": 4 * b.high * STEP_TILE.rows * b.width}
    return Launch("residual", moved + small, b.high * small, own, issued, moved + b.high * small, b.high)


def _finish(members: list[Block]) -> Launch:
    def one(b: Block) -> Launch:
        pairs = 1 if b.k else 0
        parts = (b.high * pairs + b.wide + 2) * b.width + b.high * b.spans
        moved = _F64 * (parts + 1)
        return Launch("finish", moved, b.acc * ((2 + pairs) * b.width + 1), {"fp64": parts}, None, moved, 1)

    return _of(members, one)


def _times(b: Block, rows: int, blocks: int, products: int = 1) -> tuple[dict[str, int], dict[str, int]]:
    """Own and issued flops of products of rows with a matrix of the block's width."""
    return (
        {"fp64_tensor": products * 2 * rows * b.q**2},
        {"fp64_tensor": products * 2 * blocks * STEP_TILE.rows * b.width**2},
    )


def _gram(b: Block, rows: int, blocks: int) -> tuple[dict[str, int], dict[str, int]]:
    """Of a Gram matrix, half of which would do."""
    return (
        {"fp64_tensor": rows * b.q * (b.q + 1)}, {"fp64_tensor": 2 * blocks * STEP_TILE.rows * b.width**2},
    )  # fmt: skip


def _steps_of(length: int) -> int:
    return -(-length // STEP_TILE.depth) * STEP_TILE.depth


def _width(q: int) -> int:
    if q > STEP_WIDTHS[-1]:
        raise ValueError(f"q: expected at most {STEP_WIDTHS[-1]} columns, as the kernels take, got {q}")
    return next(width for width in STEP_WIDTHS if q <= width)


def _groups(
    shapes: Iterable[tuple[int, int]], q: int, k: int, dtype: torch.dtype, aligned: Callable[[int], bool]
) -> dict[tuple[int, bool], list[Block]]:  # fmt: skip
    """The matrices of each set of launches."""
    found: dict[tuple[int, bool], list[Block]] = {}
    for n, d in shapes:
        columns = min(q, n, d)
        block = Block(n, d, columns, min(k, columns), _width(columns), dtype)
        found.setdefault((block.width, aligned(d)), []).append(block)
    return found


def _of(members: list[Block], kernel: Callable[[Block], Launch]) -> Launch:
    return together([kernel(b) for b in members])


def _added(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {unit: sum_ for unit in {**a, **b} if (sum_ := a.get(unit, 0) + b.get(unit, 0))}
