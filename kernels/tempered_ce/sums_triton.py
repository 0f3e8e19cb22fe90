"""The sums of a row on CUDA: along its classes, of its parts, and from them to row planes and loss."""

from __future__ import annotations

import triton
import triton.language as tl
from fastrank.kernels.tempered_ce.targets_triton import target_mass


@triton.jit
def _log1p(a):
    u = 1 + a
    # log(u) errs as if u were exact; the quotient puts back what rounding took from a.
    return tl.where(u == 1, a, tl.log(u) * (a / (u - 1)))


@triton.jit
def row_sums(
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
            t = target_mass(at, inside, weight_ptr, j, column_ok, hard, soft, HAS_WEIGHT, SMOOTH, ACC)
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
def finish(
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
def sums_of_parts(
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
