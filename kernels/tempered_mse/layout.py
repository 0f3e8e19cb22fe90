"""What a forward pass leaves per row; how the kernels see their tensors is fastrank.kernels.tempered_loss.layout's."""

from __future__ import annotations

from fastrank.kernels.tempered_loss import layout
from torch import Tensor

#: Planes of `rows` [planes, N * D], in the order of SquaredErrorPlane in csrc/tempered_mse/tempered_mse.h, in the
#: symbols of reference.py: max z, S, D, sum_j (d loss / d x_j) x_j, p_a (q d_a - M), w.
STATE = ("maximum", "total", "mean", "slope", "top", "weight")


def outputs(logits: Tensor, reduction: str, with_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As fastrank.kernels.tempered_loss.layout.outputs."""
    return layout.outputs(logits, len(STATE), reduction, with_grad)
