"""Why low rank wins: how much product, and how much margin, a chain of layers makes of its own norm."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrank.recipes.ufm.model import margins


def product_norm(rank: int, depth: int) -> float:
    """||W_1 ... W_L||_F of aligned layers with `rank` equal singular values and ||W_l||_F = 1: rank^(-(L-1)/2).

    Each layer's singular values are rank^(-1/2), the product's rank^(-L/2).
    """
    return rank ** (-(depth - 1) / 2)


def random_product_norm(rank: int, depth: int, width: int, seeds: list[int]) -> Tensor:
    """[B] float64, the same of independent random layers [width, width] of that rank, each of norm 1: not aligned."""
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        product = torch.eye(width, dtype=torch.float64)
        for _ in range(depth):
            A, B = torch.randn(2, width, rank, dtype=torch.float64, generator=generator)
            W = A @ B.T
            product = product @ (W / W.norm())
        found.append(product.norm())
    return torch.stack(found)


def margin_at_unit_layers(Z: Tensor, labels: Tensor, depth: int) -> Tensor:
    """[B], the smallest z_y - z_other of Z [B, N, C] once it is scaled so that balanced layers have ||W_l||_F = 1.

    Balanced layers of Z have the singular values s^(1/L), so their norm is (sum s^(2/L))^(1/2) and Z is divided by
    (sum s^(2/L))^(L/2), the Schatten quasi-norm of order 2/L. Gradient flow's directions are stationary points of this
    margin (Lyu & Li 2020: the flow is homogeneous of degree L); with depth the quasi-norm turns into a count of
    directions, which is the bias to low rank (DevNotes.md).
    """
    s = torch.linalg.svdvals(Z)
    # Rounding's singular values are no directions, but to the power 2 / L they would look like some.
    s = s * (s > max(Z.shape[-2:]) * torch.finfo(s.dtype).eps * s[..., :1])
    return margins(Z, labels).amin(-1) / s.pow(2 / depth).sum(-1).pow(depth / 2)


def favoured(codes: dict[int, Tensor], depth: int) -> int:
    """The rank whose logits `codes[rank]` [C, C] have the largest margin at unit layers."""
    labels = torch.arange(len(next(iter(codes.values()))))
    return max(codes, key=lambda rank: float(margin_at_unit_layers(codes[rank][None], labels, depth)))
