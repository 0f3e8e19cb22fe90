from torch import Tensor

from fastrank.metrics._shares import TINY, shares
from fastrank.spectra import Spectrum


def participation_ratio(s: Spectrum) -> Tensor:
    """`(sum lambda)^2 / sum lambda^2`, lambda = sigma^2 (Gao et al. 2017): between 1 and the rank."""
    p = shares((s.sigma / s.sigma[..., :1].sum(-1, keepdim=True).clamp_min(TINY)).square())
    return p.sum(-1) / p.square().sum(-1).clamp_min(TINY)
