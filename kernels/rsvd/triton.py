"""Test matrices and sketches on CUDA; no host sync, no atomics.

`sketch` makes the test matrix where it is multiplied: a program takes SKETCH_TILE rows of A and a span of its columns,
and draws the random numbers of that span block by block. Spans are added up in order by a second launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastrank.kernels.rsvd.config import SKETCH_ROWS, SKETCH_TILE, SKETCH_TILE_64, TEST_TILE, ZETA, SketchTile
from fastrank.kernels.rsvd.random import random_tile
from torch import Tensor

_SCALARS = ["seed", "stream"]


@triton.jit(do_not_specialize=[*_SCALARS, "rows", "columns"])
def test_matrix_kernel(
    out_ptr, seed: tl.uint64, stream: tl.int64, rows: tl.int64, columns: tl.int64,
    KIND: tl.constexpr, ZETA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    first_row, first_column = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1) * COLUMNS
    x = random_tile(seed, stream, first_row, first_column, columns, KIND, ZETA, ROWS, COLUMNS)
    i, j = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    tl.store(out_ptr + i[:, None] * columns + j[None, :], x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=[*_SCALARS, "n", "d", "q"])
def sketch_kernel(
    a_ptr, part_ptr, seed: tl.uint64, stream: tl.int64, n: tl.int64, d: tl.int64, q: tl.int64, stride_n, stride_d,
    KIND: tl.constexpr, ZETA: tl.constexpr, SPAN: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS x COLUMNS of A times the test matrix, over one span of A's columns; parts are [spans, n, q]."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(2).to(tl.int64) * SPAN
    acc = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(first, tl.minimum(first + SPAN, d), DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside = (i < n)[:, None] & (k < d)[None, :]
        a = tl.load(a_ptr + i[:, None] * stride_n + k[None, :] * stride_d, mask=inside, other=0.0).to(ACC)
        omega = random_tile(seed, stream, start, tl.program_id(1) * COLUMNS, q, KIND, ZETA, DEPTH, COLUMNS).to(ACC)
        acc = tl.dot(a, omega, acc, input_precision="ieee", out_dtype=ACC)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = part_ptr + (tl.program_id(2).to(tl.int64) * n + i[:, None]) * q + j[None, :]
    tl.store(at, acc.to(part_ptr.dtype.element_ty), mask=(i < n)[:, None] & (j < q)[None, :])


@triton.jit(do_not_specialize=["size", "spans"])
def add_spans_kernel(part_ptr, out_ptr, size: tl.int64, spans: tl.int64, BLOCK: tl.constexpr):
    """The parts of each number, in order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), part_ptr.dtype.element_ty)
    for span in range(0, spans):
        total += tl.load(part_ptr + span * size + i, mask=i < size, other=0.0)
    tl.store(out_ptr + i, total.to(out_ptr.dtype.element_ty), mask=i < size)


def test_matrix(
    rows: int, columns: int, seed: int, stream: int, kind: str, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Rows and columns of random numbers, each a function of its place; see reference.py."""
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    if out.numel():
        shape = TEST_TILE
        with torch.cuda.device_of(out):
            test_matrix_kernel[triton.cdiv(rows, shape.rows), triton.cdiv(columns, shape.columns)](
                out, seed % 2**64, stream, rows, columns, KIND=kind, ZETA=ZETA, ROWS=shape.rows, COLUMNS=shape.columns,
                num_warps=shape.warps,
            )  # fmt: skip
    return out


def sketch(A: Tensor, q: int, seed: int, stream: int, kind: str) -> Tensor:
    """A [n, d] times the test matrix [d, q]; float64 for float64 A, else float32."""
    (n, d), acc = A.shape, torch.float64 if A.dtype == torch.float64 else torch.float32
    out = torch.empty(n, q, dtype=acc, device=A.device)
    if not out.numel() or not d:
        return out.zero_()
    shape, spans = sketch_tile(q, acc), triton.cdiv(d, SKETCH_ROWS)
    part = out if spans == 1 else torch.empty(spans, n, q, dtype=acc, device=A.device)
    with torch.cuda.device_of(A):
        sketch_kernel[triton.cdiv(n, shape.rows), triton.cdiv(q, shape.columns), spans](
            A, part, seed % 2**64, stream, n, d, q, *A.stride(),
            KIND=kind, ZETA=ZETA, SPAN=SKETCH_ROWS, ACC=tl.float64 if acc == torch.float64 else tl.float32,
            ROWS=shape.rows, COLUMNS=shape.columns, DEPTH=shape.depth, num_warps=shape.warps,
        )  # fmt: skip
        if spans > 1:
            add_spans_kernel[(triton.cdiv(out.numel(), 256),)](part, out, out.numel(), spans, BLOCK=256, num_warps=4)
    return out


def sketch_tile(q: int, acc: torch.dtype) -> SketchTile:
    tiles = SKETCH_TILE_64 if acc == torch.float64 else SKETCH_TILE
    return next(t for t in tiles if q <= t.columns or t is tiles[-1])
