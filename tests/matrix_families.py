"""Matrices on which spectra have gone wrong: each family has broken somebody's rank, covariance or Gram matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _orthonormal(n: int, k: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))[0]


def with_singular_values(sigma: Tensor, n: int, d: int, seed: int = 0) -> Tensor:
    """[n, d] float64 with random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    k = len(sigma)
    return _orthonormal(n, k, generator) * sigma.double() @ _orthonormal(d, k, generator).T


def _decay(rule: Callable[[Tensor], Tensor]) -> Callable[[int, int, int], Tensor]:
    def family(n: int, d: int, seed: int) -> Tensor:
        k = min(n, d)
        return with_singular_values(rule(torch.arange(k, dtype=torch.float64) / max(k - 1, 1)), n, d, seed)

    return family


def _normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _class_centred_logits(n: int, d: int, seed: int) -> Tensor:
    """Every row sums to 0: rank at most d - 1."""
    X = _normal(n, d, seed)
    return X - X.mean(1, keepdim=True)


def _dead_channels(n: int, d: int, seed: int) -> Tensor:
    X = _normal(n, d, seed).relu()
    X[:, ::3] = 0
    return X


def _duplicated_rows(n: int, d: int, seed: int) -> Tensor:
    return _normal(-(-n // 4), d, seed).repeat(4, 1)[:n]


def _one_hot_row(n: int, d: int, seed: int) -> Tensor:
    """One row holds nearly all of the norm."""
    X = _normal(n, d, seed)
    X[n // 2] *= 1e4
    return X


def _repeated_at_15(n: int, d: int, seed: int) -> Tensor:
    sigma = torch.linspace(2, 1, min(n, d), dtype=torch.float64)
    sigma[14:16] = 1.5
    return with_singular_values(sigma, n, d, seed)


def _tolerance_ladder(n: int, d: int, seed: int) -> Tensor:
    """sigma_1 = 1 and then pairs just above and below LADDER, relatively 1e-2 to 1e-6 away."""
    sides = torch.tensor([1.0, -1.0], dtype=torch.float64)
    rungs = LADDER * (1 + torch.outer(10.0 ** -torch.arange(2.0, 7), sides)).flatten()
    sigma = torch.cat([torch.ones(1), rungs.repeat(-(-min(n, d) // 10))])[: min(n, d)]
    return with_singular_values(sigma.double(), n, d, seed)


#: The relative tolerance around which the tolerance ladder stands.
LADDER = 1e-3

#: name -> [n, d] float64 of (n, d, seed).
FAMILIES: dict[str, Callable[[int, int, int], Tensor]] = {
    "gaussian": _normal,
    "cliff": _decay(lambda t: torch.where(t < 0.5, 1.0, 1e-7)),
    "exponential decay": _decay(lambda t: 10.0 ** (-12 * t)),
    "polynomial decay": _decay(lambda t: (1 + 50 * t) ** -2.0),
    "S-shaped decay": _decay(lambda t: 1e-8 + torch.sigmoid(-30 * (t - 0.5))),
    "weight with a spread of 1e-5": _decay(lambda t: 1 - t * (1 - 1e-5)),
    "class-centred logits": _class_centred_logits,
    "mean-dominated": lambda n, d, seed: _normal(n, d, seed) + 1e4,
    "dead channels": _dead_channels,
    "duplicated rows": _duplicated_rows,
    "one hot row": _one_hot_row,
    "zero": lambda n, d, seed: torch.zeros(n, d, dtype=torch.float64),
    "identity": lambda n, d, seed: torch.eye(n, d, dtype=torch.float64),
    "huge": lambda n, d, seed: _normal(n, d, seed) * 1e15,
    "tiny": lambda n, d, seed: _normal(n, d, seed) * 1e-15,
    "sigma 15 = sigma 16": _repeated_at_15,
    "tolerance ladder": _tolerance_ladder,
}
