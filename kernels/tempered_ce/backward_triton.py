"""The gradient on CUDA, a tile of rows and classes a program."""

from __future__ import annotations

import triton
import triton.language as tl
from fastrank.kernels.tempered_ce.targets_triton import label_logits, labels_of, target_mass
from fastrank.kernels.tempered_loss.rows_triton import number, place, rows_of, temperature_of


@triton.jit(do_not_specialize=["T", "smoothing"])
def backward_kernel(
    logits_ptr, target_ptr, second_ptr, share_ptr, q_ptr, temperature_ptr, weight_ptr, weight_sum_ptr, rows_ptr,
    grad_loss_ptr, denominator_ptr, grad_ptr,
    T, R, C, D, stride_n, stride_c, stride_d, q_stride_n, q_stride_c, q_stride_d,
    grad_stride_n, grad_stride_c, grad_stride_d, temperature_stride, share_stride, grad_loss_stride,
    ignore_index, smoothing,
    TARGET: tl.constexpr, POWER: tl.constexpr, HAS_T: tl.constexpr, HAS_WEIGHT: tl.constexpr, SMOOTH: tl.constexpr,
    NESTED: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Gradient of one ROWS x CLASSES tile, times T^POWER. `C` and, unless NESTED, strides of n in units of ALIGN."""
    C = C * ALIGN
    smoothing = number(smoothing, ACC)
    r, n, offset, row_ok = rows_of(tl.program_id(0).to(tl.int64) * ROWS, R, D, stride_n, stride_d, ALIGN, ROWS, NESTED)
    _, q_offset = place(r, D, q_stride_n, q_stride_d, ALIGN, NESTED)
    _, grad_offset = place(r, D, grad_stride_n, grad_stride_d, ALIGN, NESTED)
    hard = tl.full((ROWS,), 1.0, ACC) - smoothing
    soft = tl.full((ROWS,), 1.0, ACC) * smoothing / C
    y, y2, mass, mass2, _, used, known, _ = labels_of(
        target_ptr, second_ptr, share_ptr, weight_ptr, r, n, share_stride, row_ok, C, ignore_index, hard,
        TARGET, HAS_WEIGHT, ACC,
    )  # fmt: skip
    temperature = temperature_of(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    inverse = 1 / temperature
    plane = tl.zeros((ROWS,), tl.int64) + R
    maximum = tl.load(rows_ptr + r, mask=row_ok, other=0.0)
    total = tl.load(rows_ptr + plane + r, mask=row_ok, other=1.0)
    others = tl.load(rows_ptr + 2 * plane + r, mask=row_ok, other=0.0)
    scale = tl.load(grad_loss_ptr + r * grad_loss_stride, mask=row_ok, other=0.0) / tl.load(denominator_ptr)
    if POWER == 0:
        scale = scale * inverse
    elif POWER == 2:
        scale = scale * temperature

    j = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    column_ok = j < C
    inside = row_ok[:, None] & column_ok[None, :]
    z = tl.load(
        logits_ptr + offset[:, None] + (j.to(tl.int64) * stride_c)[None, :],
        mask=inside & known[:, None],
        other=0.0,
    ).to(ACC)
    p = tl.exp((z - maximum[:, None]) * inverse[:, None]) / total[:, None]
    if TARGET == "probabilities":
        at = q_ptr + q_offset[:, None] + (j.to(tl.int64) * q_stride_c)[None, :]
        t = target_mass(
            at, inside, weight_ptr, j, column_ok, hard[:, None], soft[:, None], HAS_WEIGHT, SMOOTH, ACC
        )  # fmt: skip
        grad = others[:, None] * p - t
    elif TARGET == "mixed":
        z1, z2 = label_logits(logits_ptr, offset, stride_c, y, y2, known, TARGET, ACC)
        e1 = tl.exp((z1 - maximum) * inverse)
        e2 = tl.where(y2 >= 0, tl.exp((z2 - maximum) * inverse), 0.0)
        is_first, is_second = j[None, :] == y[:, None], j[None, :] == y2[:, None]
        # What the label's own weight moves is the sum of all the others, what the other label's moves is p.
        moved = tl.where(is_first, mass2[:, None], tl.where(is_second, mass[:, None], (mass + mass2)[:, None]))
        own = tl.where(is_first, (mass * (others + e2) / total)[:, None], 0.0)
        own = tl.where(is_second, (mass2 * (others + e1) / total)[:, None], own)
        grad = moved * p - own
    else:
        grad = tl.where(j[None, :] == y[:, None], -(mass * others / total)[:, None], mass[:, None] * p)
    if SMOOTH and TARGET != "probabilities":
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + j, mask=column_ok, other=0.0).to(ACC)
            grad += soft[:, None] * (tl.load(weight_sum_ptr).to(ACC) * p - weight[None, :])
        else:
            grad += soft[:, None] * (C * p - 1.0)
    nothing = tl.where(used, float("nan"), 0.0)
    grad = tl.where(known[:, None], scale[:, None] * grad, nothing[:, None])
    tl.store(
        grad_ptr + grad_offset[:, None] + (j.to(tl.int64) * grad_stride_c)[None, :],
        grad.to(grad_ptr.dtype.element_ty),
        mask=inside,
    )
