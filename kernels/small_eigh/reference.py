"""The symmetric eigenproblems in plain torch: the specification that every kernel is held to.

Bounds are a posteriori: a computed factorisation is multiplied out and compared with the matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_U = 2.0**-53


def eigh(G: Tensor) -> tuple[Tensor, Tensor]:
    G = _symmetric(G)
    if not bool(G.isfinite().all()):
        return G.new_full((len(G),), math.nan), torch.full_like(G, math.nan)
    values, vectors = torch.linalg.eigh(G)
    return values, vectors.contiguous()


def eigvalsh(G: Tensor) -> tuple[Tensor, Tensor]:
    """Values and their bound, from the residual of computed eigenvectors V.

    With delta = ||V^T V - I|| < 1 the polar factor Q of V has ||V - Q|| <= delta, so G = Q diag(values) Q^T + E and
    ||E|| <= ||G V - V diag(values)|| (1 + delta) + delta (||G|| + max|values|) + ..., which the factors below cover.
    Frobenius norms bound the 2-norms; the products' own rounding is gamma_m of norms of absolute values.
    """
    m = len(G)
    values, V = eigh(G)
    if m == 0 or not bool(values.isfinite().all()):
        return values, values.new_full((), math.nan if m else 0.0)
    # Powers of two only: the values of the scaled matrix are the scaled values.
    scale = torch.exp2(torch.floor(torch.log2(_symmetric(G).abs().max().clamp_min(2.0**-1000))))
    S, small = _symmetric(G) / scale, values / scale
    rounding = 2 * (m + 2) * _U
    size = S.norm()
    delta = (V.T @ V - torch.eye(m, dtype=V.dtype, device=V.device)).norm() + rounding * m
    residual = (S @ V - V * small).norm() + rounding * math.sqrt(m) * (size + small.abs().max())
    error = 1.01 * (residual * (1 + 2 * delta) + 4 * delta * (size + small.abs().max()))
    return values, torch.where(delta < 0.1, error * scale, math.inf)


def inertia(G: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """From the eigenvalues, with their bound as the slack."""
    if not bool(G.tril().isfinite().all() & shift.isfinite()):
        return torch.tensor(-1, device=G.device), G.new_full((), math.inf)
    values, error = eigvalsh(G)
    return (values > shift).sum(), error


def _symmetric(G: Tensor) -> Tensor:
    return G.tril() + G.tril(-1).T
