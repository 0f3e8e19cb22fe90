"""The specification of the tempered squared error, in plain torch: any dtype and device, differentiable any number of
times with respect to logits, temperature, weight, class probabilities and shares. Every kernel is held to it.

With z a sample's logits over C classes, p = softmax(z / T), t' its target (one-hot for a class index, share [j = y1] +
(1 - share) [j = y2] for a mixed one, or the given probabilities), s the smoothing, t = (1 - s) t' + s / C, v the class
weights:

    w = sum_j v_j t'_j                    the class weight of an index's label
    loss = w sum_j (p_j - t_j)^2

`mean` divides by C sum w over the samples that are not ignored (index targets) or by C times the number of samples
(probabilities and mixed targets), as torch.nn.functional.cross_entropy divides. Without weights it is therefore
torch.nn.MSELoss()(softmax(z / T), t), the loss of Masarczyk et al. 2025, Appendix F.

`scale_gradient` multiplies the gradient of the logits, and nothing else, by T or T^2.

Numerics, for probabilities near 0 and 1. Let a be the class of the largest logit, e_j = exp((z_j - z_a) / T), and q =
sum_{j != a} e_j / S the mass beside it, S = 1 + sum_{j != a} e_j. No other p_j exceeds 1/2, so p_j - t_j needs no
care; p_a may be 1 - 1e-9, but q = 1 - p_a then has all its digits, and so has d_a = (1 - t_a) - q. With d_j = p_j - t_j
for the others and M = sum_{j != a} p_j d_j, D = sum_j p_j d_j = p_a d_a + M, and

    d loss / d z_a = 2 w / T  p_a (q d_a - M)        d_a - D = (1 - p_a) d_a - M: its terms are as small as q
    d loss / d z_i = 2 w / T  p_i (d_i - D)          i != a
    d loss / d T   = - 1 / T  sum_{i != a} (d loss / d z_i) (z_i - z_a)
"""

from __future__ import annotations

import torch
from fastrank.kernels.tempered_loss.reference import (
    classes_last,
    per_label,
    per_sample,
    tempered,
    with_scaled_gradient,
)
from torch import Tensor


def tempered_mse(
    input: Tensor,
    target: Tensor | tuple[Tensor, Tensor, float | Tensor],
    T: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    scale_gradient: str | None = None,
) -> Tensor:
    """The loss of the module's docstring; arguments as in `fastrank.kernels.tempered_mse`, already validated."""
    T = per_sample(T, input)
    z = with_scaled_gradient(classes_last(input), T, scale_gradient)
    v = None if weight is None else weight.to(z.dtype)
    used = known = None
    if isinstance(target, tuple):
        first, second, share = target
        share = per_label(share, first).to(z.dtype).unsqueeze(-1)
        hard = share * _one_hot(first.long(), z) + (1 - share) * _one_hot(second.long(), z)
        known = _in_range(first, z) & _in_range(second, z)
    elif target.is_floating_point():
        hard = classes_last(target).to(z.dtype)
    else:
        target = target.long()
        used = target != ignore_index
        known = used & _in_range(target, z)
        hard = _one_hot(torch.where(known, target, 0), z)
        z = z.masked_fill(~used.unsqueeze(-1), 0)  # an ignored sample may hold NaN
    rows, w = _row_losses(z, hard, T, v, label_smoothing)
    if known is not None:
        rows = torch.where(known, rows, torch.nan if used is None else torch.where(used, torch.nan, 0.0).to(rows.dtype))
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if used is not None:
        w = torch.where(known, w, 0)
    return rows.sum() / (z.shape[-1] * (rows.numel() if used is None else w.sum()))


def _row_losses(z: Tensor, hard: Tensor, T: float | Tensor, v: Tensor | None, smoothing: float):
    """(loss, w) of each row for targets `hard`, t' of the docstring."""
    classes = z.shape[-1]
    x = tempered(z, T)
    top = torch.arange(classes, device=z.device) == x.detach().argmax(-1, keepdim=True)
    # 0 at the top by value; what its logit does to the loss goes by way of all others.
    e = torch.where(top, 0, x - torch.where(top, x, 0).sum(-1, keepdim=True)).exp().masked_fill(top, 0)
    others = e.sum(-1, keepdim=True)
    target = (1 - smoothing) * hard + smoothing / classes
    # 1 - t_a without a difference of numbers near 1, where the label's own share is 1.
    beside_target = (1 - smoothing) * (1 - hard) + smoothing * (classes - 1) / classes
    difference = torch.where(top, beside_target - others / (1 + others), e / (1 + others) - target)
    w = torch.ones_like(hard[..., 0]) if v is None else (v * hard).sum(-1)
    return w * difference.square().sum(-1), w


def _one_hot(labels: Tensor, z: Tensor) -> Tensor:
    return (torch.arange(z.shape[-1], device=z.device) == labels.unsqueeze(-1)).to(z.dtype)


def _in_range(labels: Tensor, z: Tensor) -> Tensor:
    return (labels >= 0) & (labels < z.shape[-1])
