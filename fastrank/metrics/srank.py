import torch
from torch import Tensor

from fastrank.metrics._shares import shares
from fastrank.spectra import Spectrum


def srank(s: Spectrum, delta: float = 0.01) -> Tensor:
    """Smallest k whose top-k singular values hold a share >= 1 - delta of their sum (Kumar et al. 2021)."""
    p = shares(s.sigma)
    below = (p.cumsum(-1) < 1 - delta).sum(-1).double()
    count = (below + 1).clamp_max(float(p.shape[-1])) * (p.sum(-1) != 0)
    return torch.where(p.sum(-1).isnan(), p.sum(-1), count)
