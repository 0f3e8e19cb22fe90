"""Spectrum of a matrix, with the error that it carries.

A spectrum comes from the smaller Gram matrix, accumulated in float64, or from a direct SVD in float64. Either way every
singular value has a bound. csrc/small_eigh/DevNotes.md has the proofs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import torch
from torch import Tensor

from fastrank.arrays import as_matrices
from fastrank.kernels.small_eigh import MOST_VALUES, eigvalsh_many
from fastrank.precision import all_threads, one_thread
from fastrank.small_grams import U64, SmallGram, centred, errors, moves, small_gram_groups

#: On CUDA the eigenvalues of matrices of order k > 512 are cuSOLVER's, whose backward error is taken as EIGH * k * u *
#: lambda_1: LAPACK's own estimate is p(k) * u * lambda_1 with a modestly growing p; in practice the error stays below
#: sqrt(k) * u * lambda_1. All other bounds are our solvers' own and proven.
EIGH = 4.0


@dataclass(frozen=True)
class Spectrum:
    """Singular values of an n x d matrix, and how far each can be from the truth.

    Attributes:
        sigma: [min(n, d)] float64, descending; NaN where `reason` says why.
        bound: [min(n, d)] float64, `|sigma[i] - true sigma[i]| <= bound[i]`, absolute.
        zero_bound: 0-d float64, the bound that a singular value of exactly zero would have.
        n, d: rows (samples) and columns (features) of the matrix.
        dtype: storage dtype of the matrix; it sets the default tolerance of a rank.
        centered: whether the column means were removed.
        method: "gram64" (eigenvalues of a Gram matrix accumulated in float64), "svd64" (direct), "sketch" (of a low
            rank), "factors" (of a product of few rows), or "none".
        reason: why the values are NaN; empty otherwise.
    """

    sigma: Tensor
    bound: Tensor
    zero_bound: Tensor
    n: int
    d: int
    dtype: torch.dtype
    centered: bool
    method: str
    reason: str = ""

    @property
    def floor(self) -> float:
        """sigma / sigma_1 below which this spectrum cannot tell a singular value from zero."""
        if not len(self.sigma) or not self.sigma[0] > 0:
            return 0.0
        return float(self.zero_bound / self.sigma[0])

    def rank_curve(self) -> tuple[Tensor, Tensor]:
        """The whole rank-versus-tolerance curve: at tolerance rtol[i] (relative to sigma_1) the rank is at most i.

        Returns:
            rtol: [k] float64, descending, sigma / sigma_1; rank: [k] int64, 0 .. k-1, the count strictly above it.
        """
        top = self.sigma[:1].clamp_min(torch.finfo(torch.float64).tiny)
        return self.sigma / top, torch.arange(len(self.sigma), device=self.sigma.device)


class Stack:
    """Spectra of one length side by side, for figures that work along the last dimension.

    Attributes:
        members: the m spectra. sigma, bound: [m, k]. zero_bound: [m].
    """

    def __init__(self, members: Sequence[Spectrum]) -> None:
        self.members = members
        self.sigma = torch.stack([s.sigma for s in members])
        self.bound = torch.stack([s.bound for s in members])
        self.zero_bound = torch.stack([s.zero_bound for s in members])


@overload
def spectrum(A: Tensor, centered: bool = ...) -> Spectrum: ...
@overload
def spectrum(A: Sequence[Tensor], centered: bool = ...) -> list[Spectrum]: ...
def spectrum(A, centered=False):
    """All singular values of A [n, d] (rows are samples; torch, NumPy or CuPy), with their bounds; a list gives a list.

    float32, bfloat16 and float16 go through the smaller Gram matrix in float64; float64 goes through a direct SVD,
    because a Gram matrix halves its digits. `centered=True` removes the column means first. Non-finite input gives
    NaN with a reason. A list of matrices of any shapes is worked on in grouped calls, over all threads; no member
    changes another's figures.

    Raises:
        InputError: A is not a floating-point matrix.
    """
    results = _spectra(as_matrices(A), centered, rounded=False)
    return results if isinstance(A, list | tuple) else results[0]


def quick_spectra(matrices: list[Tensor]) -> list[Spectrum]:
    """`spectrum` of matrices whose numbers may be rounded to 24 bits where that is faster: bounds of some 3e-7 of
    ||A||_F, as large as those that its Gram matrix has at zero, but at every value."""
    return _spectra(matrices, centered=False, rounded=True)


def _spectra(matrices: list[Tensor], centered: bool, rounded: bool) -> list[Spectrum]:
    results: list[Spectrum | None] = [None] * len(matrices)
    single = [i for i, X in enumerate(matrices) if X.dtype != torch.float64]
    for grams in small_gram_groups(matrices, single, centered, rounded):
        for index, s in zip(grams, of_grams(list(grams.values())), strict=True):
            results[index] = s
    return [svd_spectrum(X, centered) if s is None else s for X, s in zip(matrices, results, strict=True)]


def of_grams(grams: list[SmallGram]) -> list[Spectrum]:
    return of_eigenvalues(grams, *_eigenvalues([g.G for g in grams]))


def _eigenvalues(G: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Ascending, of lower triangles, with a bound of each matrix; NaN where one is not finite."""
    if not G or G[0].device.type == "cpu":
        return eigvalsh_many(G)
    # Beyond the kernels' orders cuSOLVER takes over.
    grouped = [i for i, g in enumerate(G) if len(g) <= MOST_VALUES]
    found = dict(zip(grouped, zip(*eigvalsh_many([G[i] for i in grouped]), strict=True), strict=True))
    found |= {i: _large(g) for i, g in enumerate(G) if i not in found}
    values, errors = zip(*(found[i] for i in range(len(G))), strict=True)
    return list(values), torch.stack(errors)


def _large(G: Tensor) -> tuple[Tensor, Tensor]:
    """cuSOLVER's eigenvalues and the error that is assumed of them."""
    # It may never return from NaN.
    if not bool(G.isfinite().all()):
        return G.new_full((len(G),), math.nan), G.new_full((), math.nan)
    values = torch.linalg.eigvalsh(G)
    return values, EIGH * len(G) * U64 * values[-1].abs()


@one_thread()
def of_eigenvalues(grams: list[SmallGram], eigenvalues: list[Tensor], eigen_errors: Tensor) -> list[Spectrum]:
    """From ascending eigenvalues; those of all matrices lie in one tensor, for a dozen small operations in all."""
    sizes = [min(g.n, g.d, len(g.G)) for g in grams]
    finite = eigen_errors.isfinite().tolist()  # waits for a device, once
    found = {i: _without_values(g) for i, (g, size) in enumerate(zip(grams, sizes, strict=True)) if not size}
    found |= {i: _not_finite(g) for i, g in enumerate(grams) if sizes[i] and not finite[i]}
    rest = [i for i in range(len(grams)) if i not in found]
    if rest:
        sizes = [sizes[i] for i in rest]
        # Backwards, so that one reversal puts matrices and values in order; of values the largest count.
        tails = [eigenvalues[i][-size:] for i, size in zip(reversed(rest), reversed(sizes), strict=True)]
        values = torch.cat(tails).flip(0).clamp_min(0)
        owners, lengths = _owners(tuple(sizes), values.device)
        remaining = [grams[i] for i in rest]
        eigen_errors = eigen_errors[rest] if found else eigen_errors
        # A matrix's trace is the sum of its eigenvalues.
        sums = torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
        error = errors(remaining, (sums + lengths * eigen_errors) * (1 + lengths * U64))
        error = (error + eigen_errors) * (1 + 8 * U64)  # and the roundings of these very lines
        moved = moves(remaining, values.device)
        of_value, of_matrix = torch.stack([error, moved])[:, owners]
        sigma = values.sqrt()
        down = sigma - (values - of_value).clamp_min(0).sqrt()
        up = (values + of_value).sqrt() - sigma
        bound = torch.maximum(down, up) + 8 * U64 * sigma + of_matrix
        columns = sigma.split(sizes), bound.split(sizes), (error.sqrt() + moved).unbind()
        for i, *column in zip(rest, *columns, strict=True):
            g = grams[i]
            found[i] = Spectrum(*column, g.n, g.d, g.dtype, g.centered, "gram64")
    return [found[i] for i in range(len(grams))]


@lru_cache(maxsize=64)
def _owners(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of values side by side, the number of the matrix that each belongs to, and how many belong to each; the same at
    every training step."""
    lengths = torch.tensor(sizes, device="cpu")
    return torch.repeat_interleave(lengths).to(device), lengths.to(device)


def _without_values(g: SmallGram) -> Spectrum:
    zeros = g.G.new_zeros(min(g.n, g.d))
    return Spectrum(zeros, zeros, g.G.new_zeros(()), g.n, g.d, g.dtype, g.centered, "gram64")


def _not_finite(g: SmallGram) -> Spectrum:
    reason = _where_not_finite(g.G, "features" if len(g.G) == g.d else "samples")
    return nan_spectrum(g.n, g.d, g.dtype, g.centered, g.G.device, reason)


def svd_spectrum(A: Tensor, centered: bool) -> Spectrum:
    """Direct SVD in float64: `bound = max(n, d, 16) * u * sigma_1`, LAPACK's "modest multiple of u sigma_1". For 2 x 2
    to 8 x 8 matrices errors of up to 8 u sigma_1 were seen, so that the sides alone are too little there.

    Of a matrix much longer than wide, or the reverse, it is the SVD of the triangle of its QR, as stable and less work.
    """
    n, d = A.shape
    if not bool(A.isfinite().all()):
        return nan_spectrum(n, d, A.dtype, centered, A.device, "non-finite values in the matrix")
    X, shift_error = centred(A) if centered else (A.double(), 0.0)
    if not X.numel():
        empty = X.new_zeros(min(n, d))
        return Spectrum(empty, empty, X.new_zeros(()), n, d, A.dtype, centered, "svd64")
    try:
        with all_threads():
            if max(n, d) > 2 * min(n, d):
                X = torch.linalg.qr(X if n > d else X.T, mode="r")[1]
            sigma = torch.linalg.svdvals(X)
    except torch.linalg.LinAlgError as error:
        return nan_spectrum(n, d, A.dtype, centered, A.device, f"the SVD did not converge ({error})")
    if not bool(sigma[0].isfinite()):
        return nan_spectrum(n, d, A.dtype, centered, A.device, "singular values beyond the largest float64")
    # A subnormal number is only known to within the smallest one; that zeros are zeros is known.
    smallest = torch.finfo(torch.float64).smallest_normal * 2 * U64 if bool(X.any()) else 0.0
    bound = max(n, d, 16) * (U64 * sigma[0] + smallest) + shift_error
    return Spectrum(sigma, bound.expand_as(sigma), bound, n, d, A.dtype, centered, "svd64")


def _where_not_finite(G: Tensor, kind: str) -> str:
    bad = (~G.diagonal().isfinite()).nonzero().flatten()
    if not len(bad):
        return "non-finite values in the matrix"
    return f"non-finite values in the matrix, in {len(bad)} of {len(G)} {kind}, the first at {int(bad[0])}"


def nan_spectrum(n: int, d: int, dtype: torch.dtype, centered: bool, device: torch.device, reason: str) -> Spectrum:
    nan = torch.full((min(n, d),), math.nan, dtype=torch.float64, device=device)
    return Spectrum(nan, nan, nan.new_full((), math.nan), n, d, dtype, centered, "none", reason)
