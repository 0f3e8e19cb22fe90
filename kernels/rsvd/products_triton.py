"""The subspace step's reads of A on CUDA: Y = A V by spans of A's columns, and Z = A^T Y."""

from __future__ import annotations

import triton
import triton.language as tl
from fastrank.kernels.rsvd import fields
from fastrank.kernels.rsvd.blocks_triton import load_rows, store_gram, store_rows


@triton.jit
def project_kernel(
    item_ptr, table_ptr, basis_ptr, part_ptr, square_ptr,
    TYPE: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr, FIRST: tl.constexpr, SPAN: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Rows of A times the block, over a span of A's columns: the caller's V if FIRST, else `basis`."""
    item = item_ptr + tl.program_id(0) * 3
    b, block, span = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    t = table_ptr + b * fields.COUNT
    n, d, q = tl.load(t + fields.N), tl.load(t + fields.D), tl.load(t + fields.Q)
    a_ptr = tl.load(t + fields.A).to(tl.pointer_type(TYPE))
    v_ptr = tl.load(t + fields.V).to(tl.pointer_type(ACC))
    stride_n, stride_d = tl.load(t + fields.A_STRIDE_N), tl.load(t + fields.A_STRIDE_D)
    v_stride_d, v_stride_q = tl.load(t + fields.V_STRIDE_D), tl.load(t + fields.V_STRIDE_Q)
    column = tl.load(t + fields.COLUMN)
    if VECTOR > 1:
        # What the host has seen of all matrices, told to the compiler: rows of whole 16 bytes, one after the other.
        a_ptr, stride_n, stride_d, d = tl.multiple_of(a_ptr, 16), stride_n // VECTOR * VECTOR, 1, d // VECTOR * VECTOR
    i, j = block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    acc = tl.zeros((ROWS, Q), ACC)
    squares = tl.zeros((ROWS,), tl.float64)
    for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, d), DEPTH):
        k = start + tl.arange(0, DEPTH)
        at = a_ptr + i[:, None] * stride_n + k[None, :] * stride_d
        a = tl.load(at, mask=(i < n)[:, None] & (k < d)[None, :], other=0.0).to(ACC)
        if FIRST:
            squares += tl.sum(a.to(tl.float64) * a.to(tl.float64), 1)
            at = v_ptr + k[:, None] * v_stride_d + j[None, :] * v_stride_q
            v = tl.load(at, mask=(k < d)[:, None] & (j < q)[None, :], other=0.0)
        else:
            v = load_rows(basis_ptr, d, column, k, j, Q)
        acc = tl.dot(a, v, acc, input_precision="ieee", out_dtype=ACC)
    store_rows(part_ptr, acc, n, tl.load(t + fields.PART) + span * n, i, j, Q)
    if FIRST:
        tl.store(square_ptr + tl.program_id(0), tl.sum(squares, 0))


@triton.jit
def sum_spans(part_ptr, t, n, i, j, ACC: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr):
    first = tl.load(t + fields.PART)
    total = tl.zeros((ROWS, Q), ACC)
    for span in range(0, tl.load(t + fields.SPANS)):
        total += load_rows(part_ptr, n, first + span * n, i, j, Q)
    return total


@triton.jit
def rows_kernel(
    item_ptr, table_ptr, part_ptr, y_ptr, gram_ptr, largest_ptr,
    ACC: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    item = item_ptr + tl.program_id(0) * 2
    b, block = tl.load(item), tl.load(item + 1)
    t = table_ptr + b * fields.COUNT
    n, i, j = tl.load(t + fields.N), block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    y = sum_spans(part_ptr, t, n, i, j, ACC, ROWS, Q)
    store_rows(y_ptr, y, n, tl.load(t + fields.ROW), i, j, Q)
    start = block * ROWS
    block += tl.load(t + fields.ROW_BLOCK)
    store_gram(gram_ptr, y_ptr, n, tl.load(t + fields.ROW), start, block, j, ROWS, Q)
    size = tl.abs(y)
    size = tl.where(size < float("inf"), size, float("inf"))  # NaN too
    tl.store(largest_ptr + block, tl.max(tl.max(size, 1), 0).to(tl.float64))


@triton.jit
def power_of(largest_ptr, t):
    """A power of two that brings Y's largest number to about 1; 1 where there is none. And whether Y is finite."""
    largest = tl.full((), 0.0, tl.float64)
    first = tl.load(t + fields.ROW_BLOCK)
    for block in range(first, first + tl.load(t + fields.ROW_BLOCKS)):
        largest = tl.maximum(largest, tl.load(largest_ptr + block))
    exponent = largest.to(tl.int64, bitcast=True) >> 52
    # Within what float32 holds, for a product with it.
    power = (tl.minimum(tl.maximum(2046 - exponent, 1023 - 110), 1023 + 110) << 52).to(tl.float64, bitcast=True)
    return tl.where(largest > 0, power, 1.0), largest < float("inf")


@triton.jit
def columns_kernel(
    item_ptr, table_ptr, y_ptr, largest_ptr, z_ptr, gram_ptr,
    TYPE: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Z = A^T Y for ROWS columns of A, and their part of Z's Gram matrix."""
    item = item_ptr + tl.program_id(0) * 2
    b, block = tl.load(item), tl.load(item + 1)
    t = table_ptr + b * fields.COUNT
    n, d, row = tl.load(t + fields.N), tl.load(t + fields.D), tl.load(t + fields.ROW)
    a_ptr = tl.load(t + fields.A).to(tl.pointer_type(TYPE))
    stride_n, stride_d = tl.load(t + fields.A_STRIDE_N), tl.load(t + fields.A_STRIDE_D)
    if VECTOR > 1:
        a_ptr, stride_n, stride_d, d = tl.multiple_of(a_ptr, 16), stride_n // VECTOR * VECTOR, 1, d // VECTOR * VECTOR
    power, _ = power_of(largest_ptr, t)
    i, j = block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    acc = tl.zeros((ROWS, Q), ACC)
    for start in range(0, n, DEPTH):
        k = start + tl.arange(0, DEPTH)
        at = a_ptr + k[:, None] * stride_n + i[None, :] * stride_d
        a = tl.load(at, mask=(k < n)[:, None] & (i < d)[None, :], other=0.0).to(ACC)
        y = load_rows(y_ptr, n, row, k, j, Q) * power.to(ACC)
        acc = tl.dot(tl.trans(a), y, acc, input_precision="ieee", out_dtype=ACC)
    store_rows(z_ptr, acc, d, tl.load(t + fields.COLUMN), i, j, Q)
    store_gram(
        gram_ptr, z_ptr, d, tl.load(t + fields.COLUMN), block * ROWS, block + tl.load(t + fields.COLUMN_BLOCK),
        j, ROWS, Q,
    )  # fmt: skip
