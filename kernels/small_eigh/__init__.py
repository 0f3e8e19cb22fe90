"""Many small symmetric eigenproblems in float64, each with a bound on its own error.

A matrix is its lower triangle; nothing above the diagonal is read. Matrices of any sizes go into one call and are
spread over the threads whole, so a result depends neither on its company nor on the number of threads. The bounds hold
for the matrix in memory, whatever error it carries itself; csrc/small_eigh/DevNotes.md proves them.
"""

from __future__ import annotations

import torch
from fastrank.kernels.small_eigh import register as _register  # noqa: F401  (defines torch.ops.fastrank.*)
from fastrank.kernels.small_eigh.config import MOST_VALUES, MOST_VECTORS
from fastrank.kernels.small_eigh.validate import check_matrices, check_shift
from torch import Tensor

__all__ = ["MOST_VALUES", "MOST_VECTORS", "eigh_many", "eigvalsh_many", "inertia_many"]


def eigvalsh_many(G: list[Tensor], impl: str | None = None) -> tuple[list[Tensor], Tensor]:
    """All eigenvalues of each symmetric G [m, m] float64, any strides.

    Returns:
        values: a list of [m] float64, ascending; error: [len(G)] float64, `|values[i][j] - true| <= error[i]` for the
        j-th eigenvalue of the matrix in memory. NaN of both where G is not finite.
    Raises:
        TypeError, ValueError: what is not a list of square float64 matrices on one device.
        RuntimeError: an impl that cannot run here.
    """
    check_matrices(G)
    values, error = torch.ops.fastrank.eigvalsh_many([g.detach() for g in G], impl)
    return values, error


def inertia_many(G: list[Tensor], shift: Tensor, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """How many eigenvalues of each symmetric G [m, m] float64 exceed its shift, without computing them.

    By Sylvester's law, from the signs of D in a factorisation L D L^T of G - shift I.

    Args:
        shift: [len(G)] float64.

    Returns:
        count: [len(G)] int64; slack: [len(G)] float64: `count` eigenvalues of some matrix within 2-norm `slack` of G
        exceed `shift`, so #{lambda > shift + slack} <= count <= #{lambda > shift - slack}. slack is inf where the
        factorisation broke down; count -1, slack inf where G or the shift is not finite.
    Raises:
        as `eigvalsh_many`; also a shift that does not fit.
    """
    check_matrices(G)
    check_shift(shift, G)
    return torch.ops.fastrank.inertia_many([g.detach() for g in G], shift.detach(), impl)


def eigh_many(G: list[Tensor], impl: str | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Eigenvalues, ascending, and orthonormal eigenvectors (columns) of each symmetric G [m, m] float64, m <= 64.

    NaN of both where G is not finite. Raises as `eigvalsh_many`; also for larger matrices.
    """
    check_matrices(G, vectors=True)
    both = torch.ops.fastrank.eigh_many([g.detach() for g in G], impl)
    return both[: len(G)], both[len(G) :]
