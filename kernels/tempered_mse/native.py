"""Hands tensors on the CPU to the C++ kernel: addresses, sizes and strides."""

from __future__ import annotations

import torch
from fastrank.kernels import backend, buffers
from fastrank.kernels.tempered_ce.layout import geometry
from fastrank.kernels.tempered_ce.native import _DTYPES, _REDUCTIONS, _address, _placed, _raise, _stride
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
    problem, alive = _describe(
        logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows
    )
    fault = backend.core().tempered_mse_forward(
        *problem,
        loss.data_ptr(),
        _REDUCTIONS[reduction],
        denominator.data_ptr(),
        grad.data_ptr(),  # 0 where it is empty
        geometry(grad)[1] if grad.numel() else (),
        backend.threads(),
    )
    if fault[0]:
        _raise(fault, target, second, share, temperature, logits, ignore_index)
    del alive
    return loss, rows, denominator, grad


def backward(
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
    """The gradient of the loss with respect to the logits, in their dtype and memory order."""
    grad = buffers.empty_like(logits)
    in_place = geometry(grad) is not None
    out = grad if in_place else torch.empty(logits.shape, dtype=logits.dtype)
    grad_loss = grad_loss.to(rows.dtype).contiguous()
    problem, alive = _describe(
        logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows
    )
    fault = backend.core().tempered_mse_backward(
        *problem,
        grad_loss.data_ptr(),
        0 if grad_loss.dim() == 0 else 1,
        denominator.data_ptr(),
        out.data_ptr(),
        geometry(out)[1],
        backend.threads(),
    )
    if fault[0]:
        _raise(fault, target, second, share, temperature, logits, ignore_index)
    del alive
    return grad if in_place else grad.copy_(out)


def _describe(logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows):
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
    )
    return problem, (logits, target, second, share, probabilities, temperature, weight)
