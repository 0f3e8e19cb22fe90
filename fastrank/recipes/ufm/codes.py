"""Softmax codes: C unit vectors in R^r with the largest one-vs-rest margin (Jiang et al. 2024, arXiv 2310.05351).

rho(W) = min_k dist(w_k, conv{w_j : j != k}). By duality each distance is max over unit h_k of min_j <w_k - w_j, h_k>,
so a code and its features are found together by maximising the smallest of those C (C - 1) numbers over spheres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.evaluation.softmax_codes import one_vs_rest_margin
from fastrank.extras import require

#: Temperatures of the smoothed minimum, the ascent's steps at each, and a step's length (root mean square per entry). A
#: last refinement is exact.
ANNEALING, STEPS, RATE = (0.3, 0.1, 0.03, 0.01), 100, 0.02
#: Unknowns up to which SciPy's SLSQP refines: its work grows with their cube.
MOST_UNKNOWNS = 400


@dataclass(frozen=True)
class SoftmaxCode:
    """The best code found.

    W, H: [C, r] float64, unit rows. margin, margin_lo: its one-vs-rest margin and what is proven of it. bound: a proven
    upper bound on any code's margin, and bound_name; the code is certified optimal where the two meet.
    """

    W: Tensor
    H: Tensor
    margin: float
    margin_lo: float
    bound: float
    bound_name: str

    @property
    def gap(self) -> float:
        """bound - margin_lo: how much better any code can be at most."""
        return self.bound - self.margin_lo

    @property
    def logits(self) -> Tensor:
        """[C, C], H W^T: rows are samples."""
        return self.H @ self.W.T


def margin_bound(classes: int, rank: int) -> tuple[float, str]:
    """An upper bound on the margin of `classes` unit vectors in R^rank, and its name; proofs in DevNotes.md.

    "simplex" (r >= C - 1), "polygon" (r = 2) and "cross-polytope" (C/2 <= r <= C - 2) are attained; "Radon", 1 where
    r < C/2, is not known to be.
    """
    if rank >= classes - 1:
        return classes / (classes - 1), "simplex"
    if rank == 1:
        return 0.0, "line"
    if rank == 2:
        return 1 - math.cos(2 * math.pi / classes), "polygon"
    return 1.0, "cross-polytope" if 2 * rank >= classes else "Radon"


def softmax_code(classes: int, rank: int, starts: int = 32, seed: int = 0) -> SoftmaxCode:
    """The best of `starts` random starts: annealed ascent of all at once, then SLSQP on the best few.

    Raises:
        InputError: classes < 2, rank < 1, starts < 1.
    """
    for name, value, least in (("classes", classes, 2), ("rank", rank, 1), ("starts", starts, 1)):
        if value < least:
            raise InputError(name, f"at least {least}", value)
    bound, name = margin_bound(classes, rank)
    W, H = _ascend(classes, rank, starts, seed)
    candidates = [
        (_refine(w, h) if 2 * classes * rank < MOST_UNKNOWNS else w) for w, h in zip(W[:3], H[:3], strict=True)
    ]
    margins = [one_vs_rest_margin(w) for w in candidates]
    best = max(range(len(candidates)), key=lambda i: margins[i].margin_lo)
    W = torch.nn.functional.normalize(torch.as_tensor(candidates[best], dtype=torch.float64), dim=1)
    return SoftmaxCode(W, best_features(W), margins[best].margin, margins[best].margin_lo, bound, name)


def best_features(W: Tensor) -> Tensor:
    """[C, r], the unit h_k that attain each row's margin: the direction from the nearest point of the others' hull."""
    nnls = require("scipy.optimize", "softmax codes").nnls
    W = W.numpy()
    H = np.zeros_like(W)
    for k in range(len(W)):
        P = np.delete(W, k, 0) - W[k]
        u, _ = nnls(np.vstack([P.T, np.ones(len(P))]), np.append(np.zeros(P.shape[1]), 1.0))
        H[k] = -(u / u.sum()) @ P
    return torch.nn.functional.normalize(torch.as_tensor(H), dim=1)


def _ascend(classes: int, rank: int, starts: int, seed: int) -> tuple[Tensor, Tensor]:
    """W, H [starts, C, r], best first."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(1, starts, classes, rank, dtype=torch.float64, generator=generator)
    A = torch.nn.functional.normalize(torch.stack([A[0], A[0]]), dim=-1)
    same = torch.eye(classes, dtype=torch.bool)
    mean = torch.zeros_like(A)
    for tau in ANNEALING:
        for _ in range(STEPS):
            gradient = _smooth_gradient(A, same, tau)
            mean = 0.9 * mean + 0.1 * gradient
            A = A - RATE * mean / mean.square().mean((0, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
            A = torch.nn.functional.normalize(A, dim=-1)
    W, H = A
    order = _gaps(W, H, same).flatten(1).amin(1).argsort(descending=True)
    return W[order], H[order]


def _smooth_gradient(A: Tensor, same: Tensor, tau: float) -> Tensor:
    """Of tau * log sum exp(-gap / tau), along the spheres, at W, H = A [2, starts, C, r]."""
    W, H = A
    share = torch.softmax(-_gaps(W, H, same).flatten(1) / tau, 1).unflatten(1, same.shape)
    pull = share - torch.diag_embed(share.sum(2))  # [k, j]: what <w_j, h_k> weighs in the smoothed loss
    G = torch.stack([pull.mT @ H, pull @ W])
    return G - (G * A).sum(-1, keepdim=True) * A


def _gaps(W: Tensor, H: Tensor, same: Tensor) -> Tensor:
    """[..., k, j] <w_k - w_j, h_k>, infinite for j = k."""
    products = H @ W.mT
    return (products.diagonal(dim1=-2, dim2=-1)[..., None] - products).masked_fill(same, torch.inf)


def _refine(W: Tensor, H: Tensor) -> np.ndarray:
    """Maximises t subject to <w_k - w_j, h_k> >= t and unit rows, from W, H."""
    minimize = require("scipy.optimize", "softmax codes").minimize
    C, r = W.shape
    rows, others = np.nonzero(~np.eye(C, dtype=bool))
    pairs = np.arange(len(rows))
    start = np.concatenate([W.numpy().ravel(), H.numpy().ravel()])
    start = np.append(start, 0.0)
    split = lambda x: (x[: C * r].reshape(C, r), x[C * r : -1].reshape(C, r))  # noqa: E731

    def slack(x: np.ndarray) -> np.ndarray:
        W, H = split(x)
        return ((W[rows] - W[others]) * H[rows]).sum(1) - x[-1]

    def slack_jacobian(x: np.ndarray) -> np.ndarray:
        W, H = split(x)
        J = np.zeros((len(rows), 2 * C, r))
        J[pairs, rows] = H[rows]
        J[pairs, others] = -H[rows]
        J[pairs, C + rows] = W[rows] - W[others]
        return np.hstack([J.reshape(len(rows), -1), -np.ones((len(rows), 1))])

    def norms(x: np.ndarray) -> np.ndarray:
        return np.square(x[:-1].reshape(2 * C, r)).sum(1) - 1

    def norms_jacobian(x: np.ndarray) -> np.ndarray:
        J = np.zeros((2 * C, 2 * C, r))
        J[range(2 * C), range(2 * C)] = 2 * x[:-1].reshape(2 * C, r)
        return np.hstack([J.reshape(2 * C, -1), np.zeros((2 * C, 1))])

    start[-1] = slack(start).min()
    ascent = np.append(np.zeros(2 * C * r), -1.0)
    found = minimize(
        lambda x: -x[-1], start, jac=lambda x: ascent, method="SLSQP", options={"maxiter": 200, "ftol": 1e-14},
        constraints=[{"type": "ineq", "fun": slack, "jac": slack_jacobian},
                     {"type": "eq", "fun": norms, "jac": norms_jacobian}],
    )  # fmt: skip
    return split(found.x)[0]
