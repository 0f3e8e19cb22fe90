"""The fused loss on CUDA: one launch for the rows, one for the reduction, one for the gradient; no host sync.

Formulas and row planes as in csrc/tempered_ce/tempered_ce.h. The forward pass reads a row once: maximum and sums are
carried from tile to tile, sums rescaled when the maximum rises. Offsets are 64-bit. A label outside [0, C) and a
temperature that is not finite and above 0 make the row's loss and gradient NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastrank.kernels.tempered_ce import layout
from fastrank.kernels.tempered_ce.config import REDUCE_BLOCK, REDUCE_WARPS, tile
from torch import Tensor


@triton.jit
def _log1p(a):
    u = 1 + a
    # log(u) errs as if u were exact; the quotient puts back what rounding took from a.
    return tl.where(u == 1, a, tl.log(u) * (a / (u - 1)))


@triton.jit
def _rows(pid, R, D, stride_n, stride_d, ALIGN: tl.constexpr, ROWS: tl.constexpr, NESTED: tl.constexpr):
    """(row, n, offset of the row's first logit, whether the row exists) of each row of this program."""
    r = pid.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if NESTED:
        n = r // D
        offset = n * stride_n + (r - n * D) * stride_d
    else:
        n = r
        offset = r * stride_n * ALIGN
    return r, n, offset, r < R


@triton.jit
def _temperature(temperature_ptr, T, n, stride, row_ok, HAS_T: tl.constexpr, ACC: tl.constexpr):
    if HAS_T:
        T = tl.load(temperature_ptr + n * stride, mask=row_ok, other=1.0).to(ACC)
        return tl.where((T > 0) & (T < float("inf")), T, float("nan"))  # noqa: SIM300
    return tl.full(n.shape, 1.0, ACC) * T


@triton.jit
def _label(target_ptr, r, row_ok, C, ignore_index):
    """(label, or -1 where there is none; whether the row counts; whether its label exists)."""
    y = tl.load(target_ptr + r, mask=row_ok, other=ignore_index)
    used = row_ok & (y != ignore_index)
    known = used & (y >= 0) & (y < C)
    return tl.where(known, y, -1), used, known


@triton.jit
def forward_kernel(
    logits_ptr, target_ptr, temperature_ptr, weight_ptr, weight_sum_ptr, rows_ptr, loss_ptr,
    T, R, C, D, stride_n, stride_c, stride_d, temperature_stride, ignore_index, smoothing,
    HAS_T: tl.constexpr, HAS_WEIGHT: tl.constexpr, SMOOTH: tl.constexpr, STATS: tl.constexpr, NESTED: tl.constexpr,
    ALIGN: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Row planes and unreduced loss of ROWS rows. `C` and, unless NESTED, `stride_n` come in units of ALIGN."""
    C = C * ALIGN
    r, n, offset, row_ok = _rows(tl.program_id(0), R, D, stride_n, stride_d, ALIGN, ROWS, NESTED)
    y, used, known = _label(target_ptr, r, row_ok, C, ignore_index)
    temperature = _temperature(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    inverse = 1 / temperature
    target_logit = tl.load(logits_ptr + offset + y * stride_c, mask=known, other=0.0).to(ACC)

    lowest = float("-inf")
    maximum = tl.full((ROWS,), lowest, ACC)
    others = tl.zeros((ROWS,), ACC)
    moment = tl.zeros((ROWS,), ACC)
    weighted = tl.zeros((ROWS,), ACC)
    weight_seen = tl.zeros((ROWS,), ACC)
    sum_z = tl.zeros((ROWS,), ACC)
    sum_z2 = tl.zeros((ROWS,), ACC)
    above = tl.zeros((ROWS,), tl.int32)
    for start in range(0, C, CLASSES):
        j = start + tl.arange(0, CLASSES)
        column_ok = j < C
        inside = row_ok[:, None] & column_ok[None, :]
        z = tl.load(logits_ptr + offset[:, None] + (j.to(tl.int64) * stride_c)[None, :], mask=inside, other=lowest)
        z = z.to(ACC)
        previous = maximum
        maximum = tl.maximum(maximum, tl.max(z, 1))
        # A tile of nothing but -inf has no maximum to take off.
        base = tl.where(maximum == lowest, 0.0, maximum)
        shift = tl.where(previous == lowest, 0.0, (previous - base) * inverse)
        rescale = tl.exp(shift)
        x = (z - base[:, None]) * inverse[:, None]
        e = tl.where(inside & (j[None, :] != y[:, None]), tl.exp(x), 0.0)
        moment = rescale * (moment + shift * others) + tl.sum(tl.where(e > 0, e * x, e), 1)
        others = rescale * others + tl.sum(e, 1)
        if SMOOTH:
            weight = tl.full((CLASSES,), 1.0, ACC)
            if HAS_WEIGHT:
                weight = tl.load(weight_ptr + j, mask=column_ok, other=0.0)
            weight = tl.where(inside, weight[None, :], 0.0)
            weighted += shift * weight_seen + tl.sum(tl.where(inside, weight * x, 0.0), 1)
            weight_seen += tl.sum(weight, 1)
        if STATS:
            kept = tl.where(inside, z, 0.0)
            sum_z += tl.sum(kept, 1)
            sum_z2 += tl.sum(kept * kept, 1)
            above += tl.sum((inside & (z > target_logit[:, None])).to(tl.int32), 1)

    others = tl.where(maximum == lowest, float("nan"), others)
    target_x = tl.where(known, (target_logit - maximum) / temperature, 0.0)
    target_e = tl.where(known, tl.exp(target_x), 0.0)
    total = others + target_e
    log_total = tl.where(known & (target_x == 0), _log1p(others), tl.log(total))
    all_moment = moment + tl.where(target_e == 0, 0.0, target_e * target_x)
    hard = tl.full((ROWS,), 1.0, ACC) - smoothing
    if HAS_WEIGHT:
        hard = hard * tl.load(weight_ptr + y, mask=known, other=0.0)
    loss = hard * (log_total - target_x)
    slope = hard * (moment - tl.where(target_x == lowest, 0.0, target_x * others)) / total
    if SMOOTH:
        soft = tl.full((ROWS,), 1.0, ACC) * smoothing / C
        loss += soft * (weight_seen * log_total - weighted)
        slope += soft * (weight_seen * all_moment / total - weighted)
    nothing = tl.where(used, float("nan"), 0.0)
    tl.store(loss_ptr + r, tl.where(known, loss, nothing), mask=row_ok)
    plane = tl.zeros((ROWS,), tl.int64) + R
    tl.store(rows_ptr + r, maximum, mask=row_ok)
    tl.store(rows_ptr + plane + r, total, mask=row_ok)
    tl.store(rows_ptr + 2 * plane + r, others, mask=row_ok)
    tl.store(rows_ptr + 3 * plane + r, tl.where(known, slope, nothing), mask=row_ok)
    if STATS:
        tl.store(rows_ptr + 4 * plane + r, maximum * inverse + log_total, mask=row_ok)
        tl.store(rows_ptr + 5 * plane + r, 1 / total, mask=row_ok)
        tl.store(rows_ptr + 6 * plane + r, log_total - all_moment / total, mask=row_ok)
        tl.store(rows_ptr + 7 * plane + r, sum_z, mask=row_ok)
        tl.store(rows_ptr + 8 * plane + r, sum_z2, mask=row_ok)
        tl.store(rows_ptr + 9 * plane + r, tl.where(known, above, -1).to(ACC), mask=row_ok)


@triton.jit
def reduce_kernel(
    loss_ptr, target_ptr, weight_ptr, result_ptr, denominator_ptr, R, C, ignore_index,
    HAS_WEIGHT: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss of the batch, summed in float64 by one program, so in one order; and what a mean divides by."""
    loss = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, R, BLOCK):
        r = start + tl.arange(0, BLOCK).to(tl.int64)
        row_ok = r < R
        y, used, known = _label(target_ptr, r, row_ok, C, ignore_index)
        loss += tl.load(loss_ptr + r, mask=row_ok, other=0.0).to(tl.float64)
        if HAS_WEIGHT:
            count += tl.load(weight_ptr + y, mask=known, other=0.0).to(tl.float64)
        else:
            count += used.to(tl.float64)
    total = tl.sum(loss, 0)
    if MEAN:
        weight = tl.sum(count, 0)
        tl.store(denominator_ptr, weight.to(ACC))
        tl.store(result_ptr, (total / weight).to(ACC))
    else:
        tl.store(result_ptr, total.to(ACC))


@triton.jit
def backward_kernel(
    logits_ptr, target_ptr, temperature_ptr, weight_ptr, weight_sum_ptr, rows_ptr, grad_loss_ptr, denominator_ptr,
    grad_ptr, T, R, C, D, stride_n, stride_c, stride_d, grad_stride_n, grad_stride_c, grad_stride_d,
    temperature_stride, grad_loss_stride, ignore_index, smoothing,
    HAS_T: tl.constexpr, HAS_WEIGHT: tl.constexpr, SMOOTH: tl.constexpr, NESTED: tl.constexpr,
    ALIGN: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Gradient of one ROWS x CLASSES tile. `C` and, unless NESTED, `stride_n` and `grad_stride_n` in units of ALIGN."""
    C = C * ALIGN
    r, n, offset, row_ok = _rows(tl.program_id(0), R, D, stride_n, stride_d, ALIGN, ROWS, NESTED)
    _, _, grad_offset, _ = _rows(tl.program_id(0), R, D, grad_stride_n, grad_stride_d, ALIGN, ROWS, NESTED)
    y, used, known = _label(target_ptr, r, row_ok, C, ignore_index)
    inverse = 1 / _temperature(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    plane = tl.zeros((ROWS,), tl.int64) + R
    maximum = tl.load(rows_ptr + r, mask=row_ok, other=0.0)
    total = tl.load(rows_ptr + plane + r, mask=row_ok, other=1.0)
    others = tl.load(rows_ptr + 2 * plane + r, mask=row_ok, other=0.0)
    scale = tl.load(grad_loss_ptr + r * grad_loss_stride, mask=row_ok, other=0.0) / tl.load(denominator_ptr) * inverse
    hard = tl.full((ROWS,), 1.0, ACC) - smoothing
    if HAS_WEIGHT:
        hard = hard * tl.load(weight_ptr + y, mask=known, other=0.0)

    j = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    column_ok = j < C
    inside = row_ok[:, None] & column_ok[None, :]
    z = tl.load(
        logits_ptr + offset[:, None] + (j.to(tl.int64) * stride_c)[None, :],
        mask=inside & known[:, None],
        other=0.0,
    ).to(ACC)
    p = tl.exp((z - maximum[:, None]) * inverse[:, None]) / total[:, None]
    grad = tl.where(j[None, :] == y[:, None], -(hard * others / total)[:, None], hard[:, None] * p)
    if SMOOTH:
        soft = tl.full((ROWS,), 1.0, ACC) * smoothing / C
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + j, mask=column_ok, other=0.0)
            grad += soft[:, None] * (tl.load(weight_sum_ptr) * p - weight[None, :])
        else:
            grad += soft[:, None] * (C * p - 1.0)
    nothing = tl.where(used, float("nan"), 0.0)
    grad = tl.where(known[:, None], scale[:, None] * grad, nothing[:, None])
    tl.store(
        grad_ptr + grad_offset[:, None] + (j.to(tl.int64) * grad_stride_c)[None, :],
        grad.to(grad_ptr.dtype.element_ty),
        mask=inside,
    )


def forward(
    logits: Tensor,
    target: Tensor,
    second: None,
    share: None,
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
    """(loss, rows, denominator, grad) as `register.py` defines them, for one label each and `with_grad=False`."""
    loss, rows, denominator, grad = layout.outputs(logits, reduction, stats, with_grad)
    denominator.fill_(1)
    view = _view(logits)
    target = target.contiguous()
    temperature, weight, weight_sum = _parameters(rows, T, temperature, weight, label_smoothing)
    count, align = target.numel(), _alignment(view)
    unreduced = loss if reduction == "none" else torch.empty(count, dtype=rows.dtype, device=rows.device)
    acc = tl.float64 if rows.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(logits):
        if count:
            shape = tile(view.shape[1])
            forward_kernel[(triton.cdiv(count, shape.rows),)](
                view, target, temperature, weight, weight_sum, rows, unreduced,
                T, count, view.shape[1] // align, view.shape[2], view.stride(0) // align, *view.stride()[1:],
                temperature.stride(0) if temperature is not None and temperature.dim() else 0,
                ignore_index, label_smoothing,
                HAS_T=temperature is not None, HAS_WEIGHT=weight is not None, SMOOTH=label_smoothing != 0,
                STATS=stats, NESTED=view.shape[2] != 1, ALIGN=align, ACC=acc,
                ROWS=shape.rows, CLASSES=shape.classes, num_warps=shape.warps,
            )  # fmt: skip
        if reduction != "none":
            reduce_kernel[(1,)](
                unreduced, target, weight, loss, denominator, count, view.shape[1], ignore_index,
                HAS_WEIGHT=weight is not None, MEAN=reduction == "mean", ACC=acc,
                BLOCK=REDUCE_BLOCK, num_warps=REDUCE_WARPS,
            )  # fmt: skip
    return loss, rows, denominator, grad


def backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    second: None,
    share: None,
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
    if not target.numel():
        return grad
    in_place = layout.as_ncd(grad)
    out = in_place if in_place is not None else torch.empty_like(logits, memory_format=torch.contiguous_format)
    out = layout.as_ncd(out)
    view = _view(logits)
    grad_loss = grad_loss.to(rows.dtype)
    if grad_power:
        factor = T if temperature is None else temperature.to(rows.dtype)
        if temperature is not None and temperature.dim():
            factor = factor.reshape(-1, *(1,) * (logits.dim() - 2)).expand(target.shape)
        grad_loss = grad_loss * factor**grad_power
    grad_loss = grad_loss.contiguous()
    temperature, weight, weight_sum = _parameters(rows, T, temperature, weight, label_smoothing)
    count, shape, align = target.numel(), tile(view.shape[1]), _alignment(view, out)
    with torch.cuda.device_of(logits):
        backward_kernel[triton.cdiv(count, shape.rows), triton.cdiv(view.shape[1], shape.classes)](
            view, target.contiguous(), temperature, weight, weight_sum, rows, grad_loss, denominator, out,
            T, count, view.shape[1] // align, view.shape[2], view.stride(0) // align, *view.stride()[1:],
            out.stride(0) // align, *out.stride()[1:],
            temperature.stride(0) if temperature is not None and temperature.dim() else 0,
            1 if grad_loss.dim() else 0, ignore_index, label_smoothing,
            HAS_T=temperature is not None, HAS_WEIGHT=weight is not None, SMOOTH=label_smoothing != 0,
            NESTED=view.shape[2] != 1, ALIGN=align, ACC=tl.float64 if rows.dtype == torch.float64 else tl.float32,
            ROWS=shape.rows, CLASSES=shape.classes, num_warps=shape.warps,
        )  # fmt: skip
    return grad if in_place is not None else grad.copy_(out.view(logits.shape))


def _view(logits: Tensor) -> Tensor:
    view = layout.as_ncd(logits)
    return layout.as_ncd(logits.contiguous()) if view is None else view


def _parameters(rows: Tensor, T: float, temperature: Tensor | None, weight: Tensor | None, label_smoothing: float):
    """Temperature, weight and its sum in the accumulator's dtype, each None where the kernel needs no memory for it."""
    acc = rows.dtype
    if temperature is not None:
        temperature = temperature.to(acc)
    elif acc == torch.float64:
        temperature = torch.full((), T, dtype=acc, device=rows.device)  # a scalar argument would arrive as float32
    weight = None if weight is None else weight.to(acc).contiguous()
    return temperature, weight, weight.sum() if weight is not None and label_smoothing else None


def _alignment(*views: Tensor) -> int:
    """Largest power of two up to 16 that divides class count and row strides: given to the compiler as a constant
    factor, it turns a row's loads into 128-bit ones although neither number is a multiple of 16."""
    if views[0].shape[2] != 1:
        return 1
    align = 16
    while any(size % align for view in views for size in (view.shape[1], view.stride(0))):
        align //= 2
    return align
