"""Hands tensors on the CPU to the C++ kernel: addresses, sizes and strides."""

from __future__ import annotations

import torch
from fastrank.kernels import backend
from fastrank.kernels.tempered_ce import layout, validate
from torch import Tensor

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
_LABEL, _SECOND_LABEL, _TEMPERATURE = 1, 2, 3


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
    stats: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows, denominator, grad) as `register.py` defines them."""
    loss, rows, denominator, grad = layout.outputs(logits, reduction, stats, with_grad)
    out = layout.as_ncd(grad) if grad.numel() else None
    problem, alive = _describe(
        logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows
    )
    fault = backend.core().tempered_ce_forward(
        *problem,
        temperature is not None,
        stats,
        loss.data_ptr(),
        _REDUCTIONS[reduction],
        denominator.data_ptr(),
        0 if out is None else out.data_ptr(),
        () if out is None else out.stride(),
        backend.threads(),
    )
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
    grad = torch.empty_like(logits)
    view = layout.as_ncd(grad)
    out = view if view is not None else torch.empty(logits.shape, dtype=logits.dtype).flatten(2)
    grad_loss = grad_loss.to(rows.dtype).contiguous()
    problem, alive = _describe(
        logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows
    )
    fault = backend.core().tempered_ce_backward(
        *problem,
        grad_loss.data_ptr(),
        0 if grad_loss.dim() == 0 else 1,
        denominator.data_ptr(),
        out.data_ptr(),
        out.stride(),
        backend.threads(),
    )
    _raise(fault, target, second, share, temperature, logits, ignore_index)
    del alive
    return grad if view is not None else grad.copy_(out.view(logits.shape))


def _describe(logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, grad_power, rows):
    """The arguments both passes share, and the tensors whose addresses are among them."""
    acc = rows.dtype
    view = _as_ncd(logits)
    probabilities = _as_ncd(target.to(acc)) if target.is_floating_point() else None
    target = target.contiguous() if probabilities is None else None
    second = None if second is None else second.contiguous()
    share, temperature, weight = (None if x is None else x.to(acc).contiguous() for x in (share, temperature, weight))
    problem = (
        _DTYPES[logits.dtype],
        view.data_ptr(),
        tuple(view.shape),
        view.stride(),
        _address(target),
        _address(second),
        _address(share),
        _stride(share),
        _address(probabilities),
        () if probabilities is None else probabilities.stride(),
        ignore_index,
        _address(weight),
        label_smoothing,
        _address(temperature),
        _stride(temperature),
        T,
        grad_power,
        rows.data_ptr(),
    )
    return problem, (view, target, second, share, probabilities, temperature, weight)


def _as_ncd(x: Tensor) -> Tensor:
    view = layout.as_ncd(x)
    return layout.as_ncd(x.contiguous()) if view is None else view


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _stride(x: Tensor | None) -> int:
    """0 for one value that all samples share, 1 for one each."""
    return 0 if x is None or x.dim() == 0 else 1


def _raise(fault, target, second, share, temperature, logits, ignore_index):
    kind, at = fault
    if kind == 0:
        return
    classes = logits.shape[min(1, logits.dim() - 1)]
    if kind == _LABEL:
        raise validate.bad_label(target, at, classes, ignore_index if second is None else None)
    if kind == _SECOND_LABEL:
        raise validate.bad_label(second, at, classes, None)
    if kind == _TEMPERATURE:
        raise validate.bad_temperature(temperature, at)
    raise validate.bad_share(share, at)
