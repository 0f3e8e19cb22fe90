"""Numerical rank with the interval that its error leaves open.

A rank is an interval: what it is for every spectrum within the spectrum's bound. Gram matrices answer where they
resolve the question, a direct SVD in float64 where they do not. csrc/small_eigh/DevNotes.md has the proofs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from fastrank.arrays import as_matrices
from fastrank.errors import InputError
from fastrank.gram import GramState
from fastrank.inertia import count_above, settled_bracket, top_brackets
from fastrank.small_grams import SmallGram, small_gram_groups
from fastrank.spectra import Spectrum, Stack, of_eigenvalues, of_grams, svd_spectrum

METHODS = ("auto", "spectrum", "inertia")


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


def matrix_rank(A, rtol: float | None = None, atol: float | None = None, method: str = "auto"):
    """Numerical rank of A [n, d], a list of matrices, a Spectrum, a GramState or a list of these.

    It is `#{sigma_i > max(atol, rtol * sigma_1)}`. The default `rtol` is `max(n, d) * eps(dtype)`, that of
    `torch.linalg.matrix_rank`; 16-bit data takes float32's eps, at which it is evaluated. `rtol` holds beside an `atol`
    too (torch then takes 0). Every step is taken only for the matrices whose interval the one before left wider than 0.

    Args:
        method: "auto": eigenvalues of the Gram matrix, then counts of its inertia, whose bound is sharper, then a
            direct SVD in float64. "spectrum": without the counts. "inertia": without the eigenvalues, sigma_1 from a
            bracket; an answer by an independent way, at about the cost of "auto". float64 matrices go to the SVD at
            once. A GramState on the CPU is asked by "inertia" first unless "spectrum" is wanted: where Lanczos
            settles sigma_1, and the counts the rank, no eigenvalue is computed.

    Returns:
        RankEstimate (`int()` works); a list for a list.
    Raises:
        InputError: a negative tolerance; an unknown method; or a Spectrum or GramState asked at a tolerance below its
            floor, which it cannot answer.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and (isinstance(value, bool) or not (isinstance(value, Real) and 0 <= value < math.inf)):
            raise InputError(name, "a finite number >= 0", repr(value))
    if method not in METHODS:
        raise InputError("method", f"one of {', '.join(METHODS)}", repr(method))
    if isinstance(A, GramState) and (method == "spectrum" or A.device.type != "cpu"):
        A = A.spectrum()
    if isinstance(A, Spectrum):
        return _above_the_floor(estimate_rank(A, rtol, atol), float(A.zero_bound))
    if isinstance(A, GramState):
        gram = A.small_gram()
        bracket = settled_bracket(gram)
        estimate = _ranks_by_inertia([gram], rtol, atol, [bracket])[0] if bracket else None
        if estimate is None or not estimate.exact:
            (estimate,) = _ranks_of_grams([gram], rtol, atol, method)
        return _above_the_floor(estimate, float(gram.zero_bound))
    if isinstance(A, list | tuple) and A and all(isinstance(member, Spectrum | GramState) for member in A):
        return [matrix_rank(member, rtol, atol, method) for member in A]
    matrices = as_matrices(A)
    results: list[RankEstimate | None] = [None] * len(matrices)
    for rounded in (True, False):
        left = [i for i, X in enumerate(matrices) if results[i] is None and X.dtype != torch.float64]
        for grams in small_gram_groups(matrices, left, False, rounded):
            found = _ranks_of_grams(list(grams.values()), rtol, atol, method)
            for index, estimate in zip(grams, found, strict=True):
                results[index] = estimate if estimate.exact or estimate.reason else None
    for index, X in enumerate(matrices):
        if results[index] is None:
            results[index] = estimate_rank(svd_spectrum(X, centered=False), rtol, atol)
    return results if isinstance(A, list | tuple) else results[0]


def _above_the_floor(estimate: RankEstimate, zero_bound: float) -> RankEstimate:
    """What has no rows left to ask cannot answer below it."""
    if not estimate.reason and estimate.floor and estimate.tol < zero_bound:
        raise InputError(
            "rtol/atol",
            f"a tolerance of at least {estimate.floor:.2e} * sigma_1, this spectrum's floor",
            f"{estimate.tol:.3e} (sigma_1 = {zero_bound / estimate.floor:.3e})",
            "pass the matrix itself, or a spectrum from exact accumulation",
        )
    return estimate


def rank_counts(s: Spectrum | Stack, rtol: float | None = None, atol: float | None = None) -> tuple[Tensor, ...]:
    """(rank, lo, hi), float64, on the spectrum's device, without a host sync; NaN spectra count as (NaN, 0, k).

    0-d of a Spectrum, [m] of a Stack.
    """
    if rtol is None and isinstance(s, Stack):
        each = [default_rtol(one.n, one.d, one.dtype) for one in s.members]
        rtol = torch.tensor(each, dtype=torch.float64, device="cpu").to(s.sigma.device, non_blocking=True)[:, None]
    elif rtol is None:
        rtol = default_rtol(s.n, s.d, s.dtype)
    top, error = s.sigma[..., :1], s.bound[..., :1]
    rank, lo, hi = (
        (values > (rtol * first).clamp_min(atol or 0.0)).sum(-1).double()
        for values, first in (
            (s.sigma, top),
            (s.sigma - s.bound, top + error),
            (s.sigma + s.bound, (top - error).clamp_min(0)),
        )
    )
    broken = s.sigma.isnan().any(-1)
    return rank.masked_fill(broken, math.nan), lo, hi.masked_fill(broken, float(s.sigma.shape[-1]))


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
    noise = _storage_noise(s, top * float(np.sqrt(np.square(sigma / top).sum()))) if top > 0 else 0.0
    # The bound of a singular value that sits at the tolerance: a Gram spectrum's shrinks as the value grows, so that
    # the first one below has at least as much.
    below = bound[sigma <= tol]
    delta = float(below[0]) if s.method == "gram64" and len(below) else zero_bound
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


def _ranks_of_grams(grams: list[SmallGram], rtol: float | None, atol: float | None, method: str) -> list[RankEstimate]:
    if method == "inertia":
        return _ranks_by_inertia(grams, rtol, atol, top_brackets(grams))
    spectra = of_grams(grams)
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


def _ranks_by_inertia(
    grams: list[SmallGram], rtol: float | None, atol: float | None, brackets: list[tuple[float, float]]
) -> list[RankEstimate]:
    """From the brackets of each sigma_1 and counts on both sides of the tolerance."""
    results: list[RankEstimate | None] = [None] * len(grams)
    tops: dict[int, tuple[float, float]] = {}
    for i, ((low, high), g) in enumerate(zip(brackets, grams, strict=True)):
        if not len(g.G) or not math.isfinite(high):
            # Empty or not finite: no question of accuracy.
            (broken,) = of_eigenvalues([g], [g.G.new_full((len(g.G),), math.nan)], g.error[None] * math.nan)
            results[i] = estimate_rank(broken, rtol, atol)
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
        g, (low, high) = grams[i], ranges[at]
        lo, hi = (min(count, g.n, g.d) for count in final.get(at, counts[at]))
        top, zero_bound = sum(tops[i]) / 2, float(g.zero_bound)
        tol = (low + high) / 2
        width = (high - low) / 2 + _error_at(tol, math.sqrt(float(g.error))) + float(g.moved)
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
    dtype, how = str(of.dtype).removeprefix("torch."), "centred" if of.centered else "uncentred"
    return f"#{{sigma_i > max({atol:g}, {rtol:.3g} * sigma_1)}}, n={of.n}, d={of.d}, {dtype}, {how}"


def _storage_noise(of: Spectrum | SmallGram, frobenius: float) -> float:
    """About the 2-norm of what rounding to its storage dtype did to a matrix of that Frobenius norm."""
    return torch.finfo(of.dtype).eps / 2 / math.sqrt(3) * frobenius * (of.n**-0.5 + of.d**-0.5)


def _torch_reach(dtype: torch.dtype) -> float:
    """About torch.linalg's own error, relative to sigma_1."""
    return 64 * torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps
