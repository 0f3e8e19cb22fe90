"""One step of block subspace iteration for many matrices on CUDA: reference.py's `subspace_step`, in 17 launches for
all matrices of a kind (three fewer without U and residuals); no host sync, no atomics.

Kernels lie in products_triton.py (project, rows, columns), rotations_triton.py (small, rotations, left, right),
orthonormal_triton.py (basis, apply) and residuals_triton.py (residual, finish); jacobi is small_eigh's.

| launch | program | what it does |
|---|---|---|
| project | 64 rows, a span of columns | Y = A V, by spans of A's columns; squares of A |
| rows | 64 rows | adds the spans up; Gram of Y, largest number of Y |
| columns | 64 columns | Z = A^T Y (the second read of A); Gram of Z |
| small | matrix | T makes Y T orthonormal; C = T^T Z^T Z T |
| jacobi | two a matrix | eigenvectors of Y's Gram and of C |
| rotations | matrix | S, and what takes Y to U and Z to V |
| left | 64 rows | U |
| right | 64 columns | Z M, its Gram; what A^T A V and the block's Ritz vectors differ by |
| basis, apply (three times) | matrix; 64 columns | Cholesky QR; lost columns become random ones, which come last |
| project, residual | as above | ||A v - s u|| by 64 rows |
| finish | matrix | sums of the last two; NaN where A is not finite |

A is read three times where the CPU reads it twice: what a block of rows adds to Z is as large as V, and would go to
memory and back for every block. Grams and everything small are float64. Sums over programs are taken in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from fastrank.kernels.rsvd.blocks_triton import alone_warps, step_width
from fastrank.kernels.rsvd.config import DEPENDENT, NEGLIGIBLE, NOISE, PASSES, SKETCH_ROWS, STEP_TILE
from fastrank.kernels.rsvd.orthonormal_triton import orthonormalise
from fastrank.kernels.rsvd.products_triton import columns_kernel, project_kernel, rows_kernel
from fastrank.kernels.rsvd.residuals_triton import finish_kernel, residual_kernel
from fastrank.kernels.rsvd.rotations_triton import left_kernel, right_kernel, rotations_kernel, small_kernel
from fastrank.kernels.small_eigh.config import JACOBI, SWEEPS
from fastrank.kernels.small_eigh.config import tile as jacobi_tile
from fastrank.kernels.small_eigh.triton import jacobi_kernel
from fastrank.kernels.tables import tables
from torch import Tensor


@dataclass(frozen=True)
class _Kind:
    """What one set of launches has in common."""

    dtype: torch.dtype
    width: int
    vector: int


_TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def subspace_step_many(A: list[Tensor], V: list[Tensor], k: int) -> list[tuple[Tensor, ...]]:
    """(U, S, V, residual, entering, norm) of each matrix, as the members of `Step`; V of 64 columns at most."""
    kinds: dict[_Kind, list[int]] = {}
    for i, (a, v) in enumerate(zip(A, V, strict=True)):
        kinds.setdefault(_kind(a, v.shape[1]), []).append(i)
    steps: list[tuple[Tensor, ...]] = [()] * len(A)
    for kind, members in kinds.items():
        found = _steps(kind, [A[i] for i in members], [V[i] for i in members], k)
        for i, step in zip(members, found, strict=True):
            steps[i] = step
    return steps


def _kind(a: Tensor, q: int) -> _Kind:
    width = step_width(q)
    vector = 16 // a.element_size()
    wide = a.stride(1) == 1 and a.data_ptr() % 16 == 0 and a.stride(0) % vector == 0 and a.shape[1] % vector == 0
    return _Kind(a.dtype, width, vector if wide else 1)


def _steps(kind: _Kind, A: list[Tensor], V: list[Tensor], k: int) -> list[tuple[Tensor, ...]]:
    acc, Q, count, device = V[0].dtype, kind.width, len(A), A[0].device
    rows, warps = STEP_TILE.rows, STEP_TILE.warps
    blocks = [(triton.cdiv(a.shape[0], rows), triton.cdiv(a.shape[1], rows)) for a in A]
    spans = [max(1, triton.cdiv(a.shape[1], SKETCH_ROWS)) for a in A]
    sums = row, column, row_block, column_block, part, item, u_first, v_first = tuple([0] for _ in range(8))
    table = []
    for a, v, (high, wide), s in zip(A, V, blocks, spans, strict=True):
        (n, d), q = a.shape, v.shape[1]
        table += [a.data_ptr(), n, d, *a.stride(), v.data_ptr(), *v.stride(), q, min(k, q)]
        table += [row[-1], column[-1], row_block[-1], high, column_block[-1], wide, s, part[-1], item[-1]]
        for first, size in zip(sums, (n, d, high, wide, s * n, high * s, n * min(k, q), d * q), strict=True):
            first.append(first[-1] + size)
    sizes = [v.shape[1] for v in V]
    jacobi = [x for copy in range(2) for b, q in enumerate(sizes) for x in ((copy * count + b) * Q * Q, q, Q, 1)]
    items = [
        [x for b, ((high, _), s) in enumerate(zip(blocks, spans, strict=True))
         for block in range(high) for span in range(s) for x in (b, block, span)],
        [x for b, (high, _) in enumerate(blocks) for block in range(high) for x in (b, block)],
        [x for b, (_, wide) in enumerate(blocks) for block in range(wide) for x in (b, block)],
    ]  # fmt: skip
    # A matrix's eigenvalues begin at multiples of Q, vectors at those of Q^2.
    places = [Q * b for b in range(2 * count)], [Q * Q * b for b in range(2 * count)]
    table, u_at, v_at, jacobi, by_span, by_row, by_column, value_at, vector_at = tables(
        [table, u_first[:-1], v_first[:-1], jacobi, *items, *places], device
    )

    def new(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    parts, y, z = (new(size[-1], Q, dtype=acc) for size in (part, row, column))
    basis = [new(column[-1], Q, dtype=acc) for _ in range(2)]
    row_gram, column_gram = new(row_block[-1], Q, Q), new(column_block[-1], Q, Q)
    largest, residual_part, entering_part = new(row_block[-1]), new(row_block[-1], Q), new(column_block[-1], Q)
    small, values, vectors = new(2 * count, Q, Q), new(2 * count, Q), new(2 * count, Q, Q)
    T, M, X = new(count, Q, Q), new(count, Q, Q), new(count, Q, Q)
    facts, S, theta, lost = new(count, 2), new(count, Q), new(count, Q), new(count, Q, dtype=torch.int32)
    U, after = new(u_first[-1], dtype=acc), new(v_first[-1], dtype=acc)
    S_out, entering, residual = (new(count, Q, dtype=acc) for _ in range(3))
    norm, squares = new(count, dtype=acc), new(item[-1])
    numbers, shape = tl.float64 if acc == torch.float64 else tl.float32, jacobi_tile(Q, JACOBI)
    tall = {"ROWS": rows, "Q": Q, "num_warps": warps}
    read = {"TYPE": _TYPES[kind.dtype], "ACC": numbers, "VECTOR": kind.vector, "DEPTH": STEP_TILE.depth, **tall}
    alone = {"Q": Q, "num_warps": alone_warps(Q)}
    noise = NOISE[acc] ** 2
    span_programs, row_programs, column_programs = (item[-1],), (row_block[-1],), (column_block[-1],)
    with torch.cuda.device_of(y):
        project_kernel[span_programs](by_span, table, None, parts, squares, FIRST=True, SPAN=SKETCH_ROWS, **read)
        rows_kernel[row_programs](by_row, table, parts, y, row_gram, largest, ACC=numbers, **tall)
        columns_kernel[column_programs](by_column, table, y, largest, z, column_gram, **read)
        small_kernel[(count,)](
            table, row_gram, column_gram, largest, small, T, facts, count, DEPENDENT**2, noise, **alone
        )
        jacobi_kernel[(2 * count,)](
            jacobi, small, new(2 * count * 2 * Q * Q), values, vectors, value_at, vector_at,
            FLAT=True, N=Q, HALF=shape.rows, SWEEPS=SWEEPS, num_warps=shape.warps,
        )  # fmt: skip
        rotations_kernel[(count,)](
            table, values, vectors, T, facts, M, X, S, theta, count, NEGLIGIBLE[acc], noise, **alone
        )
        right_kernel[column_programs](
            by_column, table, z, M, S, X, theta, facts, basis[0], column_gram, entering_part, ACC=numbers, **tall
        )
        orthonormalise(table, by_column, basis, column_gram, T, lost, facts, after, v_at, Q)
        if k:
            left_kernel[row_programs](by_row, table, y, M, S, facts, U, u_at, **tall)
            project_kernel[span_programs](
                by_span, table, basis[PASSES % 2], parts, None, FIRST=False, SPAN=SKETCH_ROWS, **read
            )  # fmt: skip
            residual_kernel[row_programs](by_row, table, parts, U, S, residual_part, u_at, ACC=numbers, **tall)
        finish_kernel[(count,)](
            table, S, theta, facts, squares, residual_part, entering_part, S_out, entering, norm, residual,
            PAIRS=k > 0, **alone,
        )  # fmt: skip
    found = []
    for b, (a, q) in enumerate(zip(A, sizes, strict=True)):
        (n, d), top = a.shape, min(k, q)
        left, right = U[u_first[b] : u_first[b + 1]].view(n, top), after[v_first[b] : v_first[b + 1]].view(d, q)
        found.append((left, S_out[b, :q], right, residual[b, :top], entering[b, :q], norm[b]))
    return found
