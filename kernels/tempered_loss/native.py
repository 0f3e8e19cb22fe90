"""Hands tensors on the CPU to the C++ kernels: addresses, sizes and strides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fastrank.kernels import backend, buffers
from fastrank.kernels.tempered_loss import validate
from fastrank.kernels.tempered_loss.layout import geometry
from torch import Tensor

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_LABEL, _SECOND_LABEL, _TEMPERATURE = 1, 2, 3


def forward(
    kernel: Callable,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fills `outputs`, (loss, rows, denominator, grad) as `register.py` defines them, by the core's `kernel`."""
    loss, rows, denominator, grad = outputs
    problem, alive = _describe(
        logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows, grad
    )
    fault = kernel(*problem, loss.data_ptr(), _REDUCTIONS[reduction], denominator.data_ptr(), backend.threads())
    if fault[0]:
        _raise(fault, target, second, share, temperature, logits, ignore_index)
    del alive
    return outputs


def backward(
    kernel: Callable,
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    second: Tensor | None,
    share: Tensor | None,
    rows: Tensor,
    denominator: Tensor,
    T: float,
    temperature: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    grad_power: int,
) -> Tensor:
    """The gradient of the loss with respect to the logits, in their dtype and memory order, by the core's `kernel`."""
    grad = buffers.empty_like(logits)
    in_place = geometry(grad) is not None
    out = grad if in_place else torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grad_loss = grad_loss.to(rows.dtype).contiguous()
    problem, alive = _describe(
        logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows, out
    )
    fault = kernel(*problem, grad_loss.data_ptr(), _stride(grad_loss), denominator.data_ptr(), backend.threads())
    if fault[0]:
        _raise(fault, target, second, share, temperature, logits, ignore_index)
    del alive
    return grad if in_place else grad.copy_(out)


def _describe(
    logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows, grad
):
    """The arguments both passes share, and the tensors whose addresses are among them."""
    acc = rows.dtype
    logits, sizes, strides = _placed(logits)
    probabilities, probability_strides = None, ()
    if target.is_floating_point():
        probabilities, _, probability_strides = _placed(target.to(acc))
        target = None
    else:
        target = target.contiguous()
    second = None if second is None else second.contiguous()
    share, temperature, weight = (None if x is None else x.to(acc).contiguous() for x in (share, temperature, weight))
    problem = (
        _DTYPES[logits.dtype],
        logits.data_ptr(),
        sizes,
        strides,
        _address(target),
        _address(second),
        _address(share),
        _stride(share),
        _address(probabilities),
        probability_strides,
        ignore_index,
        _address(weight),
        label_smoothing,
        _address(temperature),
        _stride(temperature),
        T,
        grad_power,
        rows.data_ptr(),
        rows.shape[0],
        grad.data_ptr(),  # 0 where it is empty
        geometry(grad)[1] if grad.numel() else (),
    )
    return problem, (logits, target, second, share, probabilities, temperature, weight)


def _placed(x: Tensor) -> tuple[Tensor, tuple[int, int, int], tuple[int, int, int]]:
    """`x`, or a copy of it where no strides express it as [N, C, D], with its sizes and strides as that."""
    placed = geometry(x)
    if placed is None:
        x = x.contiguous()
        placed = geometry(x)
    return x, *placed


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _stride(x: Tensor | None) -> int:
    """0 for one value that all share, 1 for one each."""
    return 0 if x is None or x.dim() == 0 else 1


def _raise(fault, target, second, share, temperature, logits, ignore_index):
    kind, at = fault
    classes = logits.shape[min(1, logits.dim() - 1)]
    if kind == _LABEL:
        name, ignored = ("target", ignore_index) if second is None else ("target[0]", None)
        raise validate.bad_label(name, target, at, classes, ignored)
    if kind == _SECOND_LABEL:
        raise validate.bad_label("target[1]", second, at, classes, None)
    if kind == _TEMPERATURE:
        raise validate.bad_temperature(temperature, at)
    raise validate.bad_share(share, at)
