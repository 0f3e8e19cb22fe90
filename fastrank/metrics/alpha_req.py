import torch
from torch import Tensor

from fastrank.metrics._shares import TINY
from fastrank.spectra import Spectrum


def alpha_req(s: Spectrum) -> Tensor:
    """Exponent alpha of `lambda_i ~ i^-alpha`, least squares in log-log over all resolved eigenvalues.

    alpha-ReQ (Agrawal et al. 2022), lambda = sigma^2. Eigenvalues below the spectrum's floor are left out; fewer than
    two of them give 0.
    """
    used = (s.sigma > s.zero_bound).double()
    i = torch.arange(1, len(s.sigma) + 1, dtype=torch.float64, device=s.sigma.device).log()
    y = 2 * s.sigma.clamp_min(TINY).log()
    count = used.sum().clamp_min(1)
    centred = (i - (used * i).sum() / count) * used
    slope = (centred * y).sum() / centred.square().sum().clamp_min(TINY)
    return torch.where(s.sigma.sum().isnan(), s.sigma.sum(), -slope * (used.sum() >= 2))
