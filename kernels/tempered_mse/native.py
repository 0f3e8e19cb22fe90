"""The C++ kernels on tensors in the CPU's memory."""

from __future__ import annotations

from fastrank.kernels import backend
from fastrank.kernels.tempered_loss.layout import geometry
from fastrank.kernels.tempered_loss.native import REDUCTIONS, describe, raise_fault, write_gradient
from fastrank.kernels.tempered_mse import layout
from torch import Tensor


def forward(
    logits: Tensor,
    target: Tensor,
    second: Tensor | None,
    share: Tensor | None,
    T: float,
    temperature: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    grad_power: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows, denominator, grad) as `register.py` defines them."""
    loss, rows, denominator, grad = layout.outputs(logits, reduction, with_grad)
    problem, alive = describe(
        logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows
    )
    fault = backend.core().tempered_mse_forward(
        *problem,
        loss.data_ptr(),
        REDUCTIONS[reduction],
        denominator.data_ptr(),
        grad.data_ptr(),  # 0 where it is empty
        geometry(grad)[1] if grad.numel() else (),
        backend.threads(),
    )
    if fault[0]:
        raise_fault(fault, target, second, share, temperature, logits, ignore_index)
    del alive
    return loss, rows, denominator, grad


def backward(*arguments) -> Tensor:
    """The gradient of the loss with respect to the logits; arguments as of `write_gradient`."""
    return write_gradient(backend.core().tempered_mse_backward, *arguments)
