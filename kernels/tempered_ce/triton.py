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
from fastrank.kernels.tempered_ce.config import ALONE, COMBINE, REDUCE_BLOCK, SMS, registers, splits
from fastrank.kernels.tempered_loss.layout import as_ncd
from fastrank.kernels.tempered_loss.rows_triton import alignment, bits, number, place, rows_of, temperature_of, view_of
from fastrank.kernels.tempered_loss.tiles import tile
from torch import Tensor

_TARGETS = ("index", "mixed", "probabilities")


@triton.jit
def _log1p(a):
    u = 1 + a
    # log(u) errs as if u were exact; the quotient puts back what rounding took from a.
    return tl.where(u == 1, a, tl.log(u) * (a / (u - 1)))


@triton.jit
def _labels(
    target_ptr, second_ptr, share_ptr, weight_ptr, r, n, share_stride, row_ok, C, ignore_index, hard,
    TARGET: tl.constexpr, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(labels y and y2, -1 where there is none; their weights t_y, smoothing apart; which of them a rank is of; whether
    the row counts; whether its labels exist; what it counts in a mean)."""
    y2 = tl.full(r.shape, -1, tl.int64)
    mass, mass2 = tl.zeros(r.shape, ACC) + hard, tl.zeros(r.shape, ACC)
    if TARGET == "probabilities":
        y, used, known, counted = y2, row_ok, row_ok, mass
        ranked = y
    else:
        y = tl.load(target_ptr + r, mask=row_ok, other=ignore_index)
        if TARGET == "mixed":
            y2 = tl.load(second_ptr + r, mask=row_ok, other=-1)
            share = tl.load(share_ptr + n * share_stride, mask=row_ok, other=1.0).to(ACC)
            used = row_ok
            known = used & (y >= 0) & (y < C) & (y2 >= 0) & (y2 < C) & (share >= 0) & (share <= 1)
            ranked = tl.where(share < 0.5, y2, y)
            one = y2 == y
            mass, mass2 = tl.where(one, mass, share * mass), tl.where(one, 0.0, (1 - share) * mass)
            y2 = tl.where(known & (y2 != y), y2, -1)
        else:
            used = row_ok & (y != ignore_index)
            known = used & (y >= 0) & (y < C)
            ranked = y
        y = tl.where(known, y, -1)
        counted = used.to(ACC)
        if HAS_WEIGHT:
            counted = tl.load(weight_ptr + y, mask=known, other=0.0).to(ACC)
            mass = mass * counted
            if TARGET == "mixed":
                mass2 = mass2 * tl.load(weight_ptr + y2, mask=y2 >= 0, other=0.0).to(ACC)
    return y, y2, mass, mass2, ranked, used, known, counted


@triton.jit
def _label_logits(logits_ptr, offset, stride_c, y, y2, known, TARGET: tl.constexpr, ACC: tl.constexpr):
    target_logit, second_logit = tl.zeros(y.shape, ACC), tl.zeros(y.shape, ACC)
    if TARGET != "probabilities":
        target_logit = tl.load(logits_ptr + offset + y * stride_c, mask=known, other=0.0).to(ACC)
    if TARGET == "mixed":
        second_logit = tl.load(logits_ptr + offset + y2 * stride_c, mask=y2 >= 0, other=0.0).to(ACC)
    return target_logit, second_logit


@triton.jit
def _target_mass(
    q_at, q_mask, weight_ptr, j, column_ok, hard, soft, HAS_WEIGHT: tl.constexpr, SMOOTH: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """t_j of class probabilities."""
    t = tl.load(q_at, mask=q_mask, other=0.0).to(ACC)
    if SMOOTH:
        t = t * hard + soft
    if HAS_WEIGHT:
        t = t * tl.load(weight_ptr + j, mask=column_ok, other=0.0).to(ACC)[None, :]
    return t


@triton.jit
def _most_probable(
    q_ptr, q_offset, q_stride_c, row_ok, C, ACC: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr
):  # fmt: skip
    """The first class of the largest probability."""
    best = tl.full((ROWS,), float("-inf"), ACC)
    at = tl.zeros((ROWS,), tl.int32)
    for start in range(0, C, CLASSES):
        j = start + tl.arange(0, CLASSES)
        inside = row_ok[:, None] & (j < C)[None, :]
        q_at = q_ptr + q_offset[:, None] + (j.to(tl.int64) * q_stride_c)[None, :]
        q = tl.load(q_at, mask=inside, other=float("-inf")).to(ACC)
        largest = tl.max(q, 1)
        first = tl.min(tl.where(q == largest[:, None], j[None, :], start + CLASSES - 1), 1)
        at = tl.where(largest > best, first, at)
        best = tl.maximum(best, largest)
    return at.to(tl.int64)


@triton.jit
def _scan(
    logits_ptr, q_ptr, weight_ptr, offset, q_offset, stride_c, q_stride_c, row_ok, y, y2, ranked_logit, inverse,
    hard, soft, first, last, C,
    TARGET: tl.constexpr, HAS_WEIGHT: tl.constexpr, SMOOTH: tl.constexpr, STATS: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Sums over the classes [first, last) of a row: exponentials and their moment without the labels; the target's
    weights t_j (of smoothing without its factor) and t_j x_j; z, z^2 and the logits above the ranked one."""
    lowest = float("-inf")
    maximum = tl.full((ROWS,), lowest, ACC)
    others = tl.zeros((ROWS,), ACC)
    moment = tl.zeros((ROWS,), ACC)
    weighted = tl.zeros((ROWS,), ACC)
    weight_seen = tl.zeros((ROWS,), ACC)
    sum_z = tl.zeros((ROWS,), ACC)
    sum_z2 = tl.zeros((ROWS,), ACC)
    above = tl.zeros((ROWS,), tl.int32)
    for start in range(first, last, CLASSES):
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
        summed = inside
        if TARGET != "probabilities":
            summed = summed & (j[None, :] != y[:, None])
        if TARGET == "mixed":
            summed = summed & (j[None, :] != y2[:, None])
        e = tl.where(summed, tl.exp(x), 0.0)
        moment = rescale * (moment + shift * others) + tl.sum(tl.where(e > 0, e * x, e), 1)
        others = rescale * others + tl.sum(e, 1)
        if TARGET == "probabilities":
            at = q_ptr + q_offset[:, None] + (j.to(tl.int64) * q_stride_c)[None, :]
            t = _target_mass(at, inside, weight_ptr, j, column_ok, hard, soft, HAS_WEIGHT, SMOOTH, ACC)
            t = tl.where(inside, t, 0.0)
            weighted += shift * weight_seen + tl.sum(tl.where(inside, t * x, 0.0), 1)
            weight_seen += tl.sum(t, 1)
        elif SMOOTH:
            weight = tl.full((CLASSES,), 1.0, ACC)
            if HAS_WEIGHT:
                weight = tl.load(weight_ptr + j, mask=column_ok, other=0.0).to(ACC)
            weight = tl.where(inside, weight[None, :], 0.0)
            weighted += shift * weight_seen + tl.sum(tl.where(inside, weight * x, 0.0), 1)
            weight_seen += tl.sum(weight, 1)
        if STATS:
            kept = tl.where(inside, z, 0.0)
            sum_z += tl.sum(kept, 1)
            sum_z2 += tl.sum(kept * kept, 1)
            above += tl.sum((inside & (z > ranked_logit[:, None])).to(tl.int32), 1)
    return maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above.to(ACC)


@triton.jit
def _finish(
    rows_ptr, r, R, row_ok, y2, mass, mass2, used, known, target_logit, second_logit, temperature, inverse, soft,
    maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above,
    TARGET: tl.constexpr, SMOOTH: tl.constexpr, STATS: tl.constexpr,
):  # fmt: skip
    """Writes the planes of a row from its sums; returns its loss."""
    lowest = float("-inf")
    others = tl.where(maximum == lowest, float("nan"), others)
    if TARGET == "probabilities":
        total = others
        log_total = tl.log(total)
        all_moment = moment
        loss = weight_seen * log_total - weighted
        slope = weight_seen * (moment / total) - weighted
        others = weight_seen
    else:
        x = tl.where(known, (target_logit - maximum) / temperature, 0.0)
        e = tl.where(known, tl.exp(x), 0.0)
        ex = tl.where(e == 0, 0.0, e * x)
        rest, rest_moment = others, moment  # of all but the label
        if TARGET == "mixed":
            x2 = tl.where(y2 >= 0, (second_logit - maximum) / temperature, 0.0)
            e2 = tl.where(y2 >= 0, tl.exp(x2), 0.0)
            ex2 = tl.where(e2 == 0, 0.0, e2 * x2)
            rest, rest_moment = others + e2, moment + ex2
        total = rest + e
        all_moment = rest_moment + ex
        # Where a label is the maximum its e is 1: log1p keeps what the others add to it.
        log_total = tl.where(known & (x == 0), _log1p(rest), tl.log(total))
        if TARGET == "mixed":
            log_total = tl.where((x != 0) & (y2 >= 0) & (x2 == 0), _log1p(others + e), log_total)
        loss = mass * (log_total - x)
        slope = mass * (rest_moment - tl.where(x == lowest, 0.0, x * rest)) / total
        if TARGET == "mixed":
            loss += tl.where(y2 >= 0, mass2 * (log_total - x2), 0.0)
            second_slope = mass2 * (moment + ex - tl.where(x2 == lowest, 0.0, x2 * (others + e))) / total
            slope += tl.where(y2 >= 0, second_slope, 0.0)
        if SMOOTH:
            loss += soft * (weight_seen * log_total - weighted)
            slope += soft * (weight_seen * all_moment / total - weighted)
    nothing = tl.where(used, float("nan"), 0.0)
    plane = tl.zeros(r.shape, tl.int64) + R
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
        tl.store(rows_ptr + 9 * plane + r, tl.where(known, above, -1.0), mask=row_ok)
    return tl.where(known, loss, nothing)


@triton.jit
def _combined(
    part_ptr, r, row_ok, inverse, R, parts,
    SOFT: tl.constexpr, STATS: tl.constexpr, ACC: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The sums of rows from those of their parts."""
    lowest = float("-inf")
    s = tl.arange(0, PARTS)
    inside = row_ok[:, None] & (s < parts)[None, :]
    at = part_ptr + r[:, None] * parts + s[None, :]
    plane = tl.zeros(r.shape, tl.int64)[:, None] + R * parts.to(tl.int64)
    m = tl.load(at, mask=inside, other=lowest)
    maximum = tl.max(m, 1)
    base = tl.where(maximum == lowest, 0.0, maximum)
    shift = tl.where(m == lowest, 0.0, (m - base[:, None]) * inverse[:, None])
    rescale = tl.exp(shift)
    e = tl.load(at + plane, mask=inside, other=0.0)
    others = tl.sum(rescale * e, 1)
    moment = tl.sum(rescale * (tl.load(at + 2 * plane, mask=inside, other=0.0) + shift * e), 1)
    weighted = tl.zeros(r.shape, ACC)
    weight_seen, sum_z, sum_z2, above = weighted, weighted, weighted, weighted
    if SOFT:
        seen = tl.load(at + 4 * plane, mask=inside, other=0.0)
        weighted = tl.sum(tl.load(at + 3 * plane, mask=inside, other=0.0) + shift * seen, 1)
        weight_seen = tl.sum(seen, 1)
    if STATS:
        sum_z = tl.sum(tl.load(at + 5 * plane, mask=inside, other=0.0), 1)
        sum_z2 = tl.sum(tl.load(at + 6 * plane, mask=inside, other=0.0), 1)
        above = tl.sum(tl.load(at + 7 * plane, mask=inside, other=0.0), 1)
    return maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above


@triton.jit
def _combined_rows(
    first, logits_ptr, target_ptr, second_ptr, share_ptr, temperature_ptr, weight_ptr, rows_ptr, part_ptr,
    T, R, C, D, stride_n, stride_c, stride_d, temperature_stride, share_stride, ignore_index, smoothing, parts,
    TARGET: tl.constexpr, HAS_T: tl.constexpr, HAS_WEIGHT: tl.constexpr, SMOOTH: tl.constexpr, STATS: tl.constexpr,
    NESTED: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Puts ROWS rows together from their parts; returns their losses and what they count in a mean."""
    r, n, offset, row_ok = rows_of(first, R, D, stride_n, stride_d, ALIGN, ROWS, NESTED)
    hard = tl.full((ROWS,), 1.0, ACC) - smoothing
    soft = tl.full((ROWS,), 1.0, ACC) * smoothing / C
    y, y2, mass, mass2, _, used, known, counted = _labels(
        target_ptr, second_ptr, share_ptr, weight_ptr, r, n, share_stride, row_ok, C, ignore_index, hard,
        TARGET, HAS_WEIGHT, ACC,
    )  # fmt: skip
    temperature = temperature_of(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    inverse = 1 / temperature
    target_logit, second_logit = _label_logits(logits_ptr, offset, stride_c, y, y2, known, TARGET, ACC)
    maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above = _combined(
        part_ptr, r, row_ok, inverse, R, parts, SMOOTH or TARGET == "probabilities", STATS, ACC, PARTS
    )
    loss = _finish(
        rows_ptr, r, R, row_ok, y2, mass, mass2, used, known, target_logit, second_logit, temperature, inverse,
        soft, maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above, TARGET, SMOOTH, STATS,
    )  # fmt: skip
    return loss, tl.where(row_ok, counted, 0.0)


@triton.jit(do_not_specialize=["T", "smoothing", "span", "parts"])
def forward_kernel(
    logits_ptr, target_ptr, second_ptr, share_ptr, q_ptr, temperature_ptr, weight_ptr, rows_ptr, loss_ptr,
    denominator_ptr, arrived_ptr, part_ptr,
    T, R, C, D, stride_n, stride_c, stride_d, q_stride_n, q_stride_c, q_stride_d, temperature_stride, share_stride,
    ignore_index, smoothing, span, parts,
    TARGET: tl.constexpr, REDUCTION: tl.constexpr, HAS_T: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr, STATS: tl.constexpr, NESTED: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, PARTS: tl.constexpr, COUNTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row planes and loss of ROWS rows, or (PARTS > 1) sums over `span` tiles of each, and, COUNTED, the batch's
    loss by the program that ends last. `C` and, unless NESTED, the strides of n come in units of ALIGN.

    `part_ptr` takes what programs leave for the last one: sums of their rows' parts [plane, R, parts]; or, of whole
    rows, their losses' sum and what they count in a mean [2, programs] in float64. `arrived_ptr` is the denominator's
    memory as an integer: from 0, it counts the programs until the last one writes what a mean divides by.
    """
    C = C * ALIGN
    smoothing = number(smoothing, ACC)
    r, n, offset, row_ok = rows_of(tl.program_id(0).to(tl.int64) * ROWS, R, D, stride_n, stride_d, ALIGN, ROWS, NESTED)
    _, q_offset = place(r, D, q_stride_n, q_stride_d, ALIGN, NESTED)
    ranked_logit = tl.zeros((ROWS,), ACC)
    if TARGET == "probabilities" and STATS:
        ranked = _most_probable(q_ptr, q_offset, q_stride_c, row_ok, C, ACC, ROWS, CLASSES)
        ranked_logit = tl.load(logits_ptr + offset + ranked * stride_c, mask=row_ok, other=0.0).to(ACC)
    hard = tl.full((ROWS,), 1.0, ACC) - smoothing
    soft = tl.full((ROWS,), 1.0, ACC) * smoothing / C
    y, y2, mass, mass2, ranked, used, known, counted = _labels(
        target_ptr, second_ptr, share_ptr, weight_ptr, r, n, share_stride, row_ok, C, ignore_index, hard,
        TARGET, HAS_WEIGHT, ACC,
    )  # fmt: skip
    temperature = temperature_of(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    inverse = 1 / temperature
    target_logit, second_logit = _label_logits(logits_ptr, offset, stride_c, y, y2, known, TARGET, ACC)
    if TARGET == "index":
        ranked_logit = target_logit
    if TARGET == "mixed":
        ranked_logit = tl.where(ranked == y2, second_logit, target_logit)

    first, last = 0, C
    if PARTS > 1:
        first = tl.program_id(1) * span * CLASSES
        last = tl.minimum(first + span * CLASSES, C)
    maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above = _scan(
        logits_ptr, q_ptr, weight_ptr, offset, q_offset, stride_c, q_stride_c, row_ok, y, y2, ranked_logit, inverse,
        hard[:, None], soft[:, None], first, last, C, TARGET, HAS_WEIGHT, SMOOTH, STATS, ACC, ROWS, CLASSES,
    )  # fmt: skip
    if PARTS > 1:
        at = part_ptr + r * parts + tl.program_id(1)
        plane = tl.zeros((ROWS,), tl.int64) + R * parts.to(tl.int64)
        tl.store(at, maximum, mask=row_ok)
        tl.store(at + plane, others, mask=row_ok)
        tl.store(at + 2 * plane, moment, mask=row_ok)
        if SMOOTH or TARGET == "probabilities":
            tl.store(at + 3 * plane, weighted, mask=row_ok)
            tl.store(at + 4 * plane, weight_seen, mask=row_ok)
        if STATS:
            tl.store(at + 5 * plane, sum_z, mask=row_ok)
            tl.store(at + 6 * plane, sum_z2, mask=row_ok)
            tl.store(at + 7 * plane, above, mask=row_ok)
    else:
        loss = _finish(
            rows_ptr, r, R, row_ok, y2, mass, mass2, used, known, target_logit, second_logit, temperature, inverse,
            soft, maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above, TARGET, SMOOTH, STATS,
        )  # fmt: skip
        if REDUCTION == "none":
            tl.store(loss_ptr + r, loss, mask=row_ok)
        else:
            at = part_ptr + tl.program_id(0)
            tl.store(at, tl.sum(loss.to(tl.float64), 0))
            if REDUCTION == "mean" and TARGET == "index":
                tl.store(at + tl.num_programs(0), tl.sum(counted.to(tl.float64), 0))

    if COUNTED:
        # All threads have stored before one of them says so; the atomic orders that before what the last one reads.
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr, 1) + 1 == tl.num_programs(0) * tl.num_programs(1):
            total_loss = tl.zeros((BLOCK,), tl.float64)
            count = tl.zeros((BLOCK,), tl.float64)
            if PARTS > 1:
                for start in range(0, R, BLOCK):
                    losses, counts = _combined_rows(
                        start, logits_ptr, target_ptr, second_ptr, share_ptr, temperature_ptr, weight_ptr, rows_ptr,
                        part_ptr, T, R, C, D, stride_n, stride_c, stride_d, temperature_stride, share_stride,
                        ignore_index, smoothing, parts,
                        TARGET, HAS_T, HAS_WEIGHT, SMOOTH, STATS, NESTED, ALIGN, ACC, BLOCK, PARTS,
                    )  # fmt: skip
                    if REDUCTION == "none":
                        i = start + tl.arange(0, BLOCK).to(tl.int64)
                        tl.store(loss_ptr + i, losses, mask=i < R)
                    else:
                        total_loss += losses.to(tl.float64)
                        count += counts.to(tl.float64)
            else:
                programs = tl.num_programs(0)
                for start in range(0, programs, BLOCK):
                    i = start + tl.arange(0, BLOCK)
                    total_loss += tl.load(part_ptr + i, mask=i < programs, other=0.0)
                    if REDUCTION == "mean" and TARGET == "index":
                        count += tl.load(part_ptr + programs + i, mask=i < programs, other=0.0)
            denominator = tl.sum(count, 0)
            if TARGET != "index":
                denominator = tl.cast(R, tl.float64)
            if REDUCTION != "mean":
                denominator = tl.cast(1.0, tl.float64)
            if REDUCTION != "none":
                tl.store(loss_ptr, (tl.sum(total_loss, 0) / denominator).to(ACC))
            tl.store(denominator_ptr, denominator.to(ACC))


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
    y, y2, mass, mass2, _, used, known, _ = _labels(
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
        t = _target_mass(
            at, inside, weight_ptr, j, column_ok, hard[:, None], soft[:, None], HAS_WEIGHT, SMOOTH, ACC
        )  # fmt: skip
        grad = others[:, None] * p - t
    elif TARGET == "mixed":
        z1, z2 = _label_logits(logits_ptr, offset, stride_c, y, y2, known, TARGET, ACC)
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
