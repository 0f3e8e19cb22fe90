"""Cross-entropy of logits divided by a temperature: `tempered_cross_entropy`.

`reference.py` defines it, `native.py` and csrc/tempered_ce/ compute it on the CPU, `triton.py` on CUDA.
"""

from __future__ import annotations

from fastrank.kernels.tempered_ce import layout, reference, register
from fastrank.kernels.tempered_ce.reference import RowStats
from fastrank.kernels.tempered_loss import choose, lower, validate
from fastrank.kernels.tempered_loss.layout import sample_shape
from fastrank.kernels.tracing import values_are_known
from torch import Tensor

__all__ = ["RowStats", "tempered_cross_entropy"]


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
    logits alone, not a float64 `weight` or target; labels may be of any signed integer dtype and weights of any
    floating one; label_smoothing below 0 is an error, not none; one sample [C] has a label [], not [1]; logits without
    a class are an error even without a sample.

    In a compiled graph a T that changes belongs in a tensor, which never compiles again; a number does once, when it
    first changes. torch.func's transforms and forward-mode differentiation run through the reference.
    """
    validate.options(T, reduction, label_smoothing, scale_gradient)
    validate.arguments(input, target, T, weight, ignore_index)
    chosen = choose("tempered_ce", input, target, weight, impl)
    if chosen == "reference":
        if values_are_known(input):
            validate.values(target, T, input.shape[min(1, input.dim() - 1)], ignore_index)
        loss = reference.tempered_cross_entropy(
            input, target, T, weight, ignore_index, reduction, label_smoothing, scale_gradient
        )
        return (loss, reference.row_stats(input, target, T, ignore_index)) if return_stats else loss
    target, second, share, T, temperature, with_grad = lower(input, target, T, reduction, chosen)
    loss, rows, _denominator, _grad = register.tempered_ce(
        input, target, second, share, T, temperature, weight, ignore_index, reduction, label_smoothing,
        validate.GRADIENT_POWERS[scale_gradient], return_stats, with_grad, chosen,
    )  # fmt: skip
    return (loss, layout.stats_of(rows, sample_shape(input))) if return_stats else loss
