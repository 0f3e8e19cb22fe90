"""The C++ kernels on tensors in the CPU's memory."""

from __future__ import annotations

from fastrank.kernels import backend
from fastrank.kernels.tempered_ce import layout
from fastrank.kernels.tempered_loss import native
from torch import Tensor


def forward(*arguments, in_place: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows, denominator, grad) of the operator's arguments; `in_place`, grad overwrites the logits."""
    *problem, stats, with_grad = arguments
    logits, reduction = problem[0], problem[8]
    *outputs, grad = layout.outputs(logits, reduction, stats, with_grad and not in_place)
    return native.forward(backend.core().tempered_ce_forward, (*outputs, logits if in_place else grad), *problem)


def backward(*arguments) -> Tensor:
    """The gradient of the logits; arguments as of `tempered_loss.native.backward`."""
    return native.backward(backend.core().tempered_ce_backward, *arguments)
