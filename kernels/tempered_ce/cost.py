"""Launches of the tempered loss on CUDA, counted from triton.py (which tests hold this file to).

The forward pass reads the logits once and writes a few numbers a row; the backward pass reads them once more and writes
the gradient. Probabilities are read once by each, and once more where statistics are asked for. Arithmetic is counted
per logit: the constant work per row, tile and part of a row is left out, below 1 % from a few hundred classes on. All
labels are taken as used (rows of the ignored label are not read in the backward pass), and a row's two as different.
"""

from __future__ import annotations

import torch
from fastrank.kernels.cost import Launch
from fastrank.kernels.tempered_ce.config import ALONE, SMS, splits
from fastrank.kernels.tempered_ce.layout import STATE
from fastrank.kernels.tempered_ce.reference import RowStats
from fastrank.kernels.tempered_loss.layout import accumulator
from fastrank.kernels.tempered_loss.tiles import tile

_LABEL = 8  # int64

#: Per logit: take off the maximum, scale by 1/T and by log2(e), multiply with e, the maximum itself, and two sums.
FORWARD = 7
#: Of the statistics: sum z, and sum z^2 as product and sum. Beside probabilities: the largest of them.
STATS, STATS_PROBABILITIES = 3, 4
#: Of label smoothing, forward: weight times x, and two sums. Backward: C p - 1, times the share, added.
SMOOTH_FORWARD, SMOOTH_BACKWARD = 3, 4
#: Of class probabilities, forward: t times x, and two sums. Backward: t taken off. Of either, to make t of q: times
#: 1 - s, plus s / C; times the weight.
PROBABILITIES_FORWARD, PROBABILITIES_BACKWARD, PROBABILITIES_SMOOTH, PROBABILITIES_WEIGHT = 3, 1, 2, 1
#: Per logit: take off the maximum, scale by 1/T and log2(e), divide by the sum, times weight and grad_loss.
BACKWARD = 6
#: Of mixed targets: what the labels' own weights move, taken off.
MIXED_BACKWARD = 1
#: Flops of an exponential: one result of the special function unit in fp32; in fp64, libdevice's polynomial with its
#: range reduction.
EXP64 = 30


def forward(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, *, target: str = "index", reduction: str = "mean",
    stats: bool = False, smoothing: bool = False, weight: bool = False, temperature: str = "float", sms: int = SMS,
) -> tuple[Launch, ...]:  # fmt: skip
    """Launches of the loss of logits [rows, classes].

    Args:
        target: "index", "mixed" (shares per row) or "probabilities"; shares, probabilities and weights in the
            accumulator's dtype.
        reduction: as the loss's. stats, smoothing, weight: whether they are asked for.
        temperature: "float", "scalar" (a 0-d tensor) or "rows" (a tensor with one value per row).
        sms: multiprocessors of the device, to which rows are split.
    """
    acc, soft = accumulator(dtype).itemsize, target == "probabilities"
    programs = -(-rows // tile(classes).rows)
    parts = 1 if soft and stats else splits(programs, classes, sms)[0]
    mean, combined = reduction == "mean" and target == "index", parts > 1
    columns = weight and (smoothing or soft)  # whether all weights are read
    per_row, distinct, _ = _row(rows, classes, dtype, target, weight, temperature)
    matrix = rows * classes * (dtype.itemsize + (acc * (2 if stats else 1) if soft else 0))
    read = rows * classes * (dtype.itemsize + (acc if soft else 0)) + distinct
    read += classes * acc if columns else 0
    read -= _gathered(rows, classes, target) * acc if columns and weight and not soft else 0
    requested = matrix + rows * (per_row * (parts + combined) + (dtype.itemsize if soft and stats else 0))
    requested += programs * classes * acc if columns else 0
    # What programs leave for the last one.
    left = 0
    if combined:
        left = rows * parts * acc * (3 + 2 * (smoothing or soft) + 3 * stats)
    elif reduction != "none":
        left = programs * 8 * (2 if mean else 1)
    planes = len(STATE) + (len(RowStats._fields) if stats else 0)
    written = rows * planes * acc + (rows * acc if reduction == "none" else acc) + left
    counted = combined or (reduction != "none" and programs <= ALONE)  # whether the last program reduces
    if reduction != "none" and not counted:
        written -= acc
    written += acc if counted else 0  # the denominator
    count = FORWARD + STATS * stats
    if soft:
        count += PROBABILITIES_FORWARD + PROBABILITIES_SMOOTH * smoothing + PROBABILITIES_WEIGHT * weight
        count += (STATS_PROBABILITIES - STATS) * stats
    else:
        count += SMOOTH_FORWARD * smoothing
    launch = Launch(
        "forward", read + (left if counted else 0), written, _work(rows * classes, count, dtype),
        _work(_padded(rows, classes), count, dtype), requested + (left if counted else 0), programs * parts,
    )  # fmt: skip
    after = []
    if reduction != "none" and not counted:
        after = [Launch("torch.sum", programs * 8, 8, {"fp64": programs}), Launch("torch.div", 8 + acc, acc)]
        if mean:
            after += [after[0], Launch("torch.copy_", 8, acc)]
        elif reduction == "mean":
            after.append(Launch("torch.fill_", 0, acc))
    return Launch("torch.fill_", 0, acc), launch, *after


def backward(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, *, target: str = "index", reduction: str = "mean",
    smoothing: bool = False, weight: bool = False, temperature: str = "float",
) -> tuple[Launch, ...]:  # fmt: skip
    """Launches of the logits' gradient; arguments as of `forward`."""
    acc, soft = accumulator(dtype).itemsize, target == "probabilities"
    shape = tile(classes)
    columns, programs = -(-classes // shape.classes), -(-rows // shape.rows)
    logits = rows * classes * dtype.itemsize
    total = weight and smoothing and not soft  # whether the weights' sum is needed
    all_weights = weight and (smoothing or soft)
    per_row, distinct, label_logits = _row(rows, classes, dtype, target, weight, temperature)
    if target == "index":  # its own logit is not needed
        per_row -= label_logits
    matrix = logits + (rows * classes * acc if soft else 0)
    read = matrix + distinct + rows * 3 * acc + (rows * acc if reduction == "none" else acc) + acc
    read += classes * acc if all_weights else 0
    read -= _gathered(rows, classes, target) * acc if all_weights and not soft else 0
    read += acc if total else 0
    requested = matrix + columns * rows * (per_row + 4 * acc) + columns * programs * acc * (2 if total else 1)
    requested += programs * classes * acc if all_weights else 0
    count = BACKWARD
    if soft:
        count += PROBABILITIES_BACKWARD + PROBABILITIES_SMOOTH * smoothing + PROBABILITIES_WEIGHT * weight
    else:
        count += SMOOTH_BACKWARD * smoothing + MIXED_BACKWARD * (target == "mixed")
    launch = Launch(
        "backward", read, logits, _work(rows * classes, count, dtype), _work(_padded(rows, classes), count, dtype),
        requested, programs * columns,
    )  # fmt: skip
    # torch's own launch before the kernel.
    return (*([Launch("torch.sum", classes * acc, acc)] if total else []), launch)


def _row(rows: int, classes: int, dtype: torch.dtype, target: str, weight: bool, temperature: str):
    """Beside its logits: bytes asked for by a program for each row, distinct bytes of all rows that are not logits, and
    bytes of its labels' logits."""
    acc = accumulator(dtype).itemsize
    labels = {"index": 1, "mixed": 2, "probabilities": 0}[target]
    own = labels * _LABEL + (acc if target == "mixed" else 0)
    kinds = {"float": (0, 0), "scalar": (acc, acc), "rows": (acc, rows * acc)}
    per_row, distinct = kinds[temperature]
    gathered = _gathered(rows, classes, target) * acc if weight else 0
    label_logits = labels * dtype.itemsize
    return (
        own + per_row + label_logits + (labels * acc if weight else 0), rows * own + distinct + gathered, label_logits
    )  # fmt: skip


def _gathered(rows: int, classes: int, target: str) -> int:
    """Labels that differ, at most."""
    return min(rows * {"index": 1, "mixed": 2, "probabilities": 0}[target], classes)


def _padded(rows: int, classes: int) -> int:
    shape = tile(classes)
    return -(-rows // shape.rows) * shape.rows * -(-classes // shape.classes) * shape.classes


def _work(logits: int, count: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float64:
        return {"fp64": logits * (count + EXP64)}
    return {"fp32": logits * count, "sfu": logits}
