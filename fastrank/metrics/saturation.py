import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.metrics._shares import shares
from fastrank.spectra import Spectrum


def saturation(s: Spectrum, variance: float = 0.99) -> Tensor:
    """Share of the d directions that carry `variance` of the centred variance (delve; Richter et al. 2021).

    Raises:
        InputError: `s` is not centred; saturation is a statement about the covariance.
    """
    if not s.centered:
        raise InputError("s", "a centred spectrum", "an uncentred one", "use spectrum(A, centered=True)")
    p = shares(s.sigma.square())
    below = (p.cumsum(0) < variance).sum().double()
    share = (below + 1).clamp_max(float(len(p))) / max(s.d, 1) * (p.sum() != 0)
    return torch.where(p.sum().isnan(), p.sum(), share)
