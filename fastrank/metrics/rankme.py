from torch import Tensor

from fastrank.metrics._shares import perplexity, shares
from fastrank.spectra import Spectrum


def rankme(s: Spectrum) -> Tensor:
    """`exp H(p)` with p = sigma / sum(sigma) + 1e-7, uncentred (Garrido et al. 2023, eq. 1 with their epsilon)."""
    return perplexity(shares(s.sigma) + 1e-7) * (s.sigma.sum(-1) != 0)
