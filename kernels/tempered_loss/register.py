"""Registers a tempered loss with torch: one operator for the loss and one for its gradient, both with fake kernels and
autograd, so that eager, torch.compile, double backward and opcheck all meet the same two names.

The operators have no derivative for weights, class probabilities or shares: those are the references'.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from fastrank.kernels.tempered_loss import validate
from fastrank.kernels.tempered_loss.layout import SLOPE, sample_shape
from fastrank.kernels.tracing import batched, unobserved
from torch import Tensor

_SCALES = {power: name for name, power in validate.GRADIENT_POWERS.items()}

# loss: reduced as asked, in the accumulator's dtype. rows: what the forward pass leaves per row (the op's STATE).
# denominator: what the mean divided by, else 1. grad: with `with_grad` (native, reduced) the logits' gradient for
# grad_loss = 1, out of the same pass; else empty. `target` holds labels (int64) or class probabilities; with `second`
# and `share` it is the first of two labels. `temperature` ([] or [N]) overrides `T`; `grad_power` is that of T in the
# logits' gradient; `impl` names the kernel: native or triton.
_LOSS = (
    "(Tensor logits, Tensor target, Tensor? second, Tensor? share, float T, Tensor? temperature, Tensor? weight,"
    " int ignore_index, str reduction, float label_smoothing, int grad_power, {options}bool with_grad, str impl)"
    " -> (Tensor loss, Tensor rows, Tensor denominator, Tensor grad)"
)
# The gradients of the loss, times grad_loss, for the logits and for `temperature` (empty where that is None).
_GRADIENT = (
    "(Tensor grad_loss, Tensor logits, Tensor target, Tensor? second, Tensor? share, Tensor rows, Tensor denominator,"
    " float T, Tensor? temperature, Tensor? weight, int ignore_index, str reduction, float label_smoothing,"
    " int grad_power, str impl)"
    " -> (Tensor grad_logits, Tensor grad_temperature)"
)
#: Where the inputs that have a derivative stand among the operators' arguments.
_LOSS_INPUTS = (0, 5)  # logits, temperature
_GRADIENT_INPUTS = (0, 1, 8)  # grad_loss, logits, temperature


def register(
    name: str, kernels: Callable[[str], ModuleType], reference: Callable, outputs: Callable, options: str = ""
) -> tuple[Callable, Callable]:
    """Registers fastrank::<name> and fastrank::<name>_backward; returns them as functions.

    Args:
        kernels: the module with `forward` and `backward` of an impl.
        reference: the loss in torch's own operations, differentiated in place of the gradient's kernel.
        outputs: (loss, rows, denominator, grad) uninitialised, of (logits, reduction, *options, with_grad).
        options: of the loss alone, as in a schema, each with a comma and a space behind.
    """

    def forward(*arguments):
        *arguments, impl = arguments
        return kernels(impl).forward(*arguments)

    def backward(
        grad_loss, logits, target, second, share, rows, denominator, T, temperature, weight,
        ignore_index, reduction, label_smoothing, grad_power, impl,
    ):  # fmt: skip
        grad = kernels(impl).backward(
            grad_loss, logits, target, second, share, rows, denominator, T, temperature, weight,
            ignore_index, label_smoothing, grad_power,
        )  # fmt: skip
        return grad, temperature_grad(grad_loss, logits, rows, denominator, temperature)

    def save_forward(ctx, inputs, output):
        (logits, target, second, share, T, temperature, weight,
         ignore_index, reduction, label_smoothing, grad_power, *_options, impl) = inputs  # fmt: skip
        _loss, rows, denominator, grad = output
        ctx.save_for_backward(logits, target, second, share, rows, denominator, temperature, weight)
        ctx.ready = grad if grad.numel() else None
        ctx.learns_temperature = temperature is not None
        ctx.options = (T, ignore_index, reduction, label_smoothing, grad_power, impl)

    def grad_of_loss(ctx, grad_loss):
        # The forward pass may have left the gradient for grad_loss = 1. It is given away, so once only: whoever gets it
        # may write into it. (A subclass of Tensor here is a tracer's, without a value.)
        ready, ctx.ready = ctx.ready, None
        plain = ready is not None and type(grad_loss) is Tensor and not batched(grad_loss)
        if not plain or torch.is_grad_enabled() or grad_loss.item() != 1:
            ready = None
        elif not ctx.learns_temperature:
            return ready, None
        logits, target, second, share, rows, denominator, temperature, weight = ctx.saved_tensors
        if ready is not None:
            return ready, temperature_grad(grad_loss, logits, rows, denominator, temperature)
        T, ignore_index, reduction, label_smoothing, grad_power, impl = ctx.options
        grad, grad_temperature = gradient(
            grad_loss, logits, target, second, share, rows, denominator, T, temperature, weight,
            ignore_index, reduction, label_smoothing, grad_power, impl,
        )  # fmt: skip
        return grad, None if temperature is None else grad_temperature

    def save_backward(ctx, inputs, output):
        (grad_loss, logits, target, second, share, _rows, _denominator, T, temperature, weight,
         ignore_index, reduction, label_smoothing, grad_power, _impl) = inputs  # fmt: skip
        ctx.save_for_backward(grad_loss, logits, target, second, share, temperature, weight)
        ctx.set_materialize_grads(False)
        ctx.options = (T, ignore_index, reduction, label_smoothing, grad_power)

    def grad_of_grad(ctx, grad_grad, grad_grad_temperature):
        """Differentiates the reference's gradient instead of the kernel's: rare, and then right to any order."""
        grad_loss, logits, target, second, share, temperature, weight = ctx.saved_tensors
        T, ignore_index, reduction, label_smoothing, grad_power = ctx.options
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases: grad_loss may itself depend on the logits, a path that is not this operator's to count.
            grad_loss, logits = alias(grad_loss), alias(logits)
            temperature = None if temperature is None else alias(temperature)
            first_of = [logits] if temperature is None else [logits, temperature]
            loss = reference(
                logits, target if second is None else (target, second, share),
                T if temperature is None else temperature,
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

    def fake_gradient(grad_loss, logits, *rest):
        rows, temperature = rest[3], rest[6]
        grad_temperature = rows.new_empty(0) if temperature is None else torch.empty_like(temperature)
        return torch.empty_like(logits), grad_temperature

    torch.library.define(f"fastrank::{name}", _LOSS.format(options=options))
    torch.library.define(f"fastrank::{name}_backward", _GRADIENT)
    torch.library.register_fake(f"fastrank::{name}")(lambda *inputs: outputs(inputs[0], inputs[8], *inputs[11:-1]))
    torch.library.register_fake(f"fastrank::{name}_backward")(fake_gradient)
    ops = torch.ops.fastrank
    gradient = _differentiable(
        getattr(ops, f"{name}_backward"), backward, _GRADIENT_INPUTS, 2, save_backward, grad_of_grad
    )
    return _differentiable(getattr(ops, name), forward, _LOSS_INPUTS, 1, save_forward, grad_of_loss), gradient


def temperature_grad(grad_loss: Tensor, logits: Tensor, rows: Tensor, denominator: Tensor, temperature: Tensor | None):
    """The gradient of `temperature`, from the rows' slopes."""
    if temperature is None:
        return rows.new_empty(0)
    slope = rows[SLOPE].reshape(sample_shape(logits))
    per_row = grad_loss.to(rows.dtype) * slope / denominator
    # An unused row has slope 0: where all are, 0 / 0 is no reason to poison a learnt temperature.
    per_row = torch.where(slope == 0, 0, per_row)
    if temperature.dim() == 0:
        per_row = per_row.sum()
    elif per_row.dim() > 1:
        per_row = per_row.sum(tuple(range(1, per_row.dim())))
    return (-per_row / temperature.to(rows.dtype)).to(temperature.dtype)


def alias(x: Tensor) -> Tensor:
    """`x` as a variable of its own: what else depends on it is not differentiated along."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _differentiable(op, kernel, inputs, outputs, setup, backward):
    """Registers `kernel` and its derivative. Returns `op` as a function that goes straight to `kernel` where nobody but
    autograd looks on.

    `inputs` are the positions of the arguments that `backward` returns gradients for, `outputs` how many of the first
    results have one.

    What torch.library.register_autograd(op, backward, setup_context=setup) does, but cheaper: that one walks the
    operator's schema in Python at every call, which here takes as long as the whole loss of a small batch. (For the
    same reason `setup` runs inside `forward`: torch binds the signature anew for a separate setup_context; and what has
    no derivative goes past autograd, which wraps every value it is handed.)
    """

    def compute(*arguments):
        if unobserved(arguments):
            return kernel(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, arguments, others, *_differentiable):
            results = compute(*arguments)
            setup(ctx, arguments, results)
            others += results[outputs:]
            return results[:outputs]

        @staticmethod
        def backward(ctx, *grads):
            return None, None, *backward(ctx, *grads)

    def call(*arguments):
        if not torch.is_grad_enabled():
            return compute(*arguments)
        others = []
        return *Fused.apply(arguments, others, *[arguments[i] for i in inputs]), *others

    torch.library.impl(f"fastrank::{op.__name__}", ("cpu", "cuda"), kernel)
    torch.library.impl(f"fastrank::{op.__name__}", "Autograd", call)

    def direct(*arguments):
        return call(*arguments) if unobserved(arguments) else op(*arguments)

    return direct
