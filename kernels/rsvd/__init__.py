"""Test matrices, sketches, warm steps of block subspace iteration and cosines between directions, for many matrices of
any shapes in one call.

A test matrix is a function of seed, stream, kind and place alone: the same bits on every device, whatever the number of
threads, and the global random state is not touched. Products are in float32 for float32 and 16-bit data (TF32 never),
in float64 for float64; everything of the size of a block's columns squared is in float64. Results depend neither on the
number of threads nor on what else is in the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from fastrank.kernels.rsvd import register
from fastrank.kernels.rsvd.config import KINDS, MAX_COLUMNS, ZETA
from fastrank.kernels.rsvd.validate import (
    check_cosines,
    check_distances,
    check_orthonormal,
    check_sketch,
    check_steps,
    check_test_matrix,
)  # fmt: skip
from fastrank.kernels.tracing import unobserved
from torch import Tensor

__all__ = [
    "KINDS",
    "MAX_COLUMNS",
    "ZETA",
    "Step",
    "cosines_many",
    "distances_many",
    "orthonormal_many",
    "sketch",
    "subspace_step_many",
    "test_matrix",
]


class Step(NamedTuple):
    """What one step gives for A [n, d] and V [d, q], k at most q; float64 for float64 A, else float32.

    Attributes:
        U: [n, k] left Ritz vectors, orthonormal; a zero column where S is 0.
        S: [q] Ritz values, descending; 0 where A V cannot tell them from rounding.
        V: [d, q] orthonormal to rounding, always: the right Ritz vectors, and random ones where S is 0.
        residual: [k], ||A v_i - s_i u_i||, measured; A^T u_i = s_i v_i up to rounding, so that a singular value of A
            lies within the two of s_i.
        entering: [q], ||A^T A v - theta^2 v|| / theta of the Ritz pairs of the V that came in, descending theta.
        norm: [], the Frobenius norm of A: what of it S does not have lies outside the block.

    NaN or Inf in A: U, S, residual, entering and norm are NaN, V is the one that came in.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residual: Tensor
    entering: Tensor
    norm: Tensor


def test_matrix(
    rows: int,
    columns: int,
    seed: int,
    stream: int = 0,
    kind: str = "gaussian",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    impl: str | None = None,
) -> Tensor:
    """A random matrix [rows, columns] of which every number is a function of its place and these arguments.

    Args:
        seed: 64 bits. stream: 32 bits; another stream, other numbers.
        kind: "gaussian" (standard normal), "rademacher" (+1 or -1), or "sparse_sign": in each row one +-1/sqrt(8) in
            each of 8 blocks of columns (of fewer columns, +-1/sqrt(columns) in each).
        dtype: the numbers are float32 and rounded (or widened) to it.
    """
    check_test_matrix(rows, columns, seed, stream, kind, dtype)
    device = torch.device("cpu" if device is None else device)
    if unobserved(()):
        return register.test_matrix(rows, columns, _signed(seed), stream, kind, dtype, device, impl)
    return torch.ops.fastrank.test_matrix(rows, columns, _signed(seed), stream, kind, dtype, device, impl)


def sketch(
    A: Tensor, q: int, seed: int, stream: int = 0, kind: str = "gaussian", impl: str | None = None
) -> Tensor:  # fmt: skip
    """A [n, d] times `test_matrix(d, q, seed, stream, kind)`, which is never in memory as a whole: [n, q].

    Raises:
        TypeError, ValueError: an argument that does not fit; q above 128.
        RuntimeError: an impl that cannot run here.
    """
    check_sketch(A, q, seed, stream, kind)
    return torch.ops.fastrank.sketch(A.detach(), q, _signed(seed), stream, kind, impl)


def subspace_step_many(
    A: list[Tensor], V: list[Tensor], k: int, impl: str | None = None, entering: bool = True
) -> list[Step]:
    """One step of block subspace iteration for each of many matrices, with two reads of each.

    Args:
        A: [n, d], float64, float32, bfloat16 or float16. Read in place where the numbers of a row lie side by side,
            copied once otherwise. Not differentiated.
        V: [d, q] orthonormal, q <= min(d, 128); float64 for float64 A, else float32.
        k: pairs whose U and residual are wanted; 0: none, which saves the second read.
        entering: whether the residuals of the entering block are wanted, another eigenproblem; empty otherwise.

    Raises:
        TypeError, ValueError: an argument that does not fit.
        RuntimeError: an impl that cannot run here.
    """
    check_steps(A, V, k)
    A, V = [a.detach() for a in A], [v.detach() for v in V]
    run = register.step_many if unobserved((*A, *V)) else torch.ops.fastrank.subspace_step_many
    return [Step(*members) for members in zip(*run(A, V, k, impl, entering), strict=True)]


def orthonormal_many(
    X: list[Tensor],
    impl: str | None = None,
    *,
    fresh: int = 0,
    seeds: Sequence[int] = (),
    streams: Sequence[int] = (),
) -> list[Tensor]:
    """For each X [d, p] an orthonormal basis [d, q] of it and, behind it, `fresh` Gaussian columns; q = p + fresh.

    Its first j columns span the first j of those. Columns that depend on others before them, or are not finite, are
    replaced by random directions, which come last. X is float32 or float64, q <= min(d, 128).

    Args:
        fresh: columns of `test_matrix(d, fresh, seed, stream)`, from the seed and stream of each X.

    Raises:
        TypeError, ValueError: an argument that does not fit.
        RuntimeError: an impl that cannot run here.
    """
    check_orthonormal(X, fresh, seeds, streams)
    X = [x.detach() for x in X]
    draws = [number for seed, stream in zip(seeds, streams, strict=True) for number in (_signed(seed), stream)]
    run = register.orthonormal_many if unobserved(tuple(X)) else torch.ops.fastrank.orthonormal_many
    return run(X, impl, fresh, draws)


def cosines_many(W: list[Tensor], A: list[Tensor], impl: str | None = None) -> list[Tensor]:
    """|W A^T| of each pair of W [k, d] and A [l, d], at most 1: of unit rows, the cosines between them, [k, l].

    Float32 (TF32 never, by the kernel) or float64, any strides; a row of zeros gives zeros. Not differentiated.

    Raises:
        TypeError, ValueError: an argument that does not fit.
        RuntimeError: an impl that cannot run here.
    """
    check_cosines(W, A)
    W, A = [w.detach() for w in W], [a.detach() for a in A]
    run = register.cosines_many if unobserved((*W, *A)) else torch.ops.fastrank.cosines_many
    return run(W, A, impl)


def distances_many(X: list[Tensor], Y: list[Tensor], impl: str | None = None) -> Tensor:
    """[number of pairs, 2] float64: `||X - Y||_F` and `||X||_F` of each pair of X and Y [n, d], of one dtype.

    One read of both. Each errs by at most 4 u of itself, u the unit roundoff of the data's dtype (2^-24 for 16-bit
    data), and by sqrt(n d tiny) where squares leave its range below; above, it is infinite. Not differentiated.

    Raises:
        TypeError, ValueError: an argument that does not fit.
        RuntimeError: an impl that cannot run here.
    """
    check_distances(X, Y)
    X, Y = [x.detach() for x in X], [y.detach() for y in Y]
    run = register.distances_many if unobserved((*X, *Y)) else torch.ops.fastrank.distances_many
    return run(X, Y, impl)


def _signed(seed: int) -> int:
    """The seed's 64 bits as the signed integer that an op takes."""
    return ((seed + 2**63) & 0xFFFFFFFFFFFFFFFF) - 2**63
