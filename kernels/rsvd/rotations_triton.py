"""From Y and Z to singular vectors on CUDA: the small matrices of the subspace step, and U and V turned by them."""

from __future__ import annotations

import triton
import triton.language as tl
from fastrank.kernels.rsvd import fields
from fastrank.kernels.rsvd.blocks_triton import store_gram, store_rows, store_small, sum_parts, times
from fastrank.kernels.rsvd.orthonormal_triton import orthonormaliser
from fastrank.kernels.rsvd.products_triton import power_of


@triton.jit
def small_kernel(
    table_ptr, row_gram_ptr, column_gram_ptr, largest_ptr, gram_ptr, t_ptr, facts_ptr, matrices, least, noise,
    Q: tl.constexpr,
):  # fmt: skip
    """T of Y's Gram matrix; `gram` takes that and, behind those of all matrices, C = T^T Z^T Z T; `facts` the power
    that Z was scaled by and whether all is finite."""
    b = tl.program_id(0)
    t = table_ptr + b * fields.COUNT
    j = tl.arange(0, Q)
    power, finite = power_of(largest_ptr, t)
    G = sum_parts(row_gram_ptr, tl.load(t + fields.ROW_BLOCK), tl.load(t + fields.ROW_BLOCKS), j, Q)
    H = sum_parts(column_gram_ptr, tl.load(t + fields.COLUMN_BLOCK), tl.load(t + fields.COLUMN_BLOCKS), j, Q)
    finite = finite & (
        tl.sum(tl.sum(((tl.abs(G) < float("inf")) & (tl.abs(H) < float("inf"))).to(tl.int32), 1), 0) == Q * Q
    )
    G, H = tl.where(finite, G, 0.0), tl.where(finite, H, 0.0)
    # Columns of Y that are rounding alone take no part.
    eye = j[:, None] == j[None, :]
    row, column = tl.sum(tl.where(eye, G, 0.0), 1), tl.sum(tl.where(eye, G, 0.0), 0)
    noise = noise * tl.max(row, 0)
    measured = tl.where((row > noise)[:, None] & (column > noise)[None, :], G, 0.0)
    T = orthonormaliser(measured, j, tl.load(t + fields.Q), least, True, Q)
    store_small(gram_ptr, G, b, j, Q)
    store_small(t_ptr, T, b, j, Q)
    # H, then H T, where C will be.
    there = gram_ptr + (b + matrices).to(tl.int64) * Q * Q
    t_ptr += b.to(tl.int64) * Q * Q
    store_small(gram_ptr, H, b + matrices, j, Q)
    tl.debug_barrier()
    product = times(there, Q, 1, Q, j, Q, t_ptr, j, Q, Q)
    tl.debug_barrier()
    store_small(gram_ptr, product, b + matrices, j, Q)
    tl.debug_barrier()
    C = times(t_ptr, 1, Q, Q, j, Q, there, j, Q, Q)
    tl.debug_barrier()
    store_small(gram_ptr, C, b + matrices, j, Q)
    tl.store(facts_ptr + 2 * b, power)
    tl.store(facts_ptr + 2 * b + 1, finite.to(tl.float64))


@triton.jit
def _eigen(values_ptr, vectors_ptr, b, q, j, Q: tl.constexpr):
    """Eigenvalues, the largest first, and vectors of matrix b, whose ascending values and [q, q] vectors lie apart by
    Q and Q^2."""
    values = tl.load(values_ptr + b * Q + q - 1 - j, mask=j < q, other=0.0)
    inside = (j < q)[:, None] & (j < q)[None, :]
    at = vectors_ptr + b.to(tl.int64) * Q * Q + j[:, None] * q + (q - 1 - j)[None, :]
    return tl.maximum(values, 0.0), tl.load(at, mask=inside, other=0.0)


@triton.jit
def rotations_kernel(
    table_ptr, values_ptr, vectors_ptr, t_ptr, facts_ptr, m_ptr, x_ptr, s_ptr, theta_ptr, matrices, negligible, noise,
    Q: tl.constexpr,
):  # fmt: skip
    """M = T W, S and the Ritz vectors X and values theta of the block that came in."""
    b = tl.program_id(0)
    q, j = tl.load(table_ptr + b * fields.COUNT + fields.Q), tl.arange(0, Q)
    theta2, X = _eigen(values_ptr, vectors_ptr, b, q, j, Q)
    s2, W = _eigen(values_ptr, vectors_ptr, b + matrices, q, j, Q)
    store_small(m_ptr, W, b, j, Q)  # until it is multiplied by T
    s = tl.sqrt(s2) / tl.load(facts_ptr + 2 * b)
    s = tl.where(s > negligible * tl.max(s, 0), s, 0.0)
    tl.debug_barrier()
    there = b.to(tl.int64) * Q * Q
    M = times(t_ptr + there, Q, 1, Q, j, Q, m_ptr + there, j, Q, Q)
    tl.debug_barrier()
    store_small(m_ptr, M, b, j, Q)
    store_small(x_ptr, X, b, j, Q)
    tl.store(s_ptr + b * Q + j, s)
    tl.store(theta_ptr + b * Q + j, tl.sqrt(tl.where(theta2 > noise * tl.max(theta2, 0), theta2, 0.0)))


@triton.jit
def left_kernel(
    item_ptr, table_ptr, y_ptr, m_ptr, s_ptr, facts_ptr, u_ptr, first_ptr, ROWS: tl.constexpr, Q: tl.constexpr
):  # fmt: skip
    item = item_ptr + tl.program_id(0) * 2
    b, block = tl.load(item), tl.load(item + 1)
    t = table_ptr + b * fields.COUNT
    n, k, i, j = tl.load(t + fields.N), tl.load(t + fields.K), block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    finite = tl.load(facts_ptr + 2 * b + 1) != 0
    u = times(y_ptr + tl.load(t + fields.ROW) * Q, Q, 1, n, i, Q, m_ptr + b.to(tl.int64) * Q * Q, j, ROWS, Q)
    u = tl.where((tl.load(s_ptr + b * Q + j) > 0)[None, :], u, 0.0)
    u = tl.where(finite, u, float("nan"))
    at = u_ptr + tl.load(first_ptr + b) + i[:, None] * k + j[None, :]
    tl.store(at, u.to(u_ptr.dtype.element_ty), mask=(i < n)[:, None] & (j < k)[None, :])


@triton.jit
def right_kernel(
    item_ptr, table_ptr, z_ptr, m_ptr, s_ptr, x_ptr, theta_ptr, facts_ptr, basis_ptr, gram_ptr, entering_ptr,
    ACC: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Z M / S, and the squares of Z X - V X theta^2 by columns."""
    item = item_ptr + tl.program_id(0) * 2
    b, block = tl.load(item), tl.load(item + 1)
    t = table_ptr + b * fields.COUNT
    d, q, i, j = tl.load(t + fields.D), tl.load(t + fields.Q), block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    power, finite = tl.load(facts_ptr + 2 * b), tl.load(facts_ptr + 2 * b + 1) != 0
    z_ptr += tl.load(t + fields.COLUMN) * Q
    there = b.to(tl.int64) * Q * Q
    s, theta = tl.load(s_ptr + b * Q + j), tl.load(theta_ptr + b * Q + j)
    new = times(z_ptr, Q, 1, d, i, Q, m_ptr + there, j, ROWS, Q) / power
    new *= tl.where(s > 0, 1 / tl.where(s > 0, s, 1.0), 0.0)[None, :]
    new = tl.where(finite, new, 0.0)
    store_rows(basis_ptr, new, d, tl.load(t + fields.COLUMN), i, j, Q)
    v_ptr, stride_d = tl.load(t + fields.V).to(tl.pointer_type(ACC)), tl.load(t + fields.V_STRIDE_D)
    change = times(v_ptr, stride_d, tl.load(t + fields.V_STRIDE_Q), d, i, q, x_ptr + there, j, ROWS, Q)
    change = times(z_ptr, Q, 1, d, i, Q, x_ptr + there, j, ROWS, Q) / power - change * (theta * theta)[None, :]
    start = block * ROWS
    block += tl.load(t + fields.COLUMN_BLOCK)
    store_gram(gram_ptr, basis_ptr, d, tl.load(t + fields.COLUMN), start, block, j, ROWS, Q)
    tl.store(entering_ptr + block * Q + j, tl.sum(change * change, 0))
