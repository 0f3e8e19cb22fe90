"""Tempered cross-entropy of a linear classifier without its logits in memory: `linear_tempered_cross_entropy`.

The rows go through in chunks: a matrix product makes a chunk's logits, the fused loss turns them into loss and
gradient, two products take the gradient to features and classifier, and the next chunk overwrites them. With a
reduction that happens in the forward pass, so that the logits are formed once (3 products in all, as without fusing);
with reduction="none" the gradient's weights are known only later and the backward pass forms the logits again (4).
"""

from __future__ import annotations

import torch
from fastrank.kernels import buffers
from fastrank.kernels.linear_tempered_ce import reference
from fastrank.kernels.linear_tempered_ce.config import chunk_rows
from fastrank.kernels.tempered_ce import native, register
from fastrank.kernels.tempered_loss import choose, lower, validate
from fastrank.kernels.tempered_loss.layout import accumulator
from fastrank.kernels.tempered_loss.register import alias, temperature_grad
from fastrank.kernels.tracing import batched, unobserved, values_are_known
from torch import Tensor

__all__ = ["linear_tempered_cross_entropy"]


def linear_tempered_cross_entropy(
    features: Tensor,
    classifier: Tensor,
    target: Tensor | tuple[Tensor, Tensor, float | Tensor],
    bias: Tensor | None = None,
    T: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    scale_gradient: str | None = None,
    impl: str | None = None,
) -> Tensor:
    """`tempered_cross_entropy(F.linear(features, classifier, bias), target, T, ...)` without the logits in memory.

    Args:
        features: [N, d], float64, float32, bfloat16 or float16. Under autocast they are cast as `F.linear` casts.
        classifier: [C, d], of the features' dtype. bias: [C] or None.
        target, T, weight, ignore_index, reduction, label_smoothing, scale_gradient: as in `tempered_cross_entropy`, for
            logits [N, C]. `scale_gradient` multiplies what reaches features, classifier and bias.
        impl: the kernel of the loss; "reference" forms all logits.

    Returns:
        The loss in float64 for float64 features, else float32; [] or, unreduced, [N]. Its gradients, first and second,
        are those of the composition (the second one's forms all logits).

    Raises:
        ValueError, TypeError, IndexError: as `tempered_cross_entropy`; and for features, classifier or bias that do not
            fit each other.
    """
    _validate_types(features, classifier, bias)
    features, classifier, bias = _autocast(features, classifier, bias)
    _validate(features, classifier, bias)
    validate.options(T, reduction, label_smoothing, scale_gradient)
    # Shapes and dtypes of logits that are never formed.
    logits = features.new_empty(()).expand(features.shape[0], classifier.shape[0])
    validate.arguments(logits, target, T, weight, ignore_index)
    chosen = choose("tempered_ce", logits, target, weight, impl)
    options = (T, weight, ignore_index, reduction, label_smoothing, scale_gradient)
    if values_are_known(features):  # here, for a chunk knows no positions but its own
        validate.values(target, T, classifier.shape[0], ignore_index)
    if chosen == "reference":
        return reference.linear_tempered_cross_entropy(features, classifier, target, bias, *options)
    target, second, share, T, temperature, _ = lower(features, target, T, reduction, chosen)
    return _Chunked.apply(
        features, classifier, bias, temperature, target, second, share, weight, T, ignore_index, reduction,
        label_smoothing, scale_gradient, chosen,
    )  # fmt: skip


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, classifier, bias, temperature, target, second, share, weight, *options):
        problem = (features, classifier, bias, temperature, target, second, share, weight)
        ctx.save_for_backward(*problem)
        ctx.options, ctx.ready = options, None
        _, ignore_index, reduction, *_ = options
        if reduction == "none":
            return _run(problem, options, (False,) * 4, None)[0]
        ctx.scale = torch.ones((), dtype=accumulator(features.dtype), device=features.device)
        if reduction == "mean":
            ctx.scale = ctx.scale / _denominator(features, target, second, weight, ignore_index)
        # A mean over no row is NaN, but moves nothing: its gradients are 0, not 0 / 0.
        empty = ~ctx.scale.isfinite()
        ctx.scale = torch.where(empty, 0, ctx.scale)
        loss, ctx.ready = _run(problem, options, ctx.needs_input_grad[:4], ctx.scale)
        return torch.where(empty, torch.nan, loss).to(loss.dtype)

    @staticmethod
    def backward(ctx, grad_loss):
        needed = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() or batched(grad_loss):
            grads = _differentiable(ctx, grad_loss, needed)
        elif ctx.options[2] == "none":
            grads = _run(ctx.saved_tensors, ctx.options, needed, grad_loss)[1]
        else:
            # Given away: whoever gets them may write into them, so that a second backward pass forms them anew.
            grads = ctx.ready or _run(ctx.saved_tensors, ctx.options, needed, ctx.scale)[1]
            ctx.ready = None
            unit = values_are_known(grad_loss) and grad_loss.item() == 1
            for grad in () if unit else grads:
                if grad is not None:
                    grad.mul_(grad_loss.to(grad.dtype))
        return (*grads, *(None,) * 10)


def _run(problem, options, needed, scale):
    """(loss, gradients of features, classifier, bias and temperature where `needed`).

    `scale`: None, or what each row weighs in the gradients [N], for an unreduced loss; 0-d where loss and gradients are
    sums over the rows times it.
    """
    features, classifier, bias, temperature, target, second, share, weight = problem
    T, ignore_index, _, label_smoothing, scale_gradient, impl = options
    power, parameters = validate.GRADIENT_POWERS[scale_gradient], (weight, ignore_index)
    n, acc, device = features.shape[0], accumulator(features.dtype), features.device
    reduced = scale is not None and scale.dim() == 0
    loss = torch.zeros((), dtype=torch.float64, device=device) if reduced else torch.empty(n, dtype=acc, device=device)
    # 16-bit products are added up in float32.
    grads = [x.new_empty(x.shape, dtype=acc) if need else None for x, need in zip(problem, needed, strict=False)]
    of_features, of_classifier, of_bias, of_temperature = grads
    for total in (of_classifier if n == 0 else None, of_bias, of_temperature):
        if total is not None:
            total.zero_()
    step = chunk_rows(classifier.shape[0], features.element_size(), device.type)
    all_logits = buffers.empty((min(n, step), classifier.shape[0]), features.detach())
    for begin in range(0, n, step):
        chunk = slice(begin, begin + step)
        x, of_rows = features[chunk], scale if scale is None or reduced else scale[chunk]
        logits = all_logits[: len(x)]
        torch.mm(x, classifier.T, out=logits) if bias is None else torch.addmm(bias, x, classifier.T, out=logits)
        tempered = _part(temperature, chunk)
        chosen = (target[chunk], _part(second, chunk), _part(share, chunk))
        # The native kernel leaves the gradient in the logits' place; the matrix products multiply it by `scale`.
        # (Not in float16, where sums of products with a gradient that is not yet divided would overflow.)
        arguments = (
            logits, *chosen, T, tempered, *parameters, "sum" if reduced else "none", label_smoothing, power, False,
        )  # fmt: skip
        at_once = reduced and impl == "native" and any(needed) and x.dtype != torch.float16 and unobserved(arguments)
        if at_once:
            value, rows, denominator, grad = native.forward(*arguments, True, in_place=True)
        else:
            value, rows, denominator, grad = register.tempered_ce(*arguments, False, impl)
        if reduced:
            loss += value
        else:
            loss[chunk] = value
        if not any(needed):
            continue
        if not at_once:
            grad, _ = torch.ops.fastrank.tempered_ce_backward(
                of_rows, logits, *chosen, rows, denominator, T, tempered, *parameters,
                "sum" if reduced else "none", label_smoothing, power, impl,
            )  # fmt: skip
        alpha = float(scale) if at_once else 1.0
        if needed[0]:
            _add_product(of_features[chunk], grad, classifier, alpha, first=True)
        if needed[1]:
            _add_product(of_classifier, grad.T, x, alpha, first=begin == 0)
        if needed[2]:
            of_bias.add_(grad.sum(0, dtype=acc), alpha=alpha)
        if needed[3]:
            part = temperature_grad(of_rows, logits, rows, denominator, tempered)
            of_temperature[chunk if temperature.dim() else ...] += part
    if reduced:
        loss = (loss * scale).to(acc)
    return loss, tuple(None if grad is None else grad.to(x.dtype) for grad, x in zip(grads, problem, strict=False))


def _add_product(total: Tensor, a: Tensor, b: Tensor, alpha: float, first: bool) -> None:
    """total += alpha a b; `first` writes a `total` that holds nothing yet."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=alpha, beta=0 if first else 1)
    elif first:
        torch.mul(a @ b, alpha, out=total)
    else:
        total.add_(a @ b, alpha=alpha)


def _part(x: Tensor | None, chunk: slice) -> Tensor | None:
    """The chunk of what is one per row; what all rows share as it is."""
    return x[chunk] if x is not None and x.dim() else x


def _denominator(features, target, second, weight, ignore_index):
    """What a mean divides by (see the loss's own reference)."""
    if target.is_floating_point() or second is not None:
        return torch.tensor(float(len(features)), device=features.device)
    used = target != ignore_index
    if weight is None:
        return used.sum()
    known = used & (target >= 0) & (target < len(weight))
    return torch.where(known, weight[torch.where(known, target, 0)], 0).sum(dtype=torch.float64)


def _differentiable(ctx, grad_loss, needed):
    """The gradients as a graph of torch's own operations: rare, and then right to any order."""
    *variables, target, second, share, weight = ctx.saved_tensors
    T, ignore_index, reduction, label_smoothing, scale_gradient, _ = ctx.options
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: one of them may depend on another, a path that is not this function's to count.
        features, classifier, bias, temperature = variables = [x if x is None else alias(x) for x in variables]
        loss = reference.linear_tempered_cross_entropy(
            features, classifier, target if second is None else (target, second, share), bias,
            T if temperature is None else temperature, weight, ignore_index, reduction, label_smoothing, scale_gradient,
        )  # fmt: skip
    inputs = [x for x, need in zip(variables, needed, strict=True) if need]
    found = iter(torch.autograd.grad(loss, inputs, grad_loss.to(loss.dtype), create_graph=again))
    return tuple(next(found) if need else None for need in needed)


def _autocast(features: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return features, *others
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in (features, *others))


def _validate_types(features, classifier, bias) -> None:
    for name, value in (("features", features), ("classifier", classifier), ("bias", bias)):
        if not isinstance(value, Tensor) and not (name == "bias" and value is None):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def _validate(features, classifier, bias) -> None:
    if features.dim() != 2 or features.dtype not in validate.FLOAT_DTYPES:
        raise ValueError(f"features: expected [N, d] of float dtype, got {features.dtype} {list(features.shape)}")
    if classifier.dim() != 2 or classifier.shape[1] != features.shape[1] or classifier.shape[0] == 0:
        raise ValueError(
            f"classifier: expected [C, d] with C > 0 and d = {features.shape[1]} as in features, "
            f"got {list(classifier.shape)}"
        )
    if bias is not None and bias.shape != classifier.shape[:1]:
        raise ValueError(f"bias: expected one value per class [{classifier.shape[0]}], got {list(bias.shape)}")
    for name, value in (("classifier", classifier), ("bias", bias)):
        if value is not None and (value.dtype != features.dtype or value.device != features.device):
            expected, got = (f"{x.dtype} on {x.device}" for x in (features, value))
            raise ValueError(f"{name}: expected {expected} as features, got {got}")
