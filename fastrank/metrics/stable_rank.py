from torch import Tensor

from fastrank.metrics._shares import TINY
from fastrank.spectra import Spectrum


def stable_rank(s: Spectrum) -> Tensor:
    """`||A||_F^2 / sigma_1^2` (Rudelson & Vershynin 2007): between 1 and the rank."""
    top = s.sigma[..., :1].sum(-1, keepdim=True).clamp_min(TINY)
    return (s.sigma / top).square().sum(-1)
