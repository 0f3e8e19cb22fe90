"""The fused squared error on CUDA: one launch for the rows, one for the reduction, one for the gradient; no host sync.

Formulas and row planes as in csrc/tempered_mse/tempered_mse.h. The forward pass takes two walks along a row: maximum
and sum of exponentials, carried from tile to tile and rescaled when the maximum rises; then the differences p_j - t_j,
which sums of e_j^2 and e_j t_j could give in one walk, but not where p is close to t. A row that fits one tile is read
once; the second walk along a longer one reads what the first left in cache. Offsets are 64-bit. A label outside [0, C),
a share outside [0, 1] and a temperature that is not finite and above 0 make the row's loss and gradient NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastrank.kernels.tempered_loss.layout import as_ncd
from fastrank.kernels.tempered_loss.rows_triton import alignment, bits, number, place, rows_of, temperature_of, view_of
from fastrank.kernels.tempered_loss.tiles import tile
from fastrank.kernels.tempered_mse import layout
from fastrank.kernels.tempered_mse.config import REDUCE_BLOCK, REDUCE_WARPS
from torch import Tensor

_SCALARS = ["T", "smoothing"]


@triton.jit
def _labels(
    target_ptr, second_ptr, share_ptr, r, n, share_stride, row_ok, C, ignore_index,
    TARGET: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(labels y and y2, -1 where there is none; y's share; whether the row counts; whether its labels exist)."""
    y2 = tl.full(r.shape, -1, tl.int64)
    share = tl.full(r.shape, 1.0, ACC)
    if TARGET == "probabilities":
        y, used, known = y2, row_ok, row_ok
    else:
        y = tl.load(target_ptr + r, mask=row_ok, other=ignore_index)
        if TARGET == "mixed":
            used = row_ok
            y2 = tl.load(second_ptr + r, mask=row_ok, other=-1)
            share = tl.load(share_ptr + n * share_stride, mask=row_ok, other=1.0).to(ACC)
            known = used & (y >= 0) & (y < C) & (y2 >= 0) & (y2 < C) & (share >= 0) & (share <= 1)
            share = tl.where(y == y2, 1.0, share)
            y2 = tl.where(known & (y != y2), y2, -1)
        else:
            used = row_ok & (y != ignore_index)
            known = used & (y >= 0) & (y < C)
        y = tl.where(known, y, -1)
    return y, y2, share, used, known


@triton.jit
def _hard_target(
    q_ptr, q_offset, q_stride_c, j, inside, y, y2, share, TARGET: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """t'_j of a tile."""
    if TARGET == "probabilities":
        at = q_ptr + q_offset[:, None] + (j.to(tl.int64) * q_stride_c)[None, :]
        t = tl.load(at, mask=inside, other=0.0).to(ACC)
    else:
        t = tl.where(j[None, :] == y[:, None], share[:, None], 0.0)
        if TARGET == "mixed":
            t = tl.where(j[None, :] == y2[:, None], (1 - share)[:, None], t)
    return t


@triton.jit
def _exponentials(z, inside, inverse, maximum, others, ties):
    """Maximum, the sum of exponentials beside it and how many share it, with one more tile."""
    lowest = float("-inf")
    previous = maximum
    maximum = tl.maximum(maximum, tl.max(z, 1))
    rises = maximum > previous
    rescale = tl.where(previous == lowest, 0.0, tl.exp((previous - maximum) * inverse))
    others = tl.where(rises, rescale * (others + ties), others)
    at_maximum = z == maximum[:, None]
    e = tl.exp((z - maximum[:, None]) * inverse[:, None])
    others += tl.sum(tl.where(inside & (z != maximum[:, None]), e, 0.0), 1)
    ties = tl.where(rises, 0.0, ties) + tl.sum((inside & at_maximum).to(maximum.dtype), 1)
    return maximum, others, ties


@triton.jit
def _differences(
    z, t, inside, inverse, maximum, q, share, single, hard, soft, spread, squares, M, at_top, moment, total_moment,
):  # fmt: skip
    """Sums of d^2, of p d beside the class a, of d_a, of p d x and p x, with one more tile."""
    x = (z - maximum[:, None]) * inverse[:, None]
    p = tl.exp(x) * share[:, None]
    top = single[:, None] & inside & (z == maximum[:, None])
    d = tl.where(top, (1 - t) * hard + spread - q[:, None], p - (t * hard + soft))
    d = tl.where(inside, d, 0.0)
    pd = tl.where(top, 0.0, p * d)
    x = tl.where(p > 0, x, 0.0)
    squares += tl.sum(d * d, 1)
    M += tl.sum(pd, 1)
    at_top += tl.sum(tl.where(top, d, 0.0), 1)
    moment += tl.sum(pd * x, 1)
    total_moment += tl.sum(p * x, 1)
    return squares, M, at_top, moment, total_moment


@triton.jit(do_not_specialize=_SCALARS)
def forward_kernel(
    logits_ptr, target_ptr, second_ptr, share_ptr, temperature_ptr, weight_ptr, rows_ptr, loss_ptr,
    T, smoothing, R, C, D, stride_n, stride_c, stride_d, target_stride_n, target_stride_c, target_stride_d,
    temperature_stride, share_stride, ignore_index,
    TARGET: tl.constexpr, HAS_T: tl.constexpr, HAS_WEIGHT: tl.constexpr, NESTED: tl.constexpr, ONE_TILE: tl.constexpr,
    ALIGN: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Row planes and unreduced loss of ROWS rows. `C` and, unless NESTED, `stride_n` come in units of ALIGN; the
    strides of the target are those of class probabilities."""
    C = C * ALIGN
    r, n, offset, row_ok = rows_of(tl.program_id(0).to(tl.int64) * ROWS, R, D, stride_n, stride_d, ALIGN, ROWS, NESTED)
    _, target_offset = place(r, D, target_stride_n, target_stride_d, 1, NESTED)
    y, y2, label_share, used, known = _labels(
        target_ptr, second_ptr, share_ptr, r, n, share_stride, row_ok, C, ignore_index, TARGET, ACC
    )
    inverse = 1 / temperature_of(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    s = tl.full((), 1.0, ACC) * number(smoothing, ACC)
    hard, soft = 1 - s, s / C
    spread = soft * (C - 1)

    lowest = float("-inf")
    maximum = tl.full((ROWS,), lowest, ACC)
    others = tl.zeros((ROWS,), ACC)
    ties = tl.zeros((ROWS,), ACC)
    if ONE_TILE:
        j = tl.arange(0, CLASSES)
        inside = row_ok[:, None] & (j < C)[None, :]
        at = logits_ptr + offset[:, None] + (j.to(tl.int64) * stride_c)[None, :]
        z = tl.load(at, mask=inside, other=lowest).to(ACC)
        maximum, others, ties = _exponentials(z, inside, inverse, maximum, others, ties)
    else:
        for start in range(0, C, CLASSES):
            j = start + tl.arange(0, CLASSES)
            inside = row_ok[:, None] & (j < C)[None, :]
            at = logits_ptr + offset[:, None] + (j.to(tl.int64) * stride_c)[None, :]
            z = tl.load(at, mask=inside, other=lowest).to(ACC)
            maximum, others, ties = _exponentials(z, inside, inverse, maximum, others, ties)

    others += maximum - maximum  # NaN where the maximum is infinite
    total = others + ties
    share = 1 / total
    q = others * share
    single = total < 2
    squares = tl.zeros((ROWS,), ACC)
    M = tl.zeros((ROWS,), ACC)
    d_a = tl.zeros((ROWS,), ACC)
    moment = tl.zeros((ROWS,), ACC)
    total_moment = tl.zeros((ROWS,), ACC)
    w = tl.zeros((ROWS,), ACC)
    if ONE_TILE:
        t = _hard_target(target_ptr, target_offset, target_stride_c, j, inside, y, y2, label_share, TARGET, ACC)
        squares, M, d_a, moment, total_moment = _differences(
            z, t, inside, inverse, maximum, q, share, single, hard, soft, spread, squares, M, d_a, moment, total_moment
        )
        if HAS_WEIGHT and TARGET == "probabilities":
            w += tl.sum(t * tl.load(weight_ptr + j, mask=j < C, other=0.0)[None, :], 1)
    else:
        for start in range(0, C, CLASSES):
            j = start + tl.arange(0, CLASSES)
            inside = row_ok[:, None] & (j < C)[None, :]
            at = logits_ptr + offset[:, None] + (j.to(tl.int64) * stride_c)[None, :]
            z = tl.load(at, mask=inside, other=lowest).to(ACC)
            t = _hard_target(target_ptr, target_offset, target_stride_c, j, inside, y, y2, label_share, TARGET, ACC)
            squares, M, d_a, moment, total_moment = _differences(
                z, t, inside, inverse, maximum, q, share, single, hard, soft, spread, squares, M, d_a, moment,
                total_moment,
            )  # fmt: skip
            if HAS_WEIGHT and TARGET == "probabilities":
                w += tl.sum(t * tl.load(weight_ptr + j, mask=j < C, other=0.0)[None, :], 1)

    mean = tl.where(single, share * d_a, 0.0) + M
    top = share * (q * d_a - M)
    if not HAS_WEIGHT:
        w += 1.0
    elif TARGET != "probabilities":
        w += label_share * tl.load(weight_ptr + y, mask=known, other=0.0)
        if TARGET == "mixed":
            w += (1 - label_share) * tl.load(weight_ptr + y2, mask=y2 >= 0, other=0.0)
    w = tl.where(known, w, 0.0)
    nothing = tl.where(used, float("nan"), 0.0)
    tl.store(loss_ptr + r, tl.where(known, w * squares, nothing), mask=row_ok)
    plane = tl.zeros((ROWS,), tl.int64) + R
    tl.store(rows_ptr + r, maximum, mask=row_ok)
    tl.store(rows_ptr + plane + r, total, mask=row_ok)
    tl.store(rows_ptr + 2 * plane + r, mean, mask=row_ok)
    tl.store(rows_ptr + 3 * plane + r, tl.where(known, 2 * w * (moment - mean * total_moment), nothing), mask=row_ok)
    tl.store(rows_ptr + 4 * plane + r, top, mask=row_ok)
    tl.store(rows_ptr + 5 * plane + r, w, mask=row_ok)


@triton.jit
def reduce_kernel(
    loss_ptr, row_weight_ptr, result_ptr, denominator_ptr, R, C,
    WEIGHTED_MEAN: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss of the batch, summed in float64 by one program, so in one order; and what a mean divides by: C times the
    labels' weights, or with mixed targets and class probabilities C times the rows."""
    loss = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, R, BLOCK):
        r = start + tl.arange(0, BLOCK).to(tl.int64)
        row_ok = r < R
        loss += tl.load(loss_ptr + r, mask=row_ok, other=0.0).to(tl.float64)
        if WEIGHTED_MEAN:
            count += tl.load(row_weight_ptr + r, mask=row_ok, other=0.0).to(tl.float64)
        else:
            count += row_ok.to(tl.float64)
    total = tl.sum(loss, 0)
    if MEAN:
        divisor = tl.sum(count, 0) * C
        tl.store(denominator_ptr, divisor.to(ACC))
        tl.store(result_ptr, (total / divisor).to(ACC))
    else:
        tl.store(result_ptr, total.to(ACC))


@triton.jit(do_not_specialize=_SCALARS)
def backward_kernel(
    logits_ptr, target_ptr, second_ptr, share_ptr, temperature_ptr, rows_ptr, grad_loss_ptr, denominator_ptr,
    grad_ptr, T, smoothing, R, C, D, stride_n, stride_c, stride_d, target_stride_n, target_stride_c, target_stride_d,
    grad_stride_n, grad_stride_c, grad_stride_d, temperature_stride, share_stride, grad_loss_stride, ignore_index,
    TARGET: tl.constexpr, HAS_T: tl.constexpr, POWER: tl.constexpr, NESTED: tl.constexpr,
    ALIGN: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Gradient of one ROWS x CLASSES tile. `C` and, unless NESTED, `stride_n` and `grad_stride_n` in units of ALIGN."""
    C = C * ALIGN
    r, n, offset, row_ok = rows_of(tl.program_id(0).to(tl.int64) * ROWS, R, D, stride_n, stride_d, ALIGN, ROWS, NESTED)
    _, target_offset = place(r, D, target_stride_n, target_stride_d, 1, NESTED)
    _, grad_offset = place(r, D, grad_stride_n, grad_stride_d, ALIGN, NESTED)
    y, y2, label_share, used, known = _labels(
        target_ptr, second_ptr, share_ptr, r, n, share_stride, row_ok, C, ignore_index, TARGET, ACC
    )
    temperature = temperature_of(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    inverse = 1 / temperature
    s = tl.full((), 1.0, ACC) * number(smoothing, ACC)
    hard, soft = 1 - s, s / C
    plane = tl.zeros((ROWS,), tl.int64) + R
    maximum = tl.load(rows_ptr + r, mask=row_ok, other=0.0)
    total = tl.load(rows_ptr + plane + r, mask=row_ok, other=1.0)
    mean = tl.load(rows_ptr + 2 * plane + r, mask=row_ok, other=0.0)
    top = tl.load(rows_ptr + 4 * plane + r, mask=row_ok, other=0.0)
    w = tl.load(rows_ptr + 5 * plane + r, mask=row_ok, other=0.0)
    factor = 2 * w * tl.load(grad_loss_ptr + r * grad_loss_stride, mask=row_ok, other=0.0) / tl.load(denominator_ptr)
    if POWER == 0:
        factor = factor * inverse
    if POWER == 2:
        factor = factor * temperature

    j = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    inside = row_ok[:, None] & (j < C)[None, :]
    at = logits_ptr + offset[:, None] + (j.to(tl.int64) * stride_c)[None, :]
    z = tl.load(at, mask=inside & known[:, None], other=0.0).to(ACC)
    t = _hard_target(target_ptr, target_offset, target_stride_c, j, inside, y, y2, label_share, TARGET, ACC)
    p = tl.exp((z - maximum[:, None]) * inverse[:, None]) * (1 / total)[:, None]
    grad = p * (p - (t * hard + soft) - mean[:, None])
    grad = tl.where((total < 2)[:, None] & (z == maximum[:, None]), top[:, None], grad)
    nothing = tl.where(used, float("nan"), 0.0)
    grad = tl.where(known[:, None], factor[:, None] * grad, nothing[:, None])
    tl.store(
        grad_ptr + grad_offset[:, None] + (j.to(tl.int64) * grad_stride_c)[None, :],
        grad.to(grad_ptr.dtype.element_ty),
        mask=inside,
    )


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
    """(loss, rows, denominator, grad) as `register.py` defines them, for `with_grad=False`."""
    loss, rows, denominator, grad = layout.outputs(logits, reduction, with_grad)
    if reduction != "mean":
        denominator.fill_(1)
    acc, view = rows.dtype, view_of(logits)
    kind, target, second, share, target_strides = _target(target, second, share, acc)
    temperature, weight = (None if x is None else x.to(acc).contiguous() for x in (temperature, weight))
    count, align, classes = rows.shape[1], alignment(view), view.shape[1]
    unreduced = loss if reduction == "none" else torch.empty(count, dtype=acc, device=rows.device)
    with torch.cuda.device_of(logits):
        if count:
            shape = tile(classes)
            forward_kernel[(triton.cdiv(count, shape.rows),)](
                view, target, second, share, temperature, weight, rows, unreduced,
                bits(T, acc), bits(label_smoothing, acc), count, classes // align, view.shape[2],
                view.stride(0) // align, *view.stride()[1:], *target_strides, _stride(temperature), _stride(share),
                ignore_index,
                TARGET=kind, HAS_T=temperature is not None, HAS_WEIGHT=weight is not None, NESTED=view.shape[2] != 1,
                ONE_TILE=classes <= shape.classes, ALIGN=align, ACC=_ACC[acc], ROWS=shape.rows, CLASSES=shape.classes,
                num_warps=shape.warps,
            )  # fmt: skip
        if reduction != "none":
            weighted = kind == "index" and reduction == "mean"
            reduce_kernel[(1,)](
                unreduced, rows[layout.STATE.index("weight")] if weighted else None, loss, denominator, count, classes,
                WEIGHTED_MEAN=weighted, MEAN=reduction == "mean", ACC=_ACC[acc],
                BLOCK=REDUCE_BLOCK, num_warps=REDUCE_WARPS,
            )  # fmt: skip
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
    count, acc = rows.shape[1], rows.dtype
    if not count:
        return grad
    in_place = as_ncd(grad)
    out = in_place if in_place is not None else torch.empty_like(logits, memory_format=torch.contiguous_format)
    out, view = as_ncd(out), view_of(logits)
    kind, target, second, share, target_strides = _target(target, second, share, acc)
    temperature = None if temperature is None else temperature.to(acc).contiguous()
    grad_loss = grad_loss.to(acc).contiguous()
    shape, align, classes = tile(view.shape[1]), alignment(view, out), view.shape[1]
    with torch.cuda.device_of(logits):
        backward_kernel[triton.cdiv(count, shape.rows), triton.cdiv(classes, shape.classes)](
            view, target, second, share, temperature, rows, grad_loss, denominator, out,
            bits(T, acc), bits(label_smoothing, acc), count, classes // align, view.shape[2],
            view.stride(0) // align, *view.stride()[1:], *target_strides, out.stride(0) // align, *out.stride()[1:],
            _stride(temperature), _stride(share), 1 if grad_loss.dim() else 0, ignore_index,
            TARGET=kind, HAS_T=temperature is not None, POWER=grad_power, NESTED=view.shape[2] != 1,
            ALIGN=align, ACC=_ACC[acc], ROWS=shape.rows, CLASSES=shape.classes, num_warps=shape.warps,
        )  # fmt: skip
    return grad if in_place is not None else grad.copy_(out.view(logits.shape))


_ACC = {torch.float64: tl.float64, torch.float32: tl.float32}


def _target(target: Tensor, second: Tensor | None, share: Tensor | None, acc: torch.dtype):
    """(kind, labels or probabilities, second labels, shares, strides of probabilities) as the kernels take them."""
    if target.is_floating_point():
        target = view_of(target)
        return "probabilities", target, None, None, target.stride()
    if second is None:
        return "index", target.contiguous(), None, None, (0, 0, 0)
    return "mixed", target.contiguous(), second.contiguous(), share.to(acc).contiguous(), (0, 0, 0)


def _stride(x: Tensor | None) -> int:
    """0 for one value that all samples share, 1 for one each."""
    return 0 if x is None or x.dim() == 0 else 1
