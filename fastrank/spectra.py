"""Spectrum and numerical rank of a matrix, each with the error that it carries.

A spectrum comes from the smaller Gram matrix, accumulated in float64, where that resolves the question, and from a
direct SVD in float64 where it does not. Either way every singular value has a bound, and a rank asked of the spectrum
is an interval: what the rank is for every spectrum within the bound. csrc/small_eigh/DevNotes.md has the proofs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from fastrank.arrays import as_matrix
from fastrank.errors import InputError
from fastrank.inertia import count_above, top_brackets
from fastrank.kernels.small_eigh import eigvalsh_many
from fastrank.precision import one_thread
from fastrank.small_grams import U64, SmallGram, centred, small_gram_groups

METHODS = ("auto", "spectrum", "inertia")

#: On CUDA the eigenvalues are cuSOLVER's, whose backward error is taken as EIGH * k * u * lambda_1 for a k x k matrix:
#: LAPACK's own estimate is p(k) * u * lambda_1 with a modestly growing p; in practice the error stays below sqrt(k) * u
#: * lambda_1. On the CPU the bound is our solver's own and proven.
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
        method: "gram64" (eigenvalues of a float64-accumulated Gram matrix), "svd64" (direct), or "none".
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


@dataclass(frozen=True)
class RankEstimate:
    """Numerical rank `#{sigma_i > tol}` with the interval that the spectrum's error leaves open.

    Attributes:
        rank: the count at `tol`; NaN where the spectrum is NaN (see `reason`).
        lo, hi: the smallest and largest count that any spectrum within the bound would give.
        tol: absolute tolerance, `max(atol, rtol * sigma_1)`.
        rtol: the relative tolerance used; it depends on the number of samples by default, so it is always recorded.
        band: (tol - delta, tol + delta), delta being the bound of a singular value at the tolerance.
        floor: sigma / sigma_1 below which the spectrum cannot resolve.
        dtype_limited: the rounding with which the data was stored reaches tol / 3, so the rank is partly its noise.
        torch_ambiguous: `torch.linalg.matrix_rank`'s own rounding (about 64 eps sigma_1) could give another count.
        definition: the formula in words.
        method: what decided: "gram64" (eigenvalues), "inertia" (counts of a factorisation), "svd64", or "none".
    """

    rank: int | float
    lo: int
    hi: int
    tol: float
    rtol: float
    band: tuple[float, float]
    floor: float
    dtype_limited: bool
    torch_ambiguous: bool
    definition: str
    reason: str = ""
    method: str = "none"

    def __int__(self) -> int:
        if self.reason:
            raise ValueError(f"the rank is not a number: {self.reason}")
        return int(self.rank)

    __index__ = __int__

    @property
    def exact(self) -> bool:
        """Whether the interval has width 0."""
        return self.lo == self.hi


def default_rtol(n: int, d: int, dtype: torch.dtype) -> float:
    """`max(n, d) * eps`, as `torch.linalg.matrix_rank`; 16-bit data takes float32's eps, at which it is evaluated."""
    working = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    return max(n, d) * torch.finfo(working).eps


def spectrum_of_gram(
    G: Tensor, *, n: int, d: int, dtype: torch.dtype, centered: bool = False, gram_error: float | Tensor
) -> Spectrum:
    """Spectrum of a matrix X [n, d] from its Gram matrix.

    Args:
        G: [k, k] float64, symmetric: X^T X (k = d) or X X^T (k = n).
        n, d: shape of X. dtype: its storage dtype. centered: whether X is centred.
        gram_error: bound on the 2-norm of the error of G.

    The eigenvalues carry `e`, the sum of gram_error and the eigensolver's own bound (Weyl), so a singular value lies
    between `sqrt(lambda - e)` and `sqrt(lambda + e)`.
    """
    return _of_grams(
        [SmallGram(G, n, d, dtype, centered, torch.as_tensor(gram_error, dtype=G.dtype, device=G.device))]
    )[0]


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
    matrices = _matrices(A)
    results: list[Spectrum | None] = [None] * len(matrices)
    for grams in small_gram_groups(matrices, [i for i, X in enumerate(matrices) if X.dtype != torch.float64], centered):
        for index, s in zip(grams, _of_grams(list(grams.values())), strict=True):
            results[index] = s
    results = [_svd_spectrum(X, centered) if s is None else s for X, s in zip(matrices, results, strict=True)]
    return results if isinstance(A, list | tuple) else results[0]


def matrix_rank(A, rtol: float | None = None, atol: float | None = None, method: str = "auto"):
    """Numerical rank of A [n, d], a list of matrices, or a Spectrum: `#{sigma_i > max(atol, rtol * sigma_1)}`.

    The default `rtol` is `max(n, d) * eps(dtype)`, that of `torch.linalg.matrix_rank`. Every step is taken only for
    the matrices whose interval the one before left wider than 0.

    Args:
        method: "auto": eigenvalues of the Gram matrix, then counts of its inertia, whose bound is sharper, then a
            direct SVD in float64. "spectrum": without the counts. "inertia": without the eigenvalues (sigma_1 comes
            from a bracket); the largest saving is with `rtol=0`, when sigma_1 is not needed. float64 matrices go to
            the SVD at once.

    Returns:
        RankEstimate (`int()` works); a list for a list.
    Raises:
        InputError: a negative tolerance; an unknown method; or a Spectrum asked at a tolerance below its floor, which
            it cannot answer.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise InputError(name, "a finite number >= 0", repr(value))
    if method not in METHODS:
        raise InputError("method", f"one of {', '.join(METHODS)}", repr(method))
    if isinstance(A, Spectrum):
        estimate = estimate_rank(A, rtol, atol)
        if not A.reason and estimate.tol < A.floor * float(A.sigma[0] if len(A.sigma) else 0):
            raise InputError(
                "rtol/atol",
                f"a tolerance of at least {A.floor:.2e} * sigma_1, this spectrum's floor",
                f"{estimate.tol:.3e} (sigma_1 = {float(A.sigma[0]):.3e})",
                "pass the matrix itself, or a spectrum from exact accumulation",
            )
        return estimate
    matrices = _matrices(A)
    results: list[RankEstimate | None] = [None] * len(matrices)
    for grams in small_gram_groups(matrices, [i for i, X in enumerate(matrices) if X.dtype != torch.float64], False):
        found = _ranks_of_grams(list(grams.values()), rtol, atol, method)
        for index, estimate in zip(grams, found, strict=True):
            results[index] = estimate if estimate.exact or estimate.reason else None
    for index, X in enumerate(matrices):
        if results[index] is None:
            results[index] = estimate_rank(_svd_spectrum(X, centered=False), rtol, atol)
    return results if isinstance(A, list | tuple) else results[0]


def rank_counts(s: Spectrum, rtol: float | None = None, atol: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(rank, lo, hi) as 0-d tensors on the spectrum's device, without a host sync; NaN spectra count as (NaN, 0, k)."""
    rtol = default_rtol(s.n, s.d, s.dtype) if rtol is None else rtol
    atol = atol or 0.0
    if not len(s.sigma):
        zero = s.sigma.new_zeros(())
        return zero, zero, zero
    if s.reason:
        return s.sigma[0], s.sigma.new_zeros(()), s.sigma.new_full((), float(len(s.sigma)))
    top, error = s.sigma[0], s.bound[0]
    count = [
        (values > (rtol * first).clamp_min(atol)).sum().double()
        for values, first in (
            (s.sigma, top),
            (s.sigma - s.bound, top + error),
            (s.sigma + s.bound, (top - error).clamp_min(0)),
        )
    ]
    return count[0], count[1], count[2]


def estimate_rank(s: Spectrum, rtol: float | None = None, atol: float | None = None) -> RankEstimate:
    """The RankEstimate that a spectrum supports, however wide; `matrix_rank` is the one that insists."""
    rtol = default_rtol(s.n, s.d, s.dtype) if rtol is None else float(rtol)
    atol = float(atol or 0.0)
    definition = _definition(s, rtol, atol)
    if s.reason:
        nan = math.nan
        return RankEstimate(nan, 0, len(s.sigma), nan, rtol, (nan, nan), nan, False, False, definition, s.reason)
    # In NumPy: of small spectra torch would spend most of the time on calling its own functions.
    sigma, bound, zero_bound = s.sigma.cpu().numpy(), s.bound.cpu().numpy(), float(s.zero_bound)
    top = float(sigma[0]) if len(sigma) else 0.0
    tol, (low, high) = max(atol, rtol * top), _tolerances(rtol, atol, top, float(bound[0]) if len(bound) else 0.0)
    reach = _torch_reach(s.dtype) * top
    near = (sigma > tol - reach).sum() - (sigma > tol + reach).sum()
    noise = _storage_noise(s, float(np.sqrt(np.square(sigma).sum()))) if top else 0.0
    # The bound of a singular value that sits at the tolerance; a Gram spectrum's shrinks as the value grows.
    delta = _error_at(tol, zero_bound) if s.method == "gram64" else zero_bound
    return RankEstimate(
        rank=int((sigma > tol).sum()),
        lo=int((sigma - bound > high).sum()),
        hi=int((sigma + bound > low).sum()),
        tol=tol,
        rtol=rtol,
        band=(tol - delta, tol + delta),
        floor=zero_bound / top if top > 0 else 0.0,
        dtype_limited=noise >= tol / 3 and top > 0,
        torch_ambiguous=bool(near > 0),
        definition=definition,
        method=s.method,
    )


def _matrices(A) -> list[Tensor]:
    if isinstance(A, list | tuple):
        return [as_matrix(f"A[{index}]", member) for index, member in enumerate(A)]
    return [as_matrix("A", A)]


def _ranks_of_grams(grams: list[SmallGram], rtol: float | None, atol: float | None, method: str) -> list[RankEstimate]:
    if method == "inertia":
        return _ranks_by_inertia(grams, rtol, atol)
    spectra = _of_grams(grams)
    estimates = [estimate_rank(s, rtol, atol) for s in spectra]
    if method == "spectrum":
        return estimates
    unsure = [i for i, r in enumerate(estimates) if not r.exact and not r.reason]
    ranges = [
        _tolerances(estimates[i].rtol, float(atol or 0.0), float(spectra[i].sigma[0]), float(spectra[i].bound[0]))
        for i in unsure
    ]
    for i, (lo, hi) in zip(unsure, count_above([grams[i] for i in unsure], ranges), strict=True):
        r = estimates[i]
        lo, hi = max(lo, r.lo), min(hi, r.hi)
        estimates[i] = replace(r, rank=min(max(int(r.rank), lo), hi), lo=lo, hi=hi, method="inertia")
    return estimates


def _ranks_by_inertia(grams: list[SmallGram], rtol: float | None, atol: float | None) -> list[RankEstimate]:
    """From counts alone: sigma_1 by its bracket, then the counts on both sides of the tolerance."""
    results: list[RankEstimate | None] = [None] * len(grams)
    tops: dict[int, tuple[float, float]] = {}
    for i, ((low, high), g) in enumerate(zip(top_brackets(grams), grams, strict=True)):
        if not len(g.G) or not math.isfinite(high):
            # Empty or not finite: no question of accuracy.
            results[i] = estimate_rank(
                _of_eigenvalues(g, g.G.new_full((len(g.G),), math.nan), g.error * math.nan), rtol, atol
            )
        else:
            tops[i] = low, high
    rest = list(tops)
    relative = [default_rtol(g.n, g.d, g.dtype) if rtol is None else float(rtol) for g in grams]
    absolute = float(atol or 0.0)
    ranges = [(max(absolute, relative[i] * tops[i][0]), max(absolute, relative[i] * tops[i][1])) for i in rest]
    reaches = [_torch_reach(grams[i].dtype) * tops[i][1] for i in rest]
    # First so far apart that torch's own rounding lies between: mostly both counts agree, and nothing more is asked.
    apart = [(max(low - r, 0.0), high + r) for (low, high), r in zip(ranges, reaches, strict=True)]
    counts = count_above([grams[i] for i in rest], apart)
    near = [at for at, (lo, hi) in enumerate(counts) if lo != hi]
    closer = count_above([grams[rest[at]] for at in near], [ranges[at] for at in near])
    final = dict(zip(near, closer, strict=True))
    for at, i in enumerate(rest):
        g, (low, high), (lo, hi) = grams[i], ranges[at], final.get(at, counts[at])
        top, zero_bound = sum(tops[i]) / 2, math.sqrt(float(g.error))
        tol = (low + high) / 2
        width = (high - low) / 2 + _error_at(tol, zero_bound)
        noise = _storage_noise(g, math.sqrt(float(g.G.diagonal().sum()))) if top else 0.0
        results[i] = RankEstimate(
            rank=(lo + hi) // 2, lo=lo, hi=hi, tol=tol, rtol=relative[i], band=(tol - width, tol + width),
            floor=zero_bound / top if top else 0.0, dtype_limited=bool(noise >= tol / 3) and top > 0,
            torch_ambiguous=at in final and top > 0, definition=_definition(g, relative[i], absolute), method="inertia",
        )  # fmt: skip
    return results


def _tolerances(rtol: float, atol: float, top: float, error: float) -> tuple[float, float]:
    """The smallest and largest tolerance that sigma_1's own error leaves open."""
    return max(atol, rtol * max(top - error, 0.0)), max(atol, rtol * (top + error))


def _error_at(sigma: float, zero_bound: float) -> float:
    """How far from a Gram matrix's `sigma` the truth can be, above or below: that of lambda is zero_bound^2."""
    error = zero_bound * zero_bound
    below = sigma - math.sqrt(max(sigma * sigma - error, 0.0))
    return max(below, math.sqrt(sigma * sigma + error) - sigma)


def _definition(of: Spectrum | SmallGram, rtol: float, atol: float) -> str:
    how = "centred" if of.centered else "uncentred"
    return f"#{{sigma_i > max({atol:g}, {rtol:.3g} * sigma_1)}}, n={of.n}, d={of.d}, {_name(of.dtype)}, {how}"


def _storage_noise(of: Spectrum | SmallGram, frobenius: float) -> float:
    """About the 2-norm of what rounding to its storage dtype did to a matrix of that Frobenius norm."""
    return torch.finfo(of.dtype).eps / 2 / math.sqrt(3) * frobenius * (of.n**-0.5 + of.d**-0.5)


def _torch_reach(dtype: torch.dtype) -> float:
    """About torch.linalg's own error, relative to sigma_1."""
    return 64 * torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps


def _of_grams(grams: list[SmallGram]) -> list[Spectrum]:
    values, errors = _eigenvalues([g.G for g in grams])
    return [_of_eigenvalues(g, v, e) for g, v, e in zip(grams, values, errors, strict=True)]


def _eigenvalues(G: list[Tensor]) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Ascending, of lower triangles, with a bound; NaN where a matrix is not finite."""
    if G and G[0].device.type == "cpu":
        return eigvalsh_many(G)
    values, errors = [], []
    for g in G:
        # cuSOLVER may never return from NaN.
        finite = bool(g.isfinite().all())
        with one_thread():
            v = torch.linalg.eigvalsh(g) if finite and len(g) else g.new_full((len(g),), math.nan)
        values.append(v)
        errors.append(EIGH * len(g) * U64 * v[-1].abs() if len(g) else g.new_zeros(()))
    return values, errors


def _of_eigenvalues(g: SmallGram, eigenvalues: Tensor, eigen_error: Tensor) -> Spectrum:
    size, k = min(g.n, g.d), len(g.G)
    if size == 0 or k == 0:
        empty = g.G.new_zeros(size)
        return Spectrum(empty, empty, g.G.new_zeros(()), g.n, g.d, g.dtype, g.centered, "gram64")
    if not math.isfinite(eigen_error):
        reason = _where_not_finite(g.G, "features" if k == g.d else "samples")
        return _nan_spectrum(g.n, g.d, g.dtype, g.centered, g.G.device, reason)
    eigenvalues = eigenvalues.flip(0)[:size].clamp_min(0)
    error = g.error + eigen_error
    sigma = eigenvalues.sqrt()
    down = sigma - (eigenvalues - error).clamp_min(0).sqrt()
    up = (eigenvalues + error).sqrt() - sigma
    # The last term: roundings of these very lines.
    bound = torch.maximum(down, up) + 8 * U64 * sigma
    return Spectrum(sigma, bound, error.sqrt(), g.n, g.d, g.dtype, g.centered, "gram64")


def _svd_spectrum(A: Tensor, centered: bool) -> Spectrum:
    """Direct SVD in float64: `bound = max(n, d) * u * sigma_1` (LAPACK: a modest multiple of u * sigma_1).

    Of a matrix much longer than wide, or the reverse, it is the SVD of the triangle of its QR, as stable and less work.
    """
    n, d = A.shape
    if not bool(A.isfinite().all()):
        return _nan_spectrum(n, d, A.dtype, centered, A.device, "non-finite values in the matrix")
    X, shift_error = centred(A) if centered else (A.double(), 0.0)
    if not X.numel():
        empty = X.new_zeros(min(n, d))
        return Spectrum(empty, empty, X.new_zeros(()), n, d, A.dtype, centered, "svd64")
    try:
        if max(n, d) > 2 * min(n, d):
            X = torch.linalg.qr(X if n > d else X.T, mode="r")[1]
        sigma = torch.linalg.svdvals(X)
    except torch.linalg.LinAlgError as error:
        return _nan_spectrum(n, d, A.dtype, centered, A.device, f"the SVD did not converge ({error})")
    bound = max(n, d) * U64 * sigma[0] + shift_error
    return Spectrum(sigma, bound.expand_as(sigma), bound, n, d, A.dtype, centered, "svd64")


def _where_not_finite(G: Tensor, kind: str) -> str:
    bad = (~G.diagonal().isfinite()).nonzero().flatten()
    if not len(bad):
        return "non-finite values in the matrix"
    return f"non-finite values in the matrix, in {len(bad)} of {len(G)} {kind}, the first at {int(bad[0])}"


def _nan_spectrum(n: int, d: int, dtype: torch.dtype, centered: bool, device: torch.device, reason: str) -> Spectrum:
    nan = torch.full((min(n, d),), math.nan, dtype=torch.float64, device=device)
    return Spectrum(nan, nan, nan.new_full((), math.nan), n, d, dtype, centered, "none", reason)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
