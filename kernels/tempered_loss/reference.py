"""Steps that the references of the tempered losses share."""

from __future__ import annotations

import torch
from fastrank.kernels.tempered_loss.layout import accumulator
from torch import Tensor


def classes_last(x: Tensor) -> Tensor:
    x = x.to(accumulator(x.dtype))
    return x if x.dim() == 1 else x.movedim(1, -1)


def per_sample(T: float | Tensor, input: Tensor) -> float | Tensor:
    """T such that it broadcasts against the logits with classes last; NaN where it is not finite and above zero."""
    if not isinstance(T, Tensor):
        return T
    T = T.to(device=input.device, dtype=accumulator(input.dtype))
    T = torch.where((T > 0) & T.isfinite(), T, torch.nan)
    return T.reshape(T.shape + (1,) * (input.dim() - T.dim()))


def tempered(z: Tensor, T: float | Tensor) -> Tensor:
    """x = (z - max z) / T."""
    x = z - z.detach().amax(-1, keepdim=True)
    if not isinstance(T, Tensor):
        return x / T
    # A logit of -inf has probability 0 at every T; differentiating its quotient by T would make 0 * inf.
    masked = x.isneginf()
    return torch.where(masked, 0, x) / T + torch.where(masked, x, 0) / T.detach()


def with_scaled_gradient(z: Tensor, T: float | Tensor, scale_gradient: str | None) -> Tensor:
    """z, whose gradient is multiplied by T ("T"), by T^2 ("T2") or by nothing (None)."""
    factor = T.detach() if isinstance(T, Tensor) else T
    # T^2 may be beyond the dtype where its product with the gradient is not.
    for _ in range({None: 0, "T": 1, "T2": 2}[scale_gradient]):
        z = _ScaledGradient.apply(z, factor)
    return z


class _ScaledGradient(torch.autograd.Function):
    """The identity; its derivative is multiplied by `factor`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z, factor):
        return z.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent * ctx.factor


def per_label(share: float | Tensor, labels: Tensor) -> Tensor:
    """The share of each sample such that it broadcasts against its labels."""
    share = torch.as_tensor(share, dtype=None if isinstance(share, Tensor) else torch.float64, device=labels.device)
    return share.reshape(share.shape + (1,) * (labels.dim() - share.dim()))
