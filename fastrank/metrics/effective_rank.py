from torch import Tensor

from fastrank.metrics._shares import perplexity, shares
from fastrank.spectra import Spectrum


def effective_rank(s: Spectrum) -> Tensor:
    """`exp H(p)`, p = sigma / sum(sigma) (Roy & Vetterli 2007): between 1 and the rank."""
    return perplexity(shares(s.sigma))
