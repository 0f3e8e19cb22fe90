"""The specification: the logits of a linear classifier, all of them, and their tempered cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from fastrank.kernels.tempered_ce import reference
from torch import Tensor


def linear_tempered_cross_entropy(
    features: Tensor,
    classifier: Tensor,
    target: Tensor | tuple[Tensor, Tensor, float | Tensor],
    bias: Tensor | None = None,
    *options,
) -> Tensor:
    """`options` are those of `tempered_ce.reference` after its target, in their order."""
    return reference.tempered_cross_entropy(F.linear(features, classifier, bias), target, *options)
