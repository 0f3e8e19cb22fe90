"""Cross-entropy of logits divided by a temperature: `tempered_cross_entropy`.

`reference.py` defines it, `native.py` and csrc/tempered_ce/ compute it on the CPU, `triton.py` on CUDA.
"""

from __future__ import annotations

import torch
from fastrank.kernels import backend
from fastrank.kernels.tempered_ce import layout, reference, register, validate
from fastrank.kernels.tempered_ce.reference import RowStats
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["RowStats", "choose", "tempered_cross_entropy"]


def tempered_cross_entropy(
    input: Tensor,
    target: Tensor | tuple[Tensor, Tensor, float | Tensor],
    T: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    scale_gradient: str | None = None,
    return_stats: bool = False,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, RowStats]:
    """`torch.nn.functional.cross_entropy(input / T, target, ...)`, fused and exact at both ends of the scale.

    Args:
        input: logits [C], [N, C] or [N, C, d1, ...], any strides, float64, float32, bfloat16 or float16; not changed.
        target: class indices (any integer dtype) of shape [], [N] or [N, d1, ...]; class probabilities shaped like
            `input`; or mixed (mixup, CutMix): (first, second, share), two tensors of class indices and the first's
            share in [0, 1], a number, a 0-d tensor or one per sample, [N].
        T: temperature in [1e-30, 1e30]: a number; a 0-d tensor, read when the kernel runs (so that it may change in
            place); or one value per sample, [N]. A tensor may require grad.
        weight: one factor per class, [C].
        ignore_index: label of samples that count neither in the loss nor in its mean, and whose gradient is 0.
        reduction: "none", "mean" or "sum".
        label_smoothing: share of the uniform distribution in the target, in [0, 1].
        scale_gradient: "T" or "T2" multiplies the gradient of the logits (not that of T) by T or T^2, before it is
            rounded to their dtype: the loss's own is O(1 / T), too small for float16 at T = 1000.
        return_stats: also return `RowStats`, from the same pass over the logits.
        impl: "reference", "native" or "triton" instead of the one that suits the tensors.

    Returns:
        The loss in float64 for float64 logits and in float32 otherwise, of shape [] or, unreduced, [N, d1, ...]; with
        `return_stats` the pair (loss, RowStats). A mean over no sample is NaN.

    Raises:
        ValueError, TypeError: an argument of the wrong value, shape, dtype or device, by name.
        IndexError: a label outside [0, C) on the CPU, with its position. On CUDA, where looking would wait for the
            device, the loss of such a sample is NaN, and so it is for a T that is not finite and above 0; likewise in a
            compiled reference and under torch.func.
        RuntimeError: `impl` cannot run here.

    Where it differs from torch's at T = 1, on purpose: the loss of 16-bit logits is float32, and its dtype follows the
    logits alone, not a float64 `weight` or target; labels may be of any integer dtype and weights of any floating one;
    label_smoothing below 0 is an error, not none; one sample [C] has a label [], not [1]; logits without a class are an
    error even without a sample.

    In a compiled graph a T that changes belongs in a tensor, which never compiles again; a number does once, when it
    first changes. torch.func's transforms and forward-mode differentiation run through the reference.
    """
    validate.options(T, reduction, label_smoothing, scale_gradient)
    validate.arguments(input, target, T, weight, ignore_index)
    mixed = isinstance(target, tuple)
    chosen = choose(input, target, weight, impl)
    if chosen == "reference":
        if values_are_known(input):
            validate.values(target, T, input.shape[min(1, input.dim() - 1)], ignore_index)
        loss = reference.tempered_cross_entropy(
            input, target, T, weight, ignore_index, reduction, label_smoothing, scale_gradient
        )
        return (loss, reference.row_stats(input, target, T, ignore_index)) if return_stats else loss
    # On the CPU a training step's gradient comes out of the forward pass (see register.py).
    with_grad = (
        chosen == "native"
        and reduction != "none"
        and input.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
    temperature = second = share = None
    if isinstance(T, Tensor):
        T, temperature = 1.0, T if T.device == input.device else T.to(input.device, non_blocking=True)
    elif torch.compiler.is_compiling() and _varies(T):
        # A number that changes is an input of the graph, but an operator's argument only as a tensor; only arithmetic
        # makes it one without compiling again for every value. In the accumulator's dtype: a number alone is float64.
        temperature = torch.ones((), dtype=reference.accumulator(input.dtype), device=input.device) * T
        T = 1.0
    if mixed:
        target, second, share = target
        second = second.long()
        if not isinstance(share, Tensor):
            share = torch.full((), share, dtype=reference.accumulator(input.dtype), device=input.device)
    loss, rows, _denominator, _grad = register.tempered_ce(
        input, target if target.is_floating_point() else target.long(), second, share, float(T), temperature, weight,
        ignore_index, reduction, label_smoothing, validate.GRADIENT_POWERS[scale_gradient], return_stats, with_grad,
        chosen,
    )  # fmt: skip
    return (loss, layout.stats_of(rows, layout.sample_shape(input))) if return_stats else loss


def choose(input: Tensor, target: Tensor | tuple, weight: Tensor | None, impl: str | None) -> str:
    """The implementation that computes the loss of these (validated) arguments."""
    # A kernel has no derivative for probabilities, shares or weights.
    share = target[2] if isinstance(target, tuple) else target
    if (weight is not None and weight.requires_grad) or (isinstance(share, Tensor) and share.requires_grad):
        problem = "has no gradient for weight, class probabilities or a mixed target's share"
    elif _transformed():
        problem = "does not run in torch.func's transforms or forward-mode differentiation"
    else:
        return _choose(input.device.type, impl)
    if impl in (None, "reference"):
        return "reference"
    raise RuntimeError(f"impl={impl!r} {problem}; leave impl=None for these arguments")


def values_are_known(x: Tensor) -> bool:
    """Whether looking at labels and temperatures beside `x` neither waits for a device nor breaks a trace."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _transformed()


def _varies(number: float) -> bool:
    """Whether a number is an input of the graph being compiled, rather than a constant in it."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # half a second of imports, loaded by then

    return not has_static_value(number)


def _transformed() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp, ...) or forward-mode differentiation is under way. (A
    compiled graph is guarded by the transforms around it.)"""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


_chosen: dict[tuple[str, str | None], str] = {}


def _choose(device: str, impl: str | None) -> str:
    """The backend for tensors on `device`; a constant of the process, so also of a compiled graph."""
    if (device, impl) not in _chosen:
        _chosen[device, impl] = backend.choose("tempered_ce", torch.empty(0, device=device), impl)
    return _chosen[device, impl]


# As torch.compiler.assume_constant_result marks them; that imports the compiler, seconds for those who never compile.
_choose._dynamo_marked_constant = _transformed._dynamo_marked_constant = True
