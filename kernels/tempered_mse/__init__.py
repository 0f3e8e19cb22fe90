"""Squared error between the softmax of logits over a temperature and their target: `tempered_mse`.

`reference.py` defines it, `native.py` and csrc/tempered_mse/ compute it on the CPU, `triton.py` on CUDA.
"""

from __future__ import annotations

from fastrank.kernels.tempered_loss import choose, lower, validate
from fastrank.kernels.tempered_mse import reference, register
from fastrank.kernels.tracing import values_are_known
from torch import Tensor

__all__ = ["tempered_mse"]


def tempered_mse(
    input: Tensor,
    target: Tensor | tuple[Tensor, Tensor, float | Tensor],
    T: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    scale_gradient: str | None = None,
    impl: str | None = None,
) -> Tensor:
    """`torch.nn.functional.mse_loss(softmax(input / T), one_hot(target))`, fused and exact at both ends of the scale.

    A sample's loss is w sum_j (p_j - t_j)^2 with p the softmax of its logits over T, t its target (smoothed by
    `label_smoothing`) and w the class weight of its label (of soft targets: of their classes, by share). "none" gives
    it for each sample, "sum" their sum; "mean" divides that by C times the sum of w (index targets) or by C times the
    number of samples.

    Args:
        input: logits [C], [N, C] or [N, C, d1, ...], any strides, float64, float32, bfloat16 or float16; not changed.
        target: class indices (int64, int32, int16, int8 or uint8) of shape [], [N] or [N, d1, ...]; class
            probabilities shaped like `input`; or mixed (mixup, CutMix): (first, second, share), two tensors of class
            indices and the first's share in [0, 1], a number, a 0-d tensor or one per sample, [N].
        T: temperature in [1e-30, 1e30]: a number; a 0-d tensor, read when the kernel runs (so that it may change in
            place); or one value per sample, [N]. A tensor may require grad.
        weight: one factor per class, [C].
        ignore_index: label of samples that count neither in the loss nor in its mean, and whose gradient is 0.
        reduction: "none", "mean" or "sum".
        label_smoothing: share of the uniform distribution in the target, in [0, 1].
        scale_gradient: "T" or "T2" multiplies the gradient of the logits (not that of T) by T or T^2, before it is
            rounded to their dtype.

    Returns:
        The loss in float64 for float64 logits and in float32 otherwise, of shape [] or, unreduced, [N, d1, ...]. A mean
        over no sample is NaN.

    Raises:
        ValueError, TypeError: an argument of the wrong value, shape, dtype or device, by name.
        IndexError: a label outside [0, C) on the CPU, with its position. On CUDA, where looking would wait for the
            device, the loss of such a sample is NaN, and so it is for a T that is not finite and above 0; likewise in a
            compiled reference and under torch.func.
        RuntimeError: `impl` cannot run here.

    In a compiled graph a T that changes belongs in a tensor, which never compiles again; a number does once, when it
    first changes. torch.func's transforms and forward-mode differentiation run through the reference.
    """
    validate.options(T, reduction, label_smoothing, scale_gradient)
    validate.arguments(input, target, T, weight, ignore_index)
    chosen = choose("tempered_mse", input, target, weight, impl)
    if chosen == "reference":
        if values_are_known(input):
            validate.values(target, T, input.shape[min(1, input.dim() - 1)], ignore_index)
        return reference.tempered_mse(
            input, target, T, weight, ignore_index, reduction, label_smoothing, scale_gradient
        )
    target, second, share, T, temperature, with_grad = lower(input, target, T, reduction, chosen)
    loss, _rows, _denominator, _grad = register.tempered_mse(
        input, target, second, share, T, temperature, weight, ignore_index, reduction, label_smoothing,
        validate.GRADIENT_POWERS[scale_gradient], with_grad, chosen,
    )  # fmt: skip
    return loss
