"""What the kernels of the subspace step share: rows of tall blocks [., Q], and small matrices [Q, Q] in float64."""

from __future__ import annotations

import triton
import triton.language as tl
from fastrank.kernels.rsvd.config import STEP_WIDTHS


@triton.jit
def load_rows(ptr, rows, first, i, j, Q: tl.constexpr):
    """Rows `first` + i of a matrix [., Q] that has `rows` of them from `first` on."""
    return tl.load(ptr + (first + i)[:, None] * Q + j[None, :], mask=(i < rows)[:, None], other=0.0)


@triton.jit
def store_rows(ptr, x, rows, first, i, j, Q: tl.constexpr):
    tl.store(ptr + (first + i)[:, None] * Q + j[None, :], x.to(ptr.dtype.element_ty), mask=(i < rows)[:, None])


@triton.jit
def store_gram(ptr, x_ptr, rows, first, start, block, j, ROWS: tl.constexpr, Q: tl.constexpr):
    """X^T X of the rows that this program has stored, in float64, as the block's part. By 16 rows: without tensor cores
    for float64 a product of more is more than the registers hold."""
    tl.debug_barrier()
    total = tl.zeros((Q, Q), tl.float64)
    for at in range(start, start + ROWS, 16):
        x = load_rows(x_ptr, rows, first, at + tl.arange(0, 16), j, Q).to(tl.float64)
        total = tl.dot(tl.trans(x), x, total, input_precision="ieee", out_dtype=tl.float64)
    tl.store(ptr + block * Q * Q + j[:, None] * Q + j[None, :], total)


@triton.jit
def times(x_ptr, stride_row, stride_column, rows, i, columns, m_ptr, j, SIZE: tl.constexpr, Q: tl.constexpr):
    """Rows i of X, as many columns as there are, times M [Q, Q], in float64; SIZE of i."""
    total = tl.zeros((SIZE, Q), tl.float64)
    for start in range(0, Q, 16):
        c = start + tl.arange(0, 16)
        at = x_ptr + i[:, None] * stride_row + c[None, :] * stride_column
        x = tl.load(at, mask=(i < rows)[:, None] & (c < columns)[None, :], other=0.0).to(tl.float64)
        m = tl.load(m_ptr + c[:, None] * Q + j[None, :])
        total = tl.dot(x, m, total, input_precision="ieee", out_dtype=tl.float64)
    return total


@triton.jit
def store_small(ptr, x, b, j, Q: tl.constexpr):
    tl.store(ptr + b.to(tl.int64) * Q * Q + j[:, None] * Q + j[None, :], x)


@triton.jit
def sum_parts(ptr, first, count, j, Q: tl.constexpr):
    """The parts of a Gram matrix, in order."""
    total = tl.zeros((Q, Q), tl.float64)
    for part in range(first, first + count):
        total += tl.load(ptr + part * Q * Q + j[:, None] * Q + j[None, :])
    return total


def step_width(q: int) -> int:
    return next(width for width in STEP_WIDTHS if q <= width)


def alone_warps(Q: int) -> int:
    """Of a program that has a [Q, Q] matrix to itself."""
    return 4 if Q == 16 else 8
