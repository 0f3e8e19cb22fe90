"""The fused loss on CUDA: one launch forward, one for the gradient; no host sync.

Formulas and row planes as in csrc/tempered_ce/tempered_ce.h. The forward pass reads a row once: maximum and sums are
carried from tile to tile, sums rescaled when the maximum rises. (Statistics beside class probabilities read those
twice: a rank is counted against the most probable class, which is known at the end of a row only.) Where rows are few
and long, config.py splits them over programs. Whichever program ends last puts rows and loss together, always in the
same order, so that a result does not depend on who that was. It waits for nobody: each program counts itself off at
the end of its work. Offsets are 64-bit. A label outside [0, C), a share outside [0, 1] and a temperature that is not
finite and above 0 make the row's loss and gradient NaN.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from fastrank.kernels.tempered_ce import layout
from fastrank.kernels.tempered_ce.backward_triton import backward_kernel
from fastrank.kernels.tempered_ce.config import ALONE, COMBINE, REDUCE_BLOCK, SMS, registers, splits
from fastrank.kernels.tempered_ce.forward_triton import forward_kernel
from fastrank.kernels.tempered_loss.layout import as_ncd
from fastrank.kernels.tempered_loss.rows_triton import alignment, bits, view_of
from fastrank.kernels.tempered_loss.tiles import tile
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
    stats: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, rows, denominator, grad) as `register.py` defines them, for `with_grad=False`."""
    loss, rows, denominator, grad = layout.outputs(logits, reduction, stats, with_grad)
    count, acc = rows.shape[1], rows.dtype
    if not count:
        denominator.fill_(0 if reduction == "mean" else 1)
        if reduction != "none":
            loss.fill_(float("nan") if reduction == "mean" else 0.0)
        return loss, rows, denominator, grad
    arguments, constants, (view, *_) = _problem(
        (), logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, acc
    )
    shape = tile(view.shape[1])
    programs = triton.cdiv(count, shape.rows)
    # A rank of probabilities needs the most probable class of the whole row first.
    whole = stats and constants["TARGET"] == "probabilities"
    parts, span = (1, 1) if whole else splits(programs, view.shape[1], _multiprocessors(logits.device))
    width = triton.next_power_of_2(parts)
    counted = parts > 1 or (reduction != "none" and programs <= ALONE)
    denominator.fill_(0 if counted else 1)
    left = None
    if parts > 1:
        left = torch.empty((8, count, parts), dtype=acc, device=logits.device)
    elif reduction != "none":
        left = torch.empty((2, programs), dtype=torch.float64, device=logits.device)
    with torch.cuda.device_of(logits):
        forward_kernel[programs, parts](
            **arguments, **constants, rows_ptr=rows, loss_ptr=loss, denominator_ptr=denominator,
            arrived_ptr=denominator.view(torch.int64 if acc == torch.float64 else torch.int32),
            part_ptr=left, span=span, parts=parts, REDUCTION=reduction, STATS=stats,
            ROWS=shape.rows, CLASSES=shape.classes, PARTS=width, COUNTED=counted,
            BLOCK=max(1, COMBINE // width) if parts > 1 else REDUCE_BLOCK, num_warps=shape.warps,
            maxnreg=registers(shape, acc.itemsize, constants["TARGET"]),
        )  # fmt: skip
        if reduction != "none" and not counted:
            if reduction == "mean":
                denominator.copy_(left[1].sum()) if constants["TARGET"] == "index" else denominator.fill_(count)
            torch.div(left[0].sum(), denominator, out=loss)
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
    if not rows.shape[1]:
        return grad
    in_place = as_ncd(grad)
    out = in_place if in_place is not None else torch.empty_like(logits, memory_format=torch.contiguous_format)
    out = as_ncd(out)
    arguments, constants, (view, weight) = _problem(
        (out,), logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, rows.dtype
    )
    shape, align = tile(view.shape[1]), constants["ALIGN"]
    labels = constants["TARGET"] != "probabilities"
    grad_loss = grad_loss.to(rows.dtype)
    shared = not any(grad_loss.stride())  # one number, or one expanded
    with torch.cuda.device_of(logits):
        backward_kernel[triton.cdiv(rows.shape[1], shape.rows), triton.cdiv(view.shape[1], shape.classes)](
            **arguments, **constants,
            weight_sum_ptr=weight.sum(dtype=rows.dtype) if weight is not None and label_smoothing and labels else None,
            rows_ptr=rows, grad_loss_ptr=grad_loss if shared else grad_loss.contiguous(), denominator_ptr=denominator,
            grad_ptr=out, grad_stride_n=out.stride(0) // align, grad_stride_c=out.stride(1),
            grad_stride_d=out.stride(2), grad_loss_stride=0 if shared else 1, POWER=grad_power,
            ROWS=shape.rows, CLASSES=shape.classes, num_warps=shape.warps,
        )  # fmt: skip
    return grad if in_place is not None else grad.copy_(out.view(logits.shape))


def _problem(beside, logits, target, second, share, T, temperature, weight, ignore_index, label_smoothing, acc):
    """What both kernels take: (arguments, constants, (logits as [N, C, D], weight)). `beside`: more such views."""
    view = view_of(logits)
    q = view_of(target) if target.is_floating_point() else None
    align = alignment(view, *beside, *(() if q is None else (q,)))
    weight = None if weight is None else weight.contiguous()
    labels = q is None
    arguments = {
        "logits_ptr": view,
        "target_ptr": target.contiguous() if labels else None,
        "second_ptr": None if second is None else second.contiguous(),
        "share_ptr": share,
        "q_ptr": q,
        "temperature_ptr": temperature,
        "weight_ptr": weight,
        "T": bits(T, acc),
        "R": view.shape[0] * view.shape[2],
        "C": view.shape[1] // align,
        "D": view.shape[2],
        "stride_n": view.stride(0) // align,
        "stride_c": view.stride(1),
        "stride_d": view.stride(2),
        "q_stride_n": 0 if labels else q.stride(0) // align,
        "q_stride_c": 0 if labels else q.stride(1),
        "q_stride_d": 0 if labels else q.stride(2),
        "temperature_stride": temperature.stride(0) if temperature is not None and temperature.dim() else 0,
        "share_stride": share.stride(0) if share is not None and share.dim() else 0,
        "ignore_index": ignore_index,
        "smoothing": bits(label_smoothing, acc),
    }
    constants = {
        "TARGET": "probabilities" if not labels else "index" if second is None else "mixed",
        "HAS_T": temperature is not None,
        "HAS_WEIGHT": weight is not None,
        "SMOOTH": label_smoothing != 0,
        "NESTED": view.shape[2] != 1,
        "ALIGN": align,
        "ACC": tl.float64 if acc == torch.float64 else tl.float32,
    }
    return arguments, constants, (view, weight)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else SMS
