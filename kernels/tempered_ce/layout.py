"""What a forward pass leaves per row; how the kernels see their tensors is fastrank.kernels.tempered_loss.layout's."""

from __future__ import annotations

import torch
from fastrank.kernels.tempered_ce.reference import RowStats
from fastrank.kernels.tempered_loss import layout
from torch import Tensor

#: Planes of `rows` [planes, N * D], in the order of RowPlane in csrc/tempered_ce/tempered_ce.h: the row's maximum,
#: sum_j e_j with e_j = exp((z_j - max) / T), the same without the target, sum_j (d loss / d x_j) x_j. `RowStats`
#: follow where they are asked for.
STATE = ("maximum", "total", "others", "slope")


def outputs(logits: Tensor, reduction: str, stats: bool, with_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As fastrank.kernels.tempered_loss.layout.outputs."""
    planes = len(STATE) + (len(RowStats._fields) if stats else 0)
    return layout.outputs(logits, planes, reduction, with_grad)


def stats_of(rows: Tensor, shape: torch.Size) -> RowStats:
    """The statistics among `rows`, each in the target's `shape`."""
    planes = rows.unbind()[len(STATE) :]
    if len(shape) != 1:  # a view costs as much as a small batch's kernel
        planes = [plane.view(shape) for plane in planes]
    *figures, rank = planes
    return RowStats(*figures, target_rank=rank.long())
