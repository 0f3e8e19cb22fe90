"""Generalised neural collapse: how far a classifier is from a softmax code (Jiang et al. 2024, arXiv 2310.05351)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.evaluation.collapse import centered
from fastrank.extras import require

#: Distances below this share of the points' size are those of coinciding points: what double rounding leaves of them.
ZERO = 1e-12


class Margin(NamedTuple):
    """distance, lower: [C] float64, each row's distance to the hull of the others, and what is proven of it.

    The distance is that of a point of the hull, so an upper bound; the separating hyperplane through that point gives
    the lower one. margin, margin_lo: their minima over the rows, GNC2.
    """

    distance: np.ndarray
    lower: np.ndarray

    @property
    def margin(self) -> float:
        return float(self.distance.min())

    @property
    def margin_lo(self) -> float:
        return float(self.lower.min())


def one_vs_rest_margin(W: Tensor | np.ndarray, normalise: bool = True) -> Margin:
    """GNC2: min_c dist(w_c, conv{w_k : k != c}) of the rows of W [C, d], normalised to length 1 by default.

    Softmax codes maximise it. Each distance is a projection onto a convex hull, solved exactly by an active set: the
    minimum-norm point of conv(P) is u / sum(u) for the u >= 0 that minimises ||P^T u||^2 + (1 - sum u)^2, because for a
    given sum the first term is least at the multiple of that point; this is a non-negative least squares problem
    (Lawson & Hanson 1974, ch. 23). On one core 1 s for 100 x 512, 12 s for 400 x 512.

    Raises:
        InputError: W is not a finite matrix with at least two rows, or has a zero row to normalise.
    """
    nnls = require("scipy.optimize", "GNC2").nnls
    W = np.asarray(torch.as_tensor(W).detach().cpu().double())
    if W.ndim != 2 or len(W) < 2 or not np.isfinite(W).all():
        raise InputError("W", "a finite matrix [C, d] with C >= 2", f"shape {W.shape}")
    if normalise:
        norms = np.linalg.norm(W, axis=1, keepdims=True)
        if not norms.all():
            raise InputError("W", "rows of positive norm", f"a zero row, {int(np.argmin(norms))}")
        W = W / norms
    # Coordinates of the rows' own span: C - 1 at most, and distances stay what they are.
    W = W - W.mean(0)
    if W.shape[1] > len(W):
        W = np.linalg.qr(W.T, mode="r").T
    size = np.linalg.norm(W, axis=1).max()
    if size == 0:
        return Margin(np.zeros(len(W)), np.zeros(len(W)))
    W = W / size
    found = [_distance(np.delete(W, c, 0) - W[c], nnls) for c in range(len(W))]
    upper, lower = (size * np.array(side) for side in zip(*found, strict=True))
    return Margin(upper, lower)


def _distance(P: np.ndarray, nnls) -> tuple[float, float]:
    """(upper, lower) bound of the distance of conv of P's rows from the origin."""
    u, _ = nnls(np.vstack([P.T, np.ones(len(P))]), np.append(np.zeros(P.shape[1]), 1.0), maxiter=30 * len(P))
    point = (u / u.sum()) @ P
    distance = float(np.linalg.norm(point))
    if distance < ZERO:
        return distance, 0.0
    return distance, max(0.0, min(distance, float((P @ point).min()) / distance))


def gnc3(weight: Tensor, means: Tensor, center: bool = False) -> Tensor:
    """[...]: mean over classes of 1 - cos(w_c, mu_c), W and means [..., C, d]; `center` takes mu_c - mu_G.

    Jiang et al. 2024 centre, and average features that were normalised one by one; here class means are of features as
    they are.
    """
    M = centered(means) if center else means
    norms = weight.norm(dim=-1) * M.norm(dim=-1)
    return (1 - (weight * M).sum(-1) / norms.where(norms > 0, torch.nan)).mean(-1)
