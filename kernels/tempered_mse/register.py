"""Registers the fused kernels with torch as kernels/tempered_ce/register.py does: one operator for the loss, one for
its gradient, both with fake kernels and autograd.

The operators have no derivative for weights, class probabilities or shares: those are the reference's (see
`__init__.py`).
"""

from __future__ import annotations

import torch
from fastrank.kernels.tempered_ce import validate
from fastrank.kernels.tempered_ce.layout import sample_shape
from fastrank.kernels.tempered_ce.register import _alias, _batched, _differentiable
from fastrank.kernels.tempered_mse import layout, native, reference
from torch import Tensor

_SCALES = {power: name for name, power in validate.GRADIENT_POWERS.items()}
_SLOPE = layout.STATE.index("slope")

# loss: reduced as asked, in the accumulator's dtype. rows: see layout.STATE. denominator: what the mean divided by,
# else 1. grad: with `with_grad` (native, reduced) the logits' gradient for grad_loss = 1, out of the same pass; else
# empty. `target` holds labels (int64) or class probabilities; with `second` and `share` it is the first of two labels.
# `temperature` ([] or [N]) overrides `T`; `grad_power` is that of T in the logits' gradient; `impl` names the kernel:
# native or triton.
torch.library.define(
    "fastrank::tempered_mse",
    "(Tensor logits, Tensor target, Tensor? second, Tensor? share, float T, Tensor? temperature, Tensor? weight,"
    " int ignore_index, str reduction, float label_smoothing, int grad_power, bool with_grad, str impl)"
    " -> (Tensor loss, Tensor rows, Tensor denominator, Tensor grad)",
)
# The gradients of the loss, times grad_loss, for the logits and for `temperature` (empty where that is None).
torch.library.define(
    "fastrank::tempered_mse_backward",
    "(Tensor grad_loss, Tensor logits, Tensor target, Tensor? second, Tensor? share, Tensor rows, Tensor denominator,"
    " float T, Tensor? temperature, Tensor? weight, int ignore_index, str reduction, float label_smoothing,"
    " int grad_power, str impl)"
    " -> (Tensor grad_logits, Tensor grad_temperature)",
)


def _kernels(impl: str):
    if impl == "native":
        return native
    from fastrank.kernels.tempered_mse import triton

    return triton


def _forward(*arguments):
    *arguments, impl = arguments
    return _kernels(impl).forward(*arguments)


def _backward(
    grad_loss, logits, target, second, share, rows, denominator, T, temperature, weight,
    ignore_index, reduction, label_smoothing, grad_power, impl,
):  # fmt: skip
    grad = _kernels(impl).backward(
        grad_loss, logits, target, second, share, rows, denominator, T, temperature, weight,
        ignore_index, label_smoothing, grad_power,
    )  # fmt: skip
    return grad, temperature_grad(grad_loss, logits, rows, denominator, temperature)


def temperature_grad(grad_loss: Tensor, logits: Tensor, rows: Tensor, denominator: Tensor, temperature: Tensor | None):
    if temperature is None:
        return rows.new_empty(0)
    slope = rows[_SLOPE].reshape(sample_shape(logits))
    # An unused row has slope 0: where all are, 0 / 0 is no reason to poison a learnt temperature.
    per_row = torch.where(slope == 0, 0, grad_loss.to(rows.dtype) * slope / denominator)
    if temperature.dim() == 0:
        per_row = per_row.sum()
    elif per_row.dim() > 1:
        per_row = per_row.sum(tuple(range(1, per_row.dim())))
    return (-per_row / temperature.to(rows.dtype)).to(temperature.dtype)


@torch.library.register_fake("fastrank::tempered_mse")
def _forward_fake(
    logits, target, second, share, T, temperature, weight, ignore_index, reduction, label_smoothing, grad_power,
    with_grad, impl,
):  # fmt: skip
    return layout.outputs(logits, reduction, with_grad)


@torch.library.register_fake("fastrank::tempered_mse_backward")
def _backward_fake(
    grad_loss, logits, target, second, share, rows, denominator, T, temperature, weight,
    ignore_index, reduction, label_smoothing, grad_power, impl,
):  # fmt: skip
    grad_temperature = rows.new_empty(0) if temperature is None else torch.empty_like(temperature)
    return torch.empty_like(logits), grad_temperature


#: Where the inputs that have a derivative stand among the operators' arguments.
_DIFFERENTIABLE = (0, 5)  # logits, temperature
_BACKWARD_DIFFERENTIABLE = (0, 1, 8)  # grad_loss, logits, temperature


def _save_forward(ctx, inputs, output):
    (logits, target, second, share, T, temperature, weight,
     ignore_index, reduction, label_smoothing, grad_power, _with_grad, impl) = inputs  # fmt: skip
    _loss, rows, denominator, grad = output
    ctx.save_for_backward(logits, target, second, share, rows, denominator, temperature, weight)
    ctx.ready = grad if grad.numel() else None
    ctx.learns_temperature = temperature is not None
    ctx.options = (T, ignore_index, reduction, label_smoothing, grad_power, impl)


def _grad_of_loss(ctx, grad_loss):
    # The forward pass may have left the gradient for grad_loss = 1. It is given away, so once only: whoever gets it may
    # write into it. (A subclass of Tensor here is a tracer's, without a value.)
    ready, ctx.ready = ctx.ready, None
    plain = ready is not None and type(grad_loss) is Tensor and not _batched(grad_loss)
    if not plain or torch.is_grad_enabled() or grad_loss.item() != 1:
        ready = None
    elif not ctx.learns_temperature:
        return ready, None
    logits, target, second, share, rows, denominator, temperature, weight = ctx.saved_tensors
    if ready is not None:
        return ready, temperature_grad(grad_loss, logits, rows, denominator, temperature)
    T, ignore_index, reduction, label_smoothing, grad_power, impl = ctx.options
    grad, grad_temperature = tempered_mse_backward(
        grad_loss, logits, target, second, share, rows, denominator, T, temperature, weight,
        ignore_index, reduction, label_smoothing, grad_power, impl,
    )  # fmt: skip
    return grad, None if temperature is None else grad_temperature


def _save_backward(ctx, inputs, output):
    (grad_loss, logits, target, second, share, _rows, _denominator, T, temperature, weight,
     ignore_index, reduction, label_smoothing, grad_power, _impl) = inputs  # fmt: skip
    ctx.save_for_backward(grad_loss, logits, target, second, share, temperature, weight)
    ctx.set_materialize_grads(False)
    ctx.options = (T, ignore_index, reduction, label_smoothing, grad_power)


def _grad_of_grad(ctx, grad_grad, grad_grad_temperature):
    """Differentiates the reference's gradient instead of the kernel's: rare, and then right to any order."""
    grad_loss, logits, target, second, share, temperature, weight = ctx.saved_tensors
    T, ignore_index, reduction, label_smoothing, grad_power = ctx.options
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: grad_loss may itself depend on the logits, a path that is not this operator's to count.
        grad_loss, logits = _alias(grad_loss), _alias(logits)
        temperature = None if temperature is None else _alias(temperature)
        first_of = [logits] if temperature is None else [logits, temperature]
        loss = reference.tempered_mse(
            logits, target if second is None else (target, second, share), T if temperature is None else temperature,
            weight, ignore_index, reduction, label_smoothing, _SCALES[grad_power],
        )  # fmt: skip
        first = torch.autograd.grad(loss, first_of, grad_loss.to(loss.dtype), create_graph=True)
        pairs = [
            (value, grad)
            for value, grad in zip(first, (grad_grad, grad_grad_temperature), strict=False)
            if grad is not None and value.requires_grad
        ]
        second_order = torch.autograd.grad(
            [value for value, _ in pairs],
            [grad_loss, *first_of],
            [grad for _, grad in pairs],
            create_graph=again,
            allow_unused=True,
        )
    return (*second_order, None) if temperature is None else second_order


tempered_mse = _differentiable(
    torch.ops.fastrank.tempered_mse, _forward, _DIFFERENTIABLE, 1, _save_forward, _grad_of_loss
)
tempered_mse_backward = _differentiable(
    torch.ops.fastrank.tempered_mse_backward, _backward, _BACKWARD_DIFFERENTIABLE, 2, _save_backward, _grad_of_grad
)
