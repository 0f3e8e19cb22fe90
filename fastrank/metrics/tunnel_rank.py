import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.spectra import Spectrum


def tunnel_rank(s: Spectrum, rtol: float = 1e-3) -> Tensor:
    """`#{sigma_i(cov) > rtol * sigma_1(cov)}` (Masarczyk et al. 2023): on the covariance, so sqrt(rtol) on sigma(X).

    Raises:
        InputError: `s` is not centred.
    """
    if not s.centered:
        raise InputError("s", "a centred spectrum", "an uncentred one", "use spectrum(A, centered=True)")
    eigenvalues = s.sigma.square()
    count = (eigenvalues > rtol * eigenvalues[:1].sum()).sum().double()
    return torch.where(s.sigma.sum().isnan(), s.sigma.sum(), count)
