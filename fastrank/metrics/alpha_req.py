import torch
from torch import Tensor

from fastrank.metrics._shares import TINY
from fastrank.spectra import Spectrum


def alpha_req(s: Spectrum) -> Tensor:
    """Exponent alpha of `lambda_i ~ i^-alpha`, least squares in log-log over all resolved eigenvalues.

    alpha-ReQ (Agrawal et al. 2022), lambda = sigma^2. Eigenvalues below the spectrum's floor are left out; fewer than
    two of them give 0.
    """
    used = (s.sigma > s.zero_bound[..., None]).double()
    i = torch.arange(1, s.sigma.shape[-1] + 1, dtype=torch.float64, device=s.sigma.device).log()
    y = 2 * s.sigma.clamp_min(TINY).log()
    count, total = used.sum(-1, keepdim=True).clamp_min(1), s.sigma.sum(-1)
    centred = (i - (used * i).sum(-1, keepdim=True) / count) * used
    slope = (centred * y).sum(-1) / centred.square().sum(-1).clamp_min(TINY)
    return torch.where(total.isnan(), total, -slope * (used.sum(-1) >= 2))
