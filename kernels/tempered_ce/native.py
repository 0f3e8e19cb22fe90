"""Hands tensors on the CPU to the C++ kernel: addresses, sizes and strides."""

from __future__ import annotations

import torch
from fastrank.kernels import backend
from fastrank.kernels.tempered_ce import layout, validate
from torch import Tensor

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_LABEL, _TEMPERATURE = 1, 2


def forward(
    logits: Tensor,
    target: Tensor,
    T: float,
    temperature: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    stats: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows, denominator, grad) as `register.py` defines them."""
    loss, rows, denominator, grad = layout.outputs(logits, target, reduction, stats, with_grad)
    out = layout.as_ncd(grad) if grad.numel() else None
    problem, alive = _describe(logits, target, T, temperature, weight, ignore_index, label_smoothing, rows)
    fault = backend.core().tempered_ce_forward(
        *problem,
        stats,
        loss.data_ptr(),
        _REDUCTIONS[reduction],
        denominator.data_ptr(),
        0 if out is None else out.data_ptr(),
        () if out is None else out.stride(),
        backend.threads(),
    )
    _raise(fault, target, temperature, logits, ignore_index)
    del alive
    return loss, rows, denominator, grad


def backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    rows: Tensor,
    denominator: Tensor,
    T: float,
    temperature: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The gradient of the loss with respect to the logits, in their dtype and memory order."""
    grad = torch.empty_like(logits)
    view = layout.as_ncd(grad)
    out = view if view is not None else torch.empty(logits.shape, dtype=logits.dtype).flatten(2)
    grad_loss = grad_loss.to(rows.dtype).contiguous()
    problem, alive = _describe(logits, target, T, temperature, weight, ignore_index, label_smoothing, rows)
    fault = backend.core().tempered_ce_backward(
        *problem,
        grad_loss.data_ptr(),
        0 if grad_loss.dim() == 0 else 1,
        denominator.data_ptr(),
        out.data_ptr(),
        out.stride(),
        backend.threads(),
    )
    _raise(fault, target, temperature, logits, ignore_index)
    del alive
    return grad if view is not None else grad.copy_(out.view(logits.shape))


def _describe(logits, target, T, temperature, weight, ignore_index, label_smoothing, rows):
    """The arguments both passes share, and the tensors whose addresses are among them."""
    acc = rows.dtype
    view = layout.as_ncd(logits)
    if view is None:
        view = layout.as_ncd(logits.contiguous())
    target = target.contiguous()
    weight = None if weight is None else weight.to(acc).contiguous()
    temperature = None if temperature is None else temperature.to(acc).contiguous()
    problem = (
        _DTYPES[logits.dtype],
        view.data_ptr(),
        tuple(view.shape),
        view.stride(),
        target.data_ptr(),
        ignore_index,
        0 if weight is None else weight.data_ptr(),
        label_smoothing,
        0 if temperature is None else temperature.data_ptr(),
        0 if temperature is None or temperature.dim() == 0 else 1,
        T,
        rows.data_ptr(),
    )
    return problem, (view, target, weight, temperature)


def _raise(fault: tuple[int, int], target: Tensor, temperature: Tensor | None, logits: Tensor, ignore_index: int):
    kind, at = fault
    if kind == _LABEL:
        raise validate.bad_label(target, at, logits.shape[min(1, logits.dim() - 1)], ignore_index)
    if kind == _TEMPERATURE:
        raise validate.bad_temperature(temperature, at)
