from torch import Tensor

from fastrank.spectra import Spectrum


def frobenius_norm(s: Spectrum) -> Tensor:
    """`||A||_F`, the root of the sum of sigma^2; the logits' norm where A is the logits."""
    return s.sigma.square().sum(-1).sqrt()
