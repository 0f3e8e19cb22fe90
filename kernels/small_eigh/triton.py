"""Small symmetric eigenproblems on CUDA, many orders in one launch; no host sync, no atomics.

`eigvalsh_many`: two launches a size class. `tridiagonal_kernel` reduces each matrix by Householder reflections, one
program a matrix: a step reads and writes the rest of the matrix once, in L2, applying the last step's rank-two update
while it multiplies by this step's reflector, and adds up what it may have erred by. `bisect_kernel` finds each
eigenvalue by Sturm counts, a lane an eigenvalue. `inertia_many` takes a single count (`count_kernel`) in its place.
`eigh_many`: one launch; two-sided Jacobi in round-robin order, order / 2 rotations at once.

Matrices are scaled by a power of two, so that squares neither overflow nor vanish. Bounds: DevNotes.md here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fastrank.kernels.rounding_triton import mul_rn
from fastrank.kernels.small_eigh.config import (
    COUNTED,
    HALVINGS,
    INNER,
    JACOBI,
    LANES,
    SWEEPS,
    TILES,
    Tile,
    budget,
    tile,
)  # fmt: skip
from fastrank.kernels.tables import tables
from torch import Tensor

#: What the kernels read of a matrix, a row of the table: address, order, strides.
_FIELDS = tl.constexpr(4)
#: What `tridiagonal_kernel` leaves beside diagonal and squared off-diagonal: see `_facts`.
_FACTS = tl.constexpr(4)


@triton.jit
def _sum(x, N: tl.constexpr, INNER: tl.constexpr):
    """The sum of N numbers in two levels, so that no term passes more than their two depths of additions."""
    if N <= INNER:
        return tl.sum(x, 0)
    else:
        return tl.sum(tl.sum(tl.reshape(x, (N // INNER, INNER)), 1), 0)


@triton.jit
def _row_sums(x, ROWS: tl.constexpr, N: tl.constexpr, INNER: tl.constexpr):
    if N <= INNER:
        return tl.sum(x, 1)
    else:
        return tl.sum(tl.sum(tl.reshape(x, (ROWS, N // INNER, INNER)), 2), 1)


@triton.jit
def _matrix(table_ptr, b):
    """(address, order, strides)."""
    at = table_ptr + b * _FIELDS
    return tl.load(at).to(tl.pointer_type(tl.float64)), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)


@triton.jit
def _lower(matrix, m, stride_row, stride_column, i, j):
    """Entries [i, j] of the symmetric matrix whose lower triangle is there."""
    row, column = tl.maximum(i[:, None], j[None, :]).to(tl.int64), tl.minimum(i[:, None], j[None, :]).to(tl.int64)
    return tl.load(matrix + row * stride_row + column * stride_column, mask=row < m, other=0.0)


@triton.jit
def _scaled_copy(
    matrix, m, stride_row, stride_column, copy_ptr, N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Copies a matrix times a power of two that brings its largest entry into [1, 2) (a subnormal one, near);
    returns the power, and by what to multiply to undo it: NaN where an entry is not finite."""
    largest = tl.full((), 0.0, tl.float64)
    for row in range(0, m, ROWS):
        for column in range(0, row + ROWS, COLUMNS):
            i, j = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
            x = tl.abs(_lower(matrix, m, stride_row, stride_column, i, j))
            x = tl.where(x < float("inf"), x, float("inf"))  # NaN too
            largest = tl.maximum(largest, tl.max(tl.max(x, 1), 0))
    exponent = largest.to(tl.int64, bitcast=True) >> 52
    exponent = tl.minimum(tl.maximum(exponent, 1), 2045)
    power = ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
    undo = (exponent << 52).to(tl.float64, bitcast=True)
    undo = tl.where(largest < float("inf"), undo, float("nan"))
    for row in range(0, m, ROWS):
        for column in range(0, m, COLUMNS):
            i, j = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
            x = _lower(matrix, m, stride_row, stride_column, i, j)
            inside = (i < m)[:, None] & (j < m)[None, :]
            tl.store(copy_ptr + i[:, None] * N + j[None, :], x * power, mask=inside)
    return power, undo


@triton.jit
def tridiagonal_kernel(
    table_ptr, work_ptr, result_ptr, c, f,
    N: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """T of one matrix: `result` takes its diagonal [N], the squares of its off-diagonal [N], and the facts: what
    undoes the scaling; the bound of what the reduction erred by; a bound of ||T||; the power that scales.

    `work` is the matrix [N, N] and five vectors [N]: v and w of the update to be applied, v of this step, its product,
    the off-diagonal. `c` and `f` as of `budget`.
    """
    b = tl.program_id(0)
    matrix, m, stride_row, stride_column = _matrix(table_ptr, b)
    work_ptr += b.to(tl.int64) * (N * N + 5 * N)
    result_ptr += b.to(tl.int64) * (2 * N + _FACTS)
    v_ptr, w_ptr = work_ptr + N * N, work_ptr + N * N + N
    next_ptr, product_ptr, off_ptr = w_ptr + N, w_ptr + 2 * N, w_ptr + 3 * N
    lane = tl.arange(0, N)
    zero = tl.zeros((N,), tl.float64)
    tl.store(v_ptr + lane, zero)
    tl.store(w_ptr + lane, zero)
    power, undo = _scaled_copy(matrix, m, stride_row, stride_column, work_ptr, N, ROWS, COLUMNS)
    tl.debug_barrier()

    erred = tl.full((), 0.0, tl.float64)
    for k in range(0, m):
        # Row k as the update leaves it.
        v, w = tl.load(v_ptr + lane), tl.load(w_ptr + lane)
        v_k, w_k = tl.load(v_ptr + k), tl.load(w_ptr + k)
        x = tl.load(work_ptr + k * N + lane, mask=(lane >= k) & (lane < m), other=0.0)
        x -= mul_rn(v_k, w) + mul_rn(w_k, v)
        tl.store(result_ptr + k, tl.sum(tl.where(lane == k, x, 0.0), 0))
        y = tl.where((lane > k) & (lane < m), x, 0.0)
        alpha = tl.sum(tl.where(lane == k + 1, y, 0.0), 0)
        norm = tl.sqrt(_sum(y * y, N, INNER))
        # The reflector I - v v^T, v^T v = 2, that takes y to a multiple of the first unit vector. A y of one number
        # stays as it is, and so does 0.
        off = tl.where(alpha < 0, norm, -norm)
        reflected = (k < m - 2) & (norm > 0)
        scale = tl.where(reflected, 1 / tl.sqrt(norm * (norm + tl.abs(alpha))), 0.0)
        u = tl.where(reflected, tl.where(lane == k + 1, alpha - off, y) * scale, 0.0)
        tl.store(off_ptr + k, tl.where(reflected, off, alpha))
        tl.store(next_ptr + lane, u)
        tl.debug_barrier()

        squares = tl.full((), 0.0, tl.float64)
        for row in range((k + 1) // ROWS * ROWS, m, ROWS):
            i = row + tl.arange(0, ROWS)
            row_there = ((i > k) & (i < m))[:, None]
            v_i, w_i = tl.load(v_ptr + i)[:, None], tl.load(w_ptr + i)[:, None]
            product = tl.zeros((ROWS, COLUMNS), tl.float64)
            square = tl.zeros((ROWS, COLUMNS), tl.float64)
            for column in range((k + 1) // COLUMNS * COLUMNS, m, COLUMNS):
                j = column + tl.arange(0, COLUMNS)
                at = work_ptr + i[:, None] * N + j[None, :]
                v_j, w_j = tl.load(v_ptr + j)[None, :], tl.load(w_ptr + j)[None, :]
                # Whole rows, for wide accesses; nobody reads again what lies beside the block.
                t = tl.load(at, mask=row_there, other=0.0)
                # Products rounded one by one: the sum is the same for [i, j] and [j, i], the matrix stays symmetric.
                t -= mul_rn(v_i, w_j) + mul_rn(w_i, v_j)
                t = tl.where(((j > k) & (j < m))[None, :], t, 0.0)
                tl.store(at, t, mask=row_there)
                product += t * tl.load(next_ptr + j)[None, :]
                square += t * t
            tl.store(product_ptr + i, _row_sums(product, ROWS, COLUMNS, INNER), mask=i < m)
            squares += tl.sum(tl.sum(square, 1), 0)
        erred += c * norm + f * tl.sqrt(squares)
        tl.debug_barrier()

        p = tl.load(product_ptr + lane, mask=(lane > k) & (lane < m), other=0.0)
        p -= 0.5 * _sum(p * u, N, INNER) * u
        tl.store(v_ptr + lane, u)
        tl.store(w_ptr + lane, p)
        tl.debug_barrier()

    d = tl.load(result_ptr + lane, mask=lane < m, other=0.0)
    off = tl.load(off_ptr + lane, mask=lane < m - 1, other=0.0)
    before = tl.load(off_ptr + lane - 1, mask=(lane > 0) & (lane < m), other=0.0)
    tl.store(result_ptr + N + lane, tl.where(tl.abs(off) < 2.0**-100, 0.0, off * off))
    tl.store(result_ptr + 2 * N, undo)
    tl.store(result_ptr + 2 * N + 1, erred * 2.0**-53)
    tl.store(result_ptr + 2 * N + 2, tl.max(tl.abs(d) + tl.abs(off) + tl.abs(before), 0))
    tl.store(result_ptr + 2 * N + 3, power)


@triton.jit
def _count(diagonal_ptr, square_ptr, m, most, x):
    """How many eigenvalues of T lie below x, lane by lane: signs that change along the minors' determinants."""
    tiny = 2.0**-100
    last = tl.full(x.shape, 0.0, tl.float64)
    now = tl.full(x.shape, 1.0, tl.float64)
    nothing = last
    squared = nothing
    found = tl.zeros(x.shape, tl.int32)
    for k in range(0, most):
        inside = k < m
        a = tl.load(diagonal_ptr + k, mask=inside, other=0.0) - x
        a = tl.where(tl.abs(a) < tiny, tiny, a)
        after = a * now - squared * last
        after = tl.where(after == 0, a * now * tiny, after)
        found += (inside & ((after < 0) != (now < 0))).to(tl.int32)
        squared = tl.load(square_ptr + k, mask=inside, other=0.0) + nothing
        size = tl.abs(after)
        scale = tl.where(size > 2.0**300, 2.0**-300, tl.where(size < 2.0**-300, 2.0**300, 1.0))
        last, now = now * scale, after * scale
    return found


@triton.jit
def bisect_kernel(
    table_ptr, result_ptr, values_ptr, first_ptr, error_ptr,
    N: tl.constexpr, LANES: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """Eigenvalues [LANES] of one T, ascending, from `first` of `values` on; the bound of their error."""
    b = tl.program_id(0)
    m = tl.load(table_ptr + b * _FIELDS + 1)
    result_ptr += b.to(tl.int64) * (2 * N + _FACTS)
    undo, erred = tl.load(result_ptr + 2 * N), tl.load(result_ptr + 2 * N + 1)
    radius = tl.load(result_ptr + 2 * N + 2)
    # Half the last interval, and 16 u of what the counts are of another matrix by.
    error = (erred + radius * (16 * 2.0**-53 + 2.0 ** (1 - HALVINGS))) * 1.01 * undo + 2.0**-1070
    if tl.program_id(1) == 0:
        tl.store(error_ptr + b, error)
    if tl.program_id(1) * LANES >= m:
        return
    wanted = tl.program_id(1) * LANES + tl.arange(0, LANES)
    low = tl.full((LANES,), 0.0, tl.float64) - radius
    high = tl.full((LANES,), 0.0, tl.float64) + radius
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        below = _count(result_ptr, result_ptr + N, m, m, middle) > wanted
        low, high = tl.where(below, low, middle), tl.where(below, middle, high)
    values = 0.5 * (low + high)
    first = tl.load(first_ptr + b)
    tl.store(values_ptr + first + wanted, values * undo, mask=wanted < m)


@triton.jit(do_not_specialize=["matrices", "most"])
def count_kernel(
    table_ptr, result_ptr, shift_ptr, count_ptr, slack_ptr, matrices, most,
    N: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """How many eigenvalues of each T exceed its shift, a matrix a lane."""
    b = tl.program_id(0) * COUNTED + tl.arange(0, COUNTED)
    inside = b < matrices
    m = tl.load(table_ptr + b * _FIELDS + 1, mask=inside, other=0)
    at = result_ptr + b.to(tl.int64) * (2 * N + _FACTS)
    facts = at + 2 * N
    undo, erred = tl.load(facts, mask=inside, other=0.0), tl.load(facts + 1, mask=inside, other=0.0)
    radius, power = tl.load(facts + 2, mask=inside, other=0.0), tl.load(facts + 3, mask=inside, other=0.0)
    shift = tl.load(shift_ptr + b, mask=inside, other=0.0) * power
    # Beyond the spectrum the count is that of its end.
    shift = tl.where(shift > 2 * radius + 1, 2 * radius + 1, tl.where(shift < -2 * radius - 1, -2 * radius - 1, shift))
    count = m - _count(at, at + N, m, most, shift)
    finite = (undo == undo) & (shift == shift)
    tl.store(count_ptr + b, tl.where(finite, count, -1), mask=inside)
    slack = (erred + (radius + 1) * (32 * 2.0**-53)) * 1.01 * undo + 2.0**-1070
    tl.store(slack_ptr + b, tl.where(finite, slack, float("inf")), mask=inside)


@triton.jit
def jacobi_kernel(
    table_ptr, flat_ptr, work_ptr, values_ptr, vectors_ptr, first_ptr, first_vector_ptr,
    FLAT: tl.constexpr, N: tl.constexpr, HALF: tl.constexpr, SWEEPS: tl.constexpr,
):  # fmt: skip
    """Eigenvalues and vectors of one matrix, of an address or, if FLAT, a place in `flat`. `work`: the matrix and the
    vectors' transpose, [N, N] each."""
    b = tl.program_id(0)
    matrix, m, stride_row, stride_column = _matrix(table_ptr, b)
    if FLAT:
        matrix = flat_ptr + tl.load(table_ptr + b * _FIELDS)
    work_ptr += b.to(tl.int64) * (2 * N * N)
    vector_ptr = work_ptr + N * N
    _, undo = _scaled_copy(matrix, m, stride_row, stride_column, work_ptr, N, HALF, HALF)
    lane = tl.arange(0, N)
    half = tl.arange(0, HALF)
    eye = tl.where(lane[:, None] == lane[None, :], 1.0, 0.0).to(tl.float64)
    tl.store(vector_ptr + lane[:, None] * N + lane[None, :], eye)
    tl.debug_barrier()

    players = m + m % 2
    sweep = 0
    going = undo == undo
    while going:
        for turn in range(0, players - 1):
            # Round robin: the last one stays, the others move on by one a turn.
            one = (turn + half) % (players - 1)
            other = tl.where(half == 0, players - 1, (turn - half + players - 1) % (players - 1))
            p, q = tl.minimum(one, other), tl.maximum(one, other)
            # One may play against nobody, m: its row is there, and rotated by nothing.
            p_there, plays = (half < players // 2) & (p < m), (half < players // 2) & (q < m)
            app = tl.load(work_ptr + p * N + p, mask=p_there, other=0.0)
            aqq = tl.load(work_ptr + q * N + q, mask=plays, other=0.0)
            apq = tl.load(work_ptr + p * N + q, mask=plays, other=0.0)
            theta = (aqq - app) / tl.where(apq == 0, 1.0, 2 * apq)
            t = 1 / (tl.abs(theta) + tl.sqrt(theta * theta + 1))
            t = tl.where(apq == 0, 0.0, tl.where(theta < 0, -t, t))
            c = 1 / tl.sqrt(t * t + 1)
            s = t * c
            # Below, a number is read by the one thread that writes it: a tile has no fewer numbers than threads.
            tl.debug_barrier()
            # All 2 x 2 blocks of the matrix, rotated from both sides.
            row, column = p[:, None] * N, q[:, None] * N
            pp, pq = work_ptr + row + p[None, :], work_ptr + row + q[None, :]
            qp, qq = work_ptr + column + p[None, :], work_ptr + column + q[None, :]
            pp_there, pplays = p_there[:, None] & p_there[None, :], p_there[:, None] & plays[None, :]
            qp_there, qplays = plays[:, None] & p_there[None, :], plays[:, None] & plays[None, :]
            x, y = tl.load(pp, mask=pp_there, other=0.0), tl.load(pq, mask=pplays, other=0.0)
            z, w = tl.load(qp, mask=qp_there, other=0.0), tl.load(qq, mask=qplays, other=0.0)
            c_i, s_i, c_j, s_j = c[:, None], s[:, None], c[None, :], s[None, :]
            x, z = c_i * x - s_i * z, s_i * x + c_i * z
            y, w = c_i * y - s_i * w, s_i * y + c_i * w
            x, y = c_j * x - s_j * y, s_j * x + c_j * y
            z, w = c_j * z - s_j * w, s_j * z + c_j * w
            own = half[:, None] == half[None, :]
            tl.store(pp, tl.where(own, (app - t * apq)[:, None], x), mask=pp_there)
            tl.store(pq, tl.where(own, 0.0, y), mask=pplays)
            tl.store(qp, tl.where(own, 0.0, z), mask=qp_there)
            tl.store(qq, tl.where(own, (aqq + t * apq)[:, None], w), mask=qplays)
            at_p, at_q = vector_ptr + row + lane[None, :], vector_ptr + column + lane[None, :]
            x = tl.load(at_p, mask=plays[:, None], other=0.0)
            y = tl.load(at_q, mask=plays[:, None], other=0.0)
            tl.store(at_p, c_i * x - s_i * y, mask=plays[:, None])
            tl.store(at_q, s_i * x + c_i * y, mask=plays[:, None])
            tl.debug_barrier()
        inside = (lane < m)[:, None] & (lane < m)[None, :]
        a = tl.load(work_ptr + lane[:, None] * N + lane[None, :], mask=inside, other=0.0)
        all_of_it = tl.sum(tl.sum(a * a, 1), 0)
        beside = tl.sum(tl.sum(tl.where(lane[:, None] == lane[None, :], 0.0, a * a), 1), 0)
        sweep += 1
        going = (beside > all_of_it * 2.0**-106) & (sweep < SWEEPS)

    values = tl.load(work_ptr + lane * N + lane, mask=lane < m, other=float("inf")) * undo
    before = (values[None, :] == values[:, None]) & (lane[None, :] < lane[:, None])
    rank = tl.sum(((values[None, :] < values[:, None]) | before).to(tl.int32), 1)
    rank = tl.where(undo == undo, rank, lane)
    tl.store(values_ptr + tl.load(first_ptr + b) + rank, values, mask=lane < m)
    inside = (lane < m)[:, None] & (lane < m)[None, :]
    x = tl.load(vector_ptr + lane[:, None] * N + lane[None, :], mask=inside, other=0.0)
    x = tl.where(undo == undo, x, float("nan"))
    at = vectors_ptr + tl.load(first_vector_ptr + b) + lane[None, :] * m + rank[:, None]
    tl.store(at, x, mask=inside)


def eigvalsh_many(matrices: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """(ascending eigenvalues of each, bound of their error) of float64 matrices, whose lower triangles are read."""
    device = matrices[0].device
    error = torch.empty(len(matrices), dtype=torch.float64, device=device)
    values: list[Tensor] = [error] * len(matrices)
    for shape, members in _classes(matrices, TILES):
        group = [matrices[i] for i in members]
        sizes = [len(G) for G in group]
        first, total = _offsets(sizes)
        table, first = _table(group, [first])
        flat = torch.empty(total, dtype=torch.float64, device=device)
        errors = error if len(group) == len(matrices) else error.new_empty(len(group))
        with torch.cuda.device_of(error):
            result = _tridiagonal(group, table, shape)
            bisect_kernel[len(group), triton.cdiv(max(sizes), LANES)](
                table, result, flat, first, errors, N=shape.size, LANES=LANES, HALVINGS=HALVINGS, num_warps=2
            )
        if errors is not error:
            error[_indices(members, device)] = errors
        for i, own in zip(members, flat.split(sizes), strict=True):
            values[i] = own
    return values, error


def inertia_many(matrices: Sequence[Tensor], shift: Tensor) -> tuple[Tensor, Tensor]:
    """(how many eigenvalues of each exceed its shift, by how much another matrix they may be of)."""
    device = matrices[0].device
    count = torch.empty(len(matrices), dtype=torch.int64, device=device)
    slack = torch.empty(len(matrices), dtype=torch.float64, device=device)
    for shape, members in _classes(matrices, TILES):
        group = [matrices[i] for i in members]
        everything = len(group) == len(matrices)
        at = None if everything else _indices(members, device)
        shifts, counts, slacks = (shift.contiguous(), count, slack) if everything else (
            shift[at], count.new_empty(len(group)), slack.new_empty(len(group))
        )  # fmt: skip
        (table,) = _table(group, [])
        with torch.cuda.device_of(count):
            result = _tridiagonal(group, table, shape)
            count_kernel[(triton.cdiv(len(group), COUNTED),)](
                table, result, shifts, counts, slacks, len(group), max(len(G) for G in group),
                N=shape.size, COUNTED=COUNTED, num_warps=1,
            )  # fmt: skip
        if not everything:
            count[at], slack[at] = counts, slacks
    return count, slack


def eigh_many(matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(ascending eigenvalues, eigenvectors as columns) of float64 matrices of order 64 at most."""
    device = matrices[0].device
    values: list[Tensor] = [torch.empty(0)] * len(matrices)
    vectors = list(values)
    for shape, members in _classes(matrices, JACOBI):
        group = [matrices[i] for i in members]
        sizes = [len(G) for G in group]
        squares = [m * m for m in sizes]
        (first, total), (first_vector, entries) = _offsets(sizes), _offsets(squares)
        table, first, first_vector = _table(group, [first, first_vector])
        flat = torch.empty(total, dtype=torch.float64, device=device)
        flat_vectors = torch.empty(entries, dtype=torch.float64, device=device)
        work = torch.empty(len(group) * 2 * shape.size**2, dtype=torch.float64, device=device)
        with torch.cuda.device_of(flat):
            jacobi_kernel[(len(group),)](
                table, None, work, flat, flat_vectors, first, first_vector,
                FLAT=False, N=shape.size, HALF=shape.rows, SWEEPS=SWEEPS, num_warps=shape.warps,
            )  # fmt: skip
        own = zip(members, flat.split(sizes), flat_vectors.split(squares), sizes, strict=True)
        for i, one, many, m in own:
            values[i], vectors[i] = one, many.view(m, m)
    return values, vectors


def _tridiagonal(group: list[Tensor], table: Tensor, shape: Tile) -> Tensor:
    size = shape.size
    work, result = (
        torch.empty(len(group) * numbers, dtype=torch.float64, device=table.device)
        for numbers in (size * size + 5 * size, 2 * size + _FACTS.value)
    )
    c, f = budget(size, shape.columns)
    tridiagonal_kernel[(len(group),)](
        table, work, result, float(c), float(f),
        N=size, ROWS=shape.rows, COLUMNS=shape.columns, INNER=INNER, num_warps=shape.warps,
    )  # fmt: skip
    return result


def _classes(matrices: Sequence[Tensor], tiles: tuple[Tile, ...]) -> list[tuple[Tile, list[int]]]:
    """The matrices of each tile, by their places."""
    found: dict[Tile, list[int]] = {}
    for i, G in enumerate(matrices):
        found.setdefault(tile(len(G), tiles), []).append(i)
    return list(found.items())


def _offsets(sizes: list[int]) -> tuple[list[int], int]:
    first = [0]
    for size in sizes:
        first.append(first[-1] + size)
    return first[:-1], first[-1]


def _table(group: list[Tensor], more: list[list[int]]) -> list[Tensor]:
    """What the kernels read of the matrices, and other whole numbers of each."""
    rows = [number for G in group for number in (G.data_ptr(), len(G), *G.stride())]
    return tables([rows, *more], group[0].device)


def _indices(members: list[int], device: torch.device) -> Tensor:
    (at,) = tables([members], device)
    return at
