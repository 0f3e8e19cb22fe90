"""Counts of singular values above a tolerance without computing them: the inertia of G - tau^2 I of a Gram matrix G.

A count holds for a matrix within its slack of G, and G within its error of the true Gram matrix, so the shift is moved
away from tau^2 by as much (Weyl): what is counted then bounds the true count from above or from below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastrank.kernels.small_eigh import eigvalsh_many, inertia_many
from fastrank.precision import one_thread
from fastrank.small_grams import U64, SmallGram

#: Steps of Lanczos for sigma_1. A dozen finds a leading value that stands out to many digits; where it does not, the
#: bracket is as wide as the residual.
STEPS = 12
#: Where the bracket of lambda_1 that Lanczos proves is as narrow, relative to it, no factorisation is asked for one.
SETTLED = 1e-9
#: A slack is at most this many roundings of the traces of G and, twice, of the shift's multiple of the identity, where
#: nothing grows (csrc/small_eigh/ldlt.h; orders 64 to 1000, flat and decaying spectra). A guess too small counts again.
ROUNDINGS = 128


def count_above(grams: list[SmallGram], ranges: list[tuple[float, float]]) -> list[tuple[int, int]]:
    """lo and hi for each matrix X and range (low, high): lo <= #{sigma(X) > t} <= hi for every t in the range."""
    most = [len(g.G) for g in grams]
    errors = [float(g.error) * (1 + 1e-12) for g in grams]
    moved = [float(g.moved) * (1 + 1e-12) for g in grams]
    above = [_outside(max(low - m, 0.0), error, -1) for (low, _), error, m in zip(ranges, errors, moved, strict=True)]
    below = [_outside(high + m, error, 1) for (_, high), error, m in zip(ranges, errors, moved, strict=True)]
    sides = [-1] * len(grams) + [1] * len(grams)
    found = _counts(grams * 2, above + below, sides, most + [0] * len(grams))
    return [(min(a, b), b) for a, b in zip(found[len(grams) :], found, strict=False)]


def _outside(t: float, error: float, side: int) -> float:
    """An eigenvalue of G that a singular value t of X cannot have passed, on one side; past its own rounding."""
    return t * t * (1 + side * 8 * U64) + side * error


def _counts(grams: list[SmallGram], limits: list[float], sides: list[int], otherwise: list[int]) -> list[int]:
    """#{lambda(G) > limit} or more (side -1), or fewer (side 1); `otherwise` where no count can say."""
    results = list(otherwise)
    margins = [
        ROUNDINGS * U64 * (float(g.G.diagonal().sum()) + 2 * len(g.G) * limit)
        for g, limit in zip(grams, limits, strict=True)
    ]
    left = list(range(len(grams)))
    for attempt in range(2):
        # Below zero there is nothing to count: every eigenvalue of a Gram matrix may lie above.
        left = [i for i in left if math.isfinite(limits[i]) and limits[i] + sides[i] * margins[i] > 0]
        if not left:
            break
        shift = torch.tensor([limits[i] + sides[i] * margins[i] for i in left], dtype=torch.float64, device="cpu")
        counts, slacks = inertia_many([grams[i].G for i in left], shift.to(grams[0].G.device))
        retry = []
        for i, count, slack, at in zip(left, counts.tolist(), slacks.tolist(), shift.tolist(), strict=True):
            if count >= 0 and sides[i] * (at - limits[i]) >= slack:
                results[i] = count
            elif attempt == 0 and math.isfinite(slack):
                margins[i] = 2 * slack
                retry.append(i)
        left = retry
    return results


def top_brackets(grams: list[SmallGram]) -> list[tuple[float, float]]:
    """(low, high) around each matrix's sigma_1; (nan, nan) where it is not finite, (0, 0) where it is empty."""
    results = [(0.0, 0.0)] * len(grams)
    estimates: dict[int, tuple[float, float]] = {}
    for i, g in enumerate(grams):
        if not len(g.G):
            continue
        if not math.isfinite(float(g.G.tril().sum())):
            results[i] = math.nan, math.nan
            continue
        low, expected, high = _leading(g.G)
        if _settled(low, high):
            results[i] = _sigmas(g, low, high)
        else:
            estimates[i] = low, expected
    rest = list(estimates)
    if not rest:
        return results
    shift = torch.tensor([sum(estimates[i]) for i in rest], dtype=torch.float64, device="cpu")
    counts, slacks = inertia_many([grams[i].G for i in rest], shift.to(grams[0].G.device))
    for i, at, count, slack in zip(rest, shift.tolist(), counts.tolist(), slacks.tolist(), strict=True):
        low, high = estimates[i][0], at + slack
        if count or not math.isfinite(high):
            (values,), error = eigvalsh_many([grams[i].G])
            low, high = float(values[-1] - error[0]), float(values[-1] + error[0])
        results[i] = _sigmas(grams[i], low, high)
    return results


def settled_bracket(g: SmallGram) -> tuple[float, float] | None:
    """That of `top_brackets` where Lanczos alone proves it to be narrow; else None."""
    if not len(g.G) or not math.isfinite(float(g.G.tril().sum())):
        return None
    low, _, high = _leading(g.G)
    return _sigmas(g, low, high) if _settled(low, high) else None


def _settled(low: float, high: float) -> bool:
    return high < math.inf and high - low <= SETTLED * high


def _sigmas(g: SmallGram, low: float, high: float) -> tuple[float, float]:
    error = float(g.error) + 8 * U64 * high
    moved = float(g.moved) * (1 + 1e-12)
    return max(math.sqrt(max(low - error, 0.0)) - moved, 0.0), math.sqrt(high + error) + moved


def _leading(G: Tensor) -> tuple[float, float, float]:
    """(a lower bound of lambda_1, how far above it lambda_1 is expected, an upper bound)."""
    k = len(G)
    full = G.tril() + G.tril(-1).T
    scale = float(full.diagonal().abs().max())
    if scale == 0:
        return 0.0, float(full.norm()), math.inf
    full /= scale
    steps = min(STEPS, k)
    Q = full.new_zeros(steps + 1, k)
    T = full.new_zeros(steps, steps)
    # Not orthogonal to anything in particular, and the same every time.
    q = torch.cos(torch.arange(1, k + 1, dtype=torch.float64, device=G.device) ** 2) + full.diagonal()
    Q[0] = q / q.norm()
    with one_thread():
        for j in range(steps):
            w = full @ Q[j]
            h = Q[: j + 1] @ w
            w = w - h @ Q[: j + 1]
            w = w - (Q[: j + 1] @ w) @ Q[: j + 1]
            T[j, j] = h[j]
            norm = w.norm()
            if j + 1 < steps:
                T[j, j + 1] = T[j + 1, j] = norm
            if not norm > k * U64:
                T = T[: j + 1, : j + 1]
                break
            Q[j + 1] = w / norm
        values, vectors = torch.linalg.eigh(T)
        Q = Q[: len(T)]
        y = vectors[:, -1] @ Q
        image = full @ y
        # A Rayleigh quotient, past its own rounding, is never above lambda_1.
        theta = float(y @ image / (y @ y))
        residual = float((image - theta * y).norm() / y.norm())
    gap = float(values[-1] - values[-2]) if len(values) > 1 else math.inf
    rounding = 4 * k * U64 * float(full.norm())
    above = min(residual, 4 * residual**2 / gap if gap > 0 else math.inf) + 2 * ROUNDINGS * U64 * float(full.trace())
    return (theta - rounding) * scale, (above + 2 * rounding) * scale, _at_most(full, Q) * scale


def _at_most(G: Tensor, Q: Tensor) -> float:
    """An upper bound of lambda_1 of G [k, k] from rows Q that are orthonormal to rounding; inf where they do not have
    enough of G. DevNotes.md of csrc/small_eigh, section 4."""
    W = Q @ G
    T = W @ Q.T
    norm = float(G.norm())
    off = float((Q @ Q.T - torch.eye(len(Q), dtype=Q.dtype, device=Q.device)).norm())
    error = (8 * off + 32 * len(G) * U64) * norm
    values, vectors = torch.linalg.eigh((T + T.T) / 2)
    top = vectors[:, -1]
    inside = float(values[-1]) + error
    residual = float((top @ W - values[-1] * (top @ Q)).norm()) + error
    outside = math.sqrt(max((1 + 1e-6) * norm**2 - float(T.norm()) ** 2, 0.0) + 4 * error * norm)
    other = max(outside, float(values[-2])) if len(values) > 1 else outside
    rest = other + float((W - T @ Q).norm()) + 2 * error
    return inside + residual**2 / (inside - rest) if rest < inside else math.inf
