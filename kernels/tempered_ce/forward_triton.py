"""The forward pass on CUDA: a program's rows, or its part of them; the last program puts the batch together."""

from __future__ import annotations

import triton
import triton.language as tl
from fastrank.kernels.tempered_ce.sums_triton import finish, row_sums, sums_of_parts
from fastrank.kernels.tempered_ce.targets_triton import label_logits, labels_of, most_probable
from fastrank.kernels.tempered_loss.rows_triton import number, place, rows_of, temperature_of


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
    y, y2, mass, mass2, _, used, known, counted = labels_of(
        target_ptr, second_ptr, share_ptr, weight_ptr, r, n, share_stride, row_ok, C, ignore_index, hard,
        TARGET, HAS_WEIGHT, ACC,
    )  # fmt: skip
    temperature = temperature_of(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    inverse = 1 / temperature
    target_logit, second_logit = label_logits(logits_ptr, offset, stride_c, y, y2, known, TARGET, ACC)
    maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above = sums_of_parts(
        part_ptr, r, row_ok, inverse, R, parts, SMOOTH or TARGET == "probabilities", STATS, ACC, PARTS
    )
    loss = finish(
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
        ranked = most_probable(q_ptr, q_offset, q_stride_c, row_ok, C, ACC, ROWS, CLASSES)
        ranked_logit = tl.load(logits_ptr + offset + ranked * stride_c, mask=row_ok, other=0.0).to(ACC)
    hard = tl.full((ROWS,), 1.0, ACC) - smoothing
    soft = tl.full((ROWS,), 1.0, ACC) * smoothing / C
    y, y2, mass, mass2, ranked, used, known, counted = labels_of(
        target_ptr, second_ptr, share_ptr, weight_ptr, r, n, share_stride, row_ok, C, ignore_index, hard,
        TARGET, HAS_WEIGHT, ACC,
    )  # fmt: skip
    temperature = temperature_of(temperature_ptr, T, n, temperature_stride, row_ok, HAS_T, ACC)
    inverse = 1 / temperature
    target_logit, second_logit = label_logits(logits_ptr, offset, stride_c, y, y2, known, TARGET, ACC)
    if TARGET == "index":
        ranked_logit = target_logit
    if TARGET == "mixed":
        ranked_logit = tl.where(ranked == y2, second_logit, target_logit)

    first, last = 0, C
    if PARTS > 1:
        first = tl.program_id(1) * span * CLASSES
        last = tl.minimum(first + span * CLASSES, C)
    maximum, others, moment, weighted, weight_seen, sum_z, sum_z2, above = row_sums(
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
        loss = finish(
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
