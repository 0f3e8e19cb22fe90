"""Initial weights. A run's numbers come from its own seed: neither its company nor its place in the batch matters."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.recipes.ufm.model import DeepUFM, logits, split


def gaussian(model: DeepUFM, seeds: list[int], scale: float = 1.0) -> list[Tensor]:
    """Entries N(0, scale^2 / d): at any width a row of W_1 has norm near `scale`, and each layer keeps norms by it.

    Returns: weights [B, m, n] float64, one run per seed.
    """
    std = _positive("scale", scale) / model.width**0.5 if model.depth > 1 else scale / model.classes**0.5
    return split(_normal(model, seeds) * std, model)


def orthogonal(model: DeepUFM, seeds: list[int], scale: float = 1.0) -> list[Tensor]:
    """Each layer is `scale` times a random matrix with orthonormal rows or columns (Haar).

    So sigma(Z) = scale^L where N = d = C; in wider layers they are the cosines between two random subspaces times that.
    """
    _positive("scale", scale)
    weights = split(_normal(model, seeds), model)
    return [scale * _orthonormal(W) for W in weights]


def spectral(model: DeepUFM, U: Tensor, s: Tensor, V: Tensor | None = None, seed: int | None = None) -> list[Tensor]:
    """Balanced layers with aligned singular vectors: Z = (U repeated over samples) diag(s) V^T, each layer s^(1/L).

    Args:
        U: [C, k] orthonormal columns (see bases.py). V: [C, k]; U where left out. s: [B, k], non-negative.
        seed: of the orthonormal frames of the hidden spaces, which no logit depends on; the first coordinates if None.

    Returns: weights [B, m, n] float64 with W_l^T W_l = W_{l+1} W_{l+1}^T.

    Raises:
        InputError: sizes that do not fit, a negative or non-finite s.
    """
    k = U.shape[1] if U.ndim == 2 else -1
    V = U if V is None else V
    if tuple(U.shape) != (model.classes, k) or U.shape != V.shape:
        raise InputError("U", f"[{model.classes}, k], and V as U", (tuple(U.shape), tuple(V.shape)))
    if s.ndim != 2 or s.shape[1] != k or not bool((s >= 0).all() & s.isfinite().all()):
        raise InputError("s", f"[runs, {k}] non-negative and finite", tuple(s.shape))
    if model.depth > 1 and model.width < k:
        raise InputError("width", f"at least the {k} singular values", model.width)
    root = s.double() ** (1 / model.depth)
    left = U.double().repeat_interleave(model.samples, 0) / model.samples**0.5
    if model.depth == 1:
        return [torch.einsum("nk,bk,ck->bnc", left, root, V.double())]
    frames = [torch.eye(model.width, k, dtype=torch.float64)] * (model.depth - 1)
    if seed is not None:
        normal = torch.randn(
            model.depth - 1, model.width, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        frames = list(_orthonormal(normal))
    ends = [left, *frames, V.double()]
    return [torch.einsum("mk,bk,nk->bmn", a, root, b) for a, b in itertools.pairwise(ends)]


def perturbed(weights: list[Tensor], relative: Tensor, seeds: list[int]) -> list[Tensor]:
    """Balanced weights of a perturbed product: Z + relative * ||Z||_F * E, with E Gaussian, centred, norm 1.

    The perturbed Z is factored again by its own SVD, so that every run starts balanced.

    Args:
        weights: of B runs, balanced. relative: [B]. seeds: one per run.
    """
    Z = logits(weights)
    if not len(Z) or len(seeds) != len(Z):
        raise InputError("seeds", f"one for each of {len(Z)} runs, at least one", seeds)
    E = torch.stack([torch.randn(Z.shape[1:], generator=torch.Generator().manual_seed(s)).double() for s in seeds])
    E = E - E.mean(2, keepdim=True)
    E = E - E.mean(1, keepdim=True)
    E = E / E.norm(dim=(1, 2), keepdim=True)
    return balanced(Z + relative.double()[:, None, None] * Z.norm(dim=(1, 2), keepdim=True) * E, weights)


def balanced(Z: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Balanced layers of the shapes of `like` whose product is Z [B, N, C]."""
    L = len(like)
    if L == 1:
        return [Z]
    U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
    # Rounding's singular values are none; their L-th roots would be large, and their gradients denormal and slow.
    s = s * (s > max(Z.shape[1:]) * torch.finfo(s.dtype).eps * s[:, :1])
    root = s ** (1 / L)
    first, last = like[0].new_zeros(like[0].shape), like[-1].new_zeros(like[-1].shape)
    k = min(s.shape[1], like[0].shape[2])
    first[:, :, :k] = U[:, :, :k] * root[:, None, :k]
    last[:, :k] = root[:, :k, None] * Vh[:, :k]
    inner = torch.zeros_like(like[1]) if L > 2 else None
    if inner is not None:
        inner[:, range(k), range(k)] = root[:, :k]
    return [first, *[inner.clone() for _ in range(L - 2)], last]


def _normal(model: DeepUFM, seeds: list[int]) -> Tensor:
    """[runs, parameters]"""
    if not len(seeds):
        raise InputError("seeds", "at least one", seeds)
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(model.parameters, generator=g, dtype=torch.float64) for g in generators])


def _orthonormal(W: Tensor) -> Tensor:
    """Q of W or of W^T, whichever is tall, with the signs that make it Haar-distributed."""
    tall = W if W.shape[-2] >= W.shape[-1] else W.mT
    Q, R = torch.linalg.qr(tall)
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return Q if tall is W else Q.mT


def _positive(name: str, value: float) -> float:
    if not (value > 0 and value < float("inf")):
        raise InputError(name, "a positive number", value)
    return value
