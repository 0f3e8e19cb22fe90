"""Spectrum and numerical rank of a matrix, each with the error that it carries.

A spectrum comes from the smaller Gram matrix, accumulated in float64, where that resolves the question, and from a
direct SVD in float64 where it does not. Either way every singular value has a bound, and a rank asked of the spectrum
is an interval: what the rank is for every spectrum within the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from fastrank.arrays import as_matrix
from fastrank.errors import InputError
from fastrank.kernels.gram import depth, gram_accumulate_, gram_dual
from fastrank.precision import one_thread

#: Unit roundoff of float64.
U64 = torch.finfo(torch.float64).eps / 2

#: The symmetric eigensolver's backward error is taken as EIGH * k * u * lambda_1 for a k x k matrix. LAPACK's own
#: estimate is p(k) * u * lambda_1 with a modestly growing p; in practice the error stays below sqrt(k) * u * lambda_1.
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

    The eigenvalues carry `e = gram_error + EIGH * k * u * lambda_1` (Weyl), so a singular value lies between
    `sqrt(lambda - e)` and `sqrt(lambda + e)`.
    """
    size, k = min(n, d), G.shape[0]
    if k == 0 or size == 0:
        empty = G.new_zeros(size)
        return Spectrum(empty, empty, G.new_zeros(()), n, d, dtype, centered, "gram64")
    if not bool(G.isfinite().all()):
        return _nan_spectrum(n, d, dtype, centered, G.device, _where_not_finite(G, "features" if k == d else "samples"))
    with one_thread():
        eigenvalues = torch.linalg.eigvalsh(G)
    eigenvalues = eigenvalues.flip(0)[:size].clamp_min(0)
    error = torch.as_tensor(gram_error, dtype=torch.float64, device=G.device) + EIGH * k * U64 * eigenvalues[0]
    sigma = eigenvalues.sqrt()
    down = sigma - (eigenvalues - error).clamp_min(0).sqrt()
    up = (eigenvalues + error).sqrt() - sigma
    return Spectrum(sigma, torch.maximum(down, up), error.sqrt(), n, d, dtype, centered, "gram64")


@overload
def spectrum(A: Tensor, centered: bool = ...) -> Spectrum: ...
@overload
def spectrum(A: Sequence[Tensor], centered: bool = ...) -> list[Spectrum]: ...
def spectrum(A, centered=False):
    """All singular values of A [n, d] (rows are samples; torch, NumPy or CuPy), with their bounds; a list gives a list.

    float32, bfloat16 and float16 go through the smaller Gram matrix in float64; float64 goes through a direct SVD,
    because a Gram matrix halves its digits. `centered=True` removes the column means first. Non-finite input gives
    NaN with a reason.

    Raises:
        InputError: A is not a floating-point matrix.
    """
    if isinstance(A, list | tuple):
        return [spectrum(member, centered) for member in A]
    A = as_matrix("A", A)
    if A.dtype == torch.float64:
        return _svd_spectrum(A, centered)
    return _gram_spectrum(A, centered)


def matrix_rank(A, rtol: float | None = None, atol: float | None = None):
    """Numerical rank of A [n, d], a list of matrices, or a Spectrum: `#{sigma_i > max(atol, rtol * sigma_1)}`.

    The default `rtol` is `max(n, d) * eps(dtype)`, that of `torch.linalg.matrix_rank`. A matrix whose interval is
    wider than 0 by its Gram spectrum is evaluated again by a direct SVD in float64.

    Returns:
        RankEstimate (`int()` works); a list for a list.
    Raises:
        InputError: a negative tolerance; or a Spectrum asked at a tolerance below its floor, which it cannot answer.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise InputError(name, "a finite number >= 0", repr(value))
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
    if isinstance(A, list | tuple):
        return [matrix_rank(member, rtol, atol) for member in A]
    A = as_matrix("A", A)
    estimate = estimate_rank(spectrum(A), rtol, atol)
    if estimate.exact or A.dtype == torch.float64 or estimate.reason:
        return estimate
    return estimate_rank(_svd_spectrum(A, centered=False), rtol, atol)


def rank_counts(s: Spectrum, rtol: float | None = None, atol: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(rank, lo, hi) as 0-d tensors on the spectrum's device, without a host sync; NaN spectra count as (NaN, 0, k)."""
    rtol = default_rtol(s.n, s.d, s.dtype) if rtol is None else rtol
    atol = atol or 0.0
    if not len(s.sigma):
        zero = s.sigma.new_zeros(())
        return zero, zero, zero
    if s.reason:
        return s.sigma[0], s.sigma.new_zeros(()), s.sigma.new_full((), float(len(s.sigma)))
    tol = (rtol * s.sigma[0]).clamp_min(atol)
    slack = rtol * s.bound[0]
    count = [
        (values > t).sum().double()
        for values, t in (
            (s.sigma, tol),
            (s.sigma - s.bound, tol + slack),
            (s.sigma + s.bound, (tol - slack).clamp_min(0)),
        )
    ]
    return count[0], count[1], count[2]


def estimate_rank(s: Spectrum, rtol: float | None = None, atol: float | None = None) -> RankEstimate:
    """The RankEstimate that a spectrum supports, however wide; `matrix_rank` is the one that insists."""
    rtol = default_rtol(s.n, s.d, s.dtype) if rtol is None else float(rtol)
    atol = float(atol or 0.0)
    rank, lo, hi = (float(c) for c in rank_counts(s, rtol, atol))
    definition = f"#{{sigma_i > max({atol:g}, {rtol:.3g} * sigma_1)}}, n={s.n}, d={s.d}, {_name(s.dtype)}, " + (
        "centred" if s.centered else "uncentred"
    )
    if s.reason:
        return RankEstimate(
            math.nan,
            int(lo),
            int(hi),
            math.nan,
            rtol,
            (math.nan, math.nan),
            math.nan,
            False,
            False,
            definition,
            s.reason,
        )
    top = float(s.sigma[0]) if len(s.sigma) else 0.0
    tol = max(atol, rtol * top)
    # The bound of a singular value that sits at the tolerance; a Gram spectrum's shrinks as the value grows.
    delta = float(s.zero_bound)
    if s.method == "gram64":
        delta = tol - math.sqrt(max(tol * tol - delta * delta, 0.0))
    frobenius = float(s.sigma.square().sum().sqrt())
    noise = torch.finfo(s.dtype).eps / 2 / math.sqrt(3) * frobenius * (s.n**-0.5 + s.d**-0.5) if top else 0.0
    reach = 64 * torch.finfo(torch.float32 if s.dtype != torch.float64 else s.dtype).eps * top
    near = int((s.sigma > tol - reach).sum() - (s.sigma > tol + reach).sum())
    return RankEstimate(
        rank=int(rank),
        lo=int(lo),
        hi=int(hi),
        tol=tol,
        rtol=rtol,
        band=(tol - delta, tol + delta),
        floor=s.floor,
        dtype_limited=bool(noise >= tol / 3) and top > 0,
        torch_ambiguous=near > 0,
        definition=definition,
    )


def _gram_spectrum(A: Tensor, centered: bool) -> Spectrum:
    n, d = A.shape
    shift_error = 0.0
    X = A
    if centered and n:
        # The subtraction rounds once, relative to |x| + |mean|: a perturbation of at most 2 u ||A||_F.
        X = A.double()
        shift_error = 2 * U64 * float(X.norm())
        X = X - X.mean(0)
    if n < d:
        G, roundings = gram_dual(X), depth(d, n, X.dtype, "exact", X.device.type)
    else:
        G, roundings = X.new_zeros(d, d, dtype=torch.float64), depth(n, d, X.dtype, "exact", X.device.type)
        gram_accumulate_(G, X.new_zeros(d, dtype=torch.float64), X)
        G = G.tril() + G.tril(-1).T
    # ||E||_2 <= c * ||X||_F^2, proven in kernels/gram/bound.py; the trace itself carries the same relative error.
    c = roundings.factor(extra=1)
    trace = G.diagonal().sum() / (1 - c)
    error = c * trace + roundings.tiny * n * d + shift_error * (2 * trace.sqrt() + shift_error)
    return spectrum_of_gram(G, n=n, d=d, dtype=A.dtype, centered=centered, gram_error=error)


def _svd_spectrum(A: Tensor, centered: bool) -> Spectrum:
    """Direct SVD in float64: `bound = max(n, d) * u * sigma_1` (LAPACK: a modest multiple of u * sigma_1)."""
    n, d = A.shape
    if not bool(A.isfinite().all()):
        return _nan_spectrum(n, d, A.dtype, centered, A.device, "non-finite values in the matrix")
    X = A.double()
    shift_error = 0.0
    if centered and n:
        shift_error = 2 * U64 * float(X.norm())
        X = X - X.mean(0)
    if not X.numel():
        empty = X.new_zeros(min(n, d))
        return Spectrum(empty, empty, X.new_zeros(()), n, d, A.dtype, centered, "svd64")
    try:
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
