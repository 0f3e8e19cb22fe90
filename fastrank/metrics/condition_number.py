import torch
from torch import Tensor

from fastrank.metrics._shares import TINY
from fastrank.spectra import Spectrum


def condition_number(s: Spectrum) -> Tensor:
    """`sigma_1 / sigma_k`; inf where sigma_k is zero, 0 for an all-zero or empty spectrum.

    A value above 1 / floor says only that it is at least 1 / floor.
    """
    top, last = s.sigma[..., :1].sum(-1), s.sigma[..., -1:].sum(-1)
    ratio = torch.where(last == 0, torch.full_like(top, torch.inf), top / last.clamp_min(TINY))
    return torch.where(top == 0, torch.zeros_like(top), ratio)
