"""What a warm step on the CPU moves and computes: two reads of A, and products with blocks of q and k columns.

Everything else is small beside that where n and d are well above q: Gram matrices and products of the two tall blocks,
in float64, are counted; the algebra of q x q is not.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fastrank.kernels.cost import Launch

#: Numbers in a vector, to which blocks are padded: of AVX-512, by bytes of a number.
LANES = {4: 16, 8: 8}


def step(n: int, d: int, q: int, k: int, dtype: torch.dtype) -> Launch:
    """One `subspace_step_many` of A [n, d], V [d, q] and k pairs; k = 0: without the second read."""
    k = min(k, q)
    size = 8 if dtype == torch.float64 else 4
    unit = "fp64" if size == 8 else "fp32"
    padded, top = (-(-columns // LANES[size]) * LANES[size] for columns in (q, k))
    reads = 2 if k else 1
    # A V, A^T Y; then A V' for k columns. || A ||_F takes a multiplication and an addition.
    products, issued = (4 * n * d * a + 2 * n * d * b for a, b in ((q, k), (padded, top)))
    # Gram matrices of Y and Z, U = Y M and V' = Z M; the entering residuals are two products in A's own precision.
    small, small_issued = (4 * (n + d) * a * a + 2 * n * d for a in (q, padded))
    entering, entering_issued = (4 * d * a * a for a in (q, padded))
    return Launch(
        "subspace_step",
        reads * n * d * dtype.itemsize + size * d * q,
        size * (n * k + d * q + 3 * q + k),
        _sum((unit, products + entering), ("fp64", small)),
        _sum((unit, issued + entering_issued), ("fp64", small_issued)),
    )


def steps(shapes: Iterable[tuple[int, int]], q: int, k: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    """Of many matrices, with blocks of at most q columns."""
    return tuple(step(n, d, min(q, n, d), k, dtype) for n, d in shapes)


def _sum(*terms: tuple[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for unit, count in terms:
        total[unit] = total.get(unit, 0) + count
    return total
