"""The C++ kernels on tensors in the CPU's memory."""

from __future__ import annotations

from fastrank.kernels import backend
from fastrank.kernels.tempered_loss import native
from fastrank.kernels.tempered_mse import layout
from torch import Tensor


def forward(*arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows, denominator, grad) of the operator's arguments."""
    *problem, with_grad = arguments
    outputs = layout.outputs(problem[0], problem[8], with_grad)
    return native.forward(backend.core().tempered_mse_forward, outputs, *problem)


def backward(*arguments) -> Tensor:
    """The gradient of the logits; arguments as of `tempered_loss.native.backward`."""
    return native.backward(backend.core().tempered_mse_backward, *arguments)
