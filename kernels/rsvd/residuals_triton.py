"""How far the subspace step's pairs, and the block that came in, are from singular ones, on CUDA."""

from __future__ import annotations

import triton
import triton.language as tl
from fastrank.kernels.rsvd import fields
from fastrank.kernels.rsvd.products_triton import sum_spans


@triton.jit
def residual_kernel(
    item_ptr, table_ptr, part_ptr, u_ptr, s_ptr, residual_ptr, first_ptr,
    ACC: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Squares of A v - s u, by rows of 64."""
    item = item_ptr + tl.program_id(0) * 2
    b, block = tl.load(item), tl.load(item + 1)
    t = table_ptr + b * fields.COUNT
    n, k, i, j = tl.load(t + fields.N), tl.load(t + fields.K), block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    av = sum_spans(part_ptr, t, n, i, j, ACC, ROWS, Q).to(tl.float64)
    at = u_ptr + tl.load(first_ptr + b) + i[:, None] * k + j[None, :]
    u = tl.load(at, mask=(i < n)[:, None] & (j < k)[None, :], other=0.0).to(tl.float64)
    left = tl.where((j < k)[None, :], av - u * tl.load(s_ptr + b * Q + j)[None, :], 0.0)
    tl.store(residual_ptr + (block + tl.load(t + fields.ROW_BLOCK)) * Q + j, tl.sum(left * left, 0))


@triton.jit
def finish_kernel(
    table_ptr, s_ptr, theta_ptr, facts_ptr, square_ptr, residual_part_ptr, entering_part_ptr, values_ptr, entering_ptr,
    norm_ptr, residual_ptr, PAIRS: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """S, the entering block's residuals and, if PAIRS, the residuals, [Q] each; the norm of A."""
    b = tl.program_id(0)
    t = table_ptr + b * fields.COUNT
    j = tl.arange(0, Q)
    residual = tl.zeros((Q,), tl.float64)
    first = tl.load(t + fields.ROW_BLOCK)
    if PAIRS:
        for block in range(first, first + tl.load(t + fields.ROW_BLOCKS)):
            residual += tl.load(residual_part_ptr + block * Q + j)
    squares = tl.full((), 0.0, tl.float64)
    item = tl.load(t + fields.ITEM)
    for part in range(item, item + tl.load(t + fields.ROW_BLOCKS) * tl.load(t + fields.SPANS)):
        squares += tl.load(square_ptr + part)
    entering = tl.zeros((Q,), tl.float64)
    first = tl.load(t + fields.COLUMN_BLOCK)
    for block in range(first, first + tl.load(t + fields.COLUMN_BLOCKS)):
        entering += tl.load(entering_part_ptr + block * Q + j)
    theta = tl.load(theta_ptr + b * Q + j)
    entering = tl.where(theta > 0, tl.sqrt(entering) / tl.where(theta > 0, theta, 1.0), 0.0)
    finite = tl.load(facts_ptr + 2 * b + 1) != 0
    kind = values_ptr.dtype.element_ty
    tl.store(values_ptr + b * Q + j, tl.where(finite, tl.load(s_ptr + b * Q + j), float("nan")).to(kind))
    tl.store(entering_ptr + b * Q + j, tl.where(finite, entering, float("nan")).to(kind))
    tl.store(norm_ptr + b, tl.where(finite, tl.sqrt(squares), float("nan")).to(kind))
    if PAIRS:
        tl.store(residual_ptr + b * Q + j, tl.where(finite, tl.sqrt(residual), float("nan")).to(kind))
