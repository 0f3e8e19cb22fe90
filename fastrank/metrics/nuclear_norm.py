from torch import Tensor

from fastrank.spectra import Spectrum


def nuclear_norm(s: Spectrum) -> Tensor:
    """`||A||_*`, the sum of sigma."""
    return s.sigma.sum(-1)
