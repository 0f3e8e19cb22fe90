"""The specification of the tempered cross-entropy, in plain torch: any dtype and device, differentiable any number
of times with respect to logits, temperature, weight and class-probability targets. Every kernel is held to it.

With z a sample's logits, x = (z - max z) / T, p = softmax(x), y its target, w the class weights, s the smoothing:

    loss = (1 - s) w_y (logsumexp(x) - x_y) + s / C sum_j w_j (logsumexp(x) - x_j)        class-index target
    loss = sum_j w_j ((1 - s) q_j + s / C) (logsumexp(x) - x_j)                            class-probability target
    loss = share loss(y1) + (1 - share) loss(y2)                                           mixed target (y1, y2, share)

`mean` divides by the sum of w_y over the samples that are not ignored (index targets) or by the number of samples
(probability targets), as torch.nn.functional.cross_entropy does. A mixed target (mixup: Zhang et al. 2018; CutMix: Yun
et al. 2019) means the probabilities share [j = y1] + (1 - share) [j = y2], so its mean divides by the samples too.

`scale_gradient` multiplies the gradient of the logits, and nothing else, by T or T^2: the loss's own is O(1 / T).

Two points of numerics. The maximum is taken off before the division, so an offset common to all logits costs no
digits at any T. And logsumexp(x) - x_y is evaluated as log(1 + sum_{j != y} exp(x_j - x_y)), whose gradient at the
target is -(sum of the others) / sum: near p_y = 1 neither loss nor gradient cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from fastrank.kernels.tempered_loss.reference import (
    classes_last,
    per_label,
    per_sample,
    tempered,
    with_scaled_gradient,
)
from torch import Tensor


class RowStats(NamedTuple):
    """Figures of each sample's logits z, shaped like the unreduced loss, float32 (float64 for float64 logits).

    They carry no gradient. Samples with target `ignore_index` are measured too; their `target_rank` is -1.
    """

    #: log sum_j exp(z_j / T)
    logsumexp: Tensor
    #: max_j p_j
    max_prob: Tensor
    #: -sum_j p_j log p_j, in nats
    entropy: Tensor
    #: sum_j z_j, before the temperature
    sum_z: Tensor
    #: sum_j z_j^2, before the temperature: sqrt of its sum over a batch is the logits' Frobenius norm
    sum_z2: Tensor
    #: number of logits above the target's (int64): the sample is top-k correct where it is below k
    target_rank: Tensor


def tempered_cross_entropy(
    input: Tensor,
    target: Tensor | tuple[Tensor, Tensor, float | Tensor],
    T: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    scale_gradient: str | None = None,
) -> Tensor:
    """The loss of the module's docstring; arguments as in `fastrank.kernels.tempered_ce`, already validated."""
    T = per_sample(T, input)
    z = with_scaled_gradient(classes_last(input), T, scale_gradient)
    if isinstance(target, tuple):
        rows, count = _mixed_rows(z, target, T, weight, label_smoothing)
    elif target.is_floating_point():
        rows, count = _probability_rows(z, classes_last(target), T, weight, label_smoothing)
    else:
        rows, count = _index_rows(z, target.long(), T, weight, ignore_index, label_smoothing)
    if reduction == "none":
        return rows
    return rows.sum() / count if reduction == "mean" else rows.sum()


@torch.no_grad()
def row_stats(input: Tensor, target: Tensor | tuple, T: float | Tensor = 1.0, ignore_index: int = -100) -> RowStats:
    """`RowStats` of the logits; for probability and mixed targets the rank is that of the most probable class."""
    z, T = classes_last(input), per_sample(T, input)
    if isinstance(target, tuple):
        first, second, share = target
        target = torch.where(per_label(share, first) < 0.5, second.long(), first.long())
    if target.is_floating_point():
        y, known = classes_last(target).argmax(-1), torch.tensor(True, device=z.device)
    else:
        target = target.long()
        known = (target != ignore_index) & (target >= 0) & (target < z.shape[-1])
        y = torch.where(known, target, 0)
    x = tempered(z, T)
    log_sum, e = x.logsumexp(-1), x.exp()
    temperature = T.squeeze(-1) if isinstance(T, Tensor) else T
    moment = torch.where(e > 0, e * x, e).sum(-1)  # e = 0 takes x = -inf out, but keeps NaN
    return RowStats(
        logsumexp=z.amax(-1) / temperature + log_sum,
        max_prob=(-log_sum).exp(),
        entropy=log_sum - moment / e.sum(-1),
        sum_z=z.sum(-1),
        sum_z2=z.square().sum(-1),
        target_rank=torch.where(known, (z > z.gather(-1, y.unsqueeze(-1))).sum(-1), -1),
    )


def _index_rows(z, target, T, weight, ignore_index, label_smoothing):
    classes = z.shape[-1]
    used = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    known = used & (target >= 0) & (target < classes)
    y = torch.where(known, target, 0)
    x = tempered(z.masked_fill(~used.unsqueeze(-1), 0), T)  # an ignored sample may hold NaN
    is_target = torch.arange(classes, device=z.device) == y.unsqueeze(-1)
    # Not -inf: where no other class has any probability, logsumexp of -inf alone has no derivative.
    others = x.masked_fill(is_target, torch.finfo(x.dtype).min).logsumexp(-1)
    rows = -F.logsigmoid(x.gather(-1, y.unsqueeze(-1)).squeeze(-1) - others)
    w = None if weight is None else weight.to(z.dtype)
    if w is not None:
        rows = rows * w[y]
    if label_smoothing:
        deficit = x.logsumexp(-1, keepdim=True) - x
        smooth = (deficit if w is None else deficit * w).sum(-1) / classes
        rows = (1 - label_smoothing) * rows + label_smoothing * smooth
    rows = torch.where(known, rows, torch.where(used, torch.nan, 0.0).to(rows.dtype))
    count = used.sum() if w is None else torch.where(known, w[y], 0).sum()
    return rows, count


def _mixed_rows(z, target, T, weight, label_smoothing):
    first, second, share = target
    share = per_label(share, first).to(z.dtype)
    share = torch.where((share >= 0) & (share <= 1), share, torch.nan)  # as for a label that does not exist
    of_first, of_second = (
        _index_rows(z, labels.long(), T, weight, None, label_smoothing)[0] for labels in (first, second)
    )
    return share * of_first + (1 - share) * of_second, first.numel()


def _probability_rows(z, q, T, weight, label_smoothing):
    q = q.to(z.dtype)
    if label_smoothing:
        q = (1 - label_smoothing) * q + label_smoothing / z.shape[-1]
    if weight is not None:
        q = q * weight.to(z.dtype)
    rows = -(q * tempered(z, T).log_softmax(-1)).sum(-1)
    return rows, rows.numel()
