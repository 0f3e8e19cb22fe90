"""What a row of logits is held against, on CUDA: labels, pairs of labels, class probabilities; and their weights."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def labels_of(
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
def label_logits(logits_ptr, offset, stride_c, y, y2, known, TARGET: tl.constexpr, ACC: tl.constexpr):
    target_logit, second_logit = tl.zeros(y.shape, ACC), tl.zeros(y.shape, ACC)
    if TARGET != "probabilities":
        target_logit = tl.load(logits_ptr + offset + y * stride_c, mask=known, other=0.0).to(ACC)
    if TARGET == "mixed":
        second_logit = tl.load(logits_ptr + offset + y2 * stride_c, mask=y2 >= 0, other=0.0).to(ACC)
    return target_logit, second_logit


@triton.jit
def target_mass(
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
def most_probable(
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
