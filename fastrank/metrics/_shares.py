"""Singular values as shares of their sum, the distribution that several effective ranks are made of."""

import torch
from torch import Tensor

#: Smallest normal float64: dividing by it keeps an all-zero spectrum at zero.
TINY = torch.finfo(torch.float64).tiny


def shares(values: Tensor) -> Tensor:
    """values / sum(values), [..., k] float64; all zero for an all-zero or empty spectrum."""
    return values / values.sum(-1, keepdim=True).clamp_min(TINY)


def perplexity(p: Tensor) -> Tensor:
    """`exp(-sum p log p)`, with 0 log 0 = 0; 0 for an all-zero p, which is no distribution."""
    entropy = -(p * p.clamp_min(TINY).log()).sum(-1)
    return entropy.exp() * (p.sum(-1) != 0)
