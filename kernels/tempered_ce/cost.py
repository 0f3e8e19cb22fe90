"""Launches of the tempered loss on CUDA, counted from triton.py (which tests hold this file to).

The forward pass reads the logits once and writes a few numbers a row; the backward pass reads them once more and writes
the gradient. Arithmetic is counted per logit: the constant work per row and tile is left out, below 1 % from a few
hundred classes on. All labels are taken as used (rows of the ignored label are not read in the backward pass).
"""

from __future__ import annotations

import torch
from fastrank.kernels.cost import Launch
from fastrank.kernels.tempered_ce.config import REDUCE_BLOCK, tile
from fastrank.kernels.tempered_ce.layout import STATE
from fastrank.kernels.tempered_ce.reference import RowStats, accumulator

_LABEL = 8  # int64

#: Per logit: take off the maximum, scale by 1/T and by log2(e), multiply with e, the maximum itself, and two sums.
FORWARD = 7
#: Of the statistics: sum z, and sum z^2 as product and sum.
STATS = 3
#: Of label smoothing, forward: weight times x, and two sums. Backward: C p - 1, times the share, added.
SMOOTH_FORWARD, SMOOTH_BACKWARD = 3, 4
#: Per logit: take off the maximum, scale by 1/T and log2(e), divide by the sum, times weight and grad_loss.
BACKWARD = 6
#: Flops of an exponential: one result of the special function unit in fp32; in fp64, libdevice's polynomial with its
#: range reduction.
EXP64 = 30


def forward(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, *, reduction: str = "mean", stats: bool = False,
    smoothing: bool = False, weight: bool = False, temperature: str = "float",
) -> tuple[Launch, ...]:  # fmt: skip
    """Launches of the loss of logits [rows, classes].

    Args:
        reduction: as the loss's. stats, smoothing, weight: whether they are asked for.
        temperature: "float", "scalar" (a 0-d tensor) or "rows" (a tensor with one value per row).
    """
    acc = accumulator(dtype).itemsize
    small = [Launch("torch.ones", 0, acc), *_prepared(dtype, smoothing, weight, temperature, classes)]
    planes = len(STATE) + (len(RowStats._fields) if stats else 0)
    gathered = min(rows, classes) * acc if weight else 0
    read = rows * (classes * dtype.itemsize + _LABEL) + _temperature(dtype, temperature, rows, acc)
    read += classes * acc if weight and smoothing else gathered
    programs = -(-rows // tile(classes).rows)
    per_row = dtype.itemsize + _LABEL + _temperature(dtype, temperature, 1, acc) + (acc if weight else 0)
    requested = rows * (classes * dtype.itemsize + per_row) + (programs * classes * acc if weight and smoothing else 0)
    count = FORWARD + STATS * stats + SMOOTH_FORWARD * smoothing
    launches = [
        Launch(
            "forward", read, rows * (planes + 1) * acc, _work(rows * classes, count, dtype),
            _work(_padded(rows, classes), count, dtype), requested, programs,
        )
    ]  # fmt: skip
    if reduction != "none":
        mean = reduction == "mean"
        launches.append(
            Launch(
                "reduce", rows * (acc + (_LABEL if mean else 0)) + (gathered if mean else 0), (2 if mean else 1) * acc,
                {"fp64": rows * (2 if mean else 1)},
                {"fp64": -(-rows // REDUCE_BLOCK) * REDUCE_BLOCK * (2 if mean else 1)},
                rows * (acc + ((_LABEL + (acc if weight else 0)) if mean else 0)), 1,
            )
        )  # fmt: skip
    return *small, *launches


def backward(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, *, reduction: str = "mean", smoothing: bool = False,
    weight: bool = False, temperature: str = "float",
) -> tuple[Launch, ...]:  # fmt: skip
    """Launches of the logits' gradient; arguments as of `forward`."""
    acc = accumulator(dtype).itemsize
    shape = tile(classes)
    columns = -(-classes // shape.classes)
    programs = -(-rows // shape.rows)
    logits = rows * classes * dtype.itemsize
    scale = rows * acc if reduction == "none" else acc
    read = logits + rows * (_LABEL + 3 * acc) + _temperature(dtype, temperature, rows, acc) + scale + acc
    read += 0 if not weight else (classes + 1) * acc if smoothing else min(rows, classes) * acc
    per_row = _LABEL + 4 * acc + _temperature(dtype, temperature, 1, acc) + (acc if weight else 0)
    requested = logits + columns * rows * per_row + columns * programs * acc
    requested += programs * (classes + columns) * acc if weight and smoothing else 0
    count = BACKWARD + SMOOTH_BACKWARD * smoothing
    launch = Launch(
        "backward", read, logits, _work(rows * classes, count, dtype), _work(_padded(rows, classes), count, dtype),
        requested, programs * columns,
    )  # fmt: skip
    return *_prepared(dtype, smoothing, weight, temperature, classes), launch


def _prepared(dtype: torch.dtype, smoothing: bool, weight: bool, temperature: str, classes: int) -> list[Launch]:
    """torch's own launches before the kernel: a float64 temperature, the sum of the weights."""
    acc = accumulator(dtype).itemsize
    launches = [Launch("torch.full", 0, acc)] if dtype == torch.float64 and temperature == "float" else []
    return launches + ([Launch("torch.sum", classes * acc, acc)] if weight and smoothing else [])


def _temperature(dtype: torch.dtype, kind: str, rows: int, acc: int) -> int:
    if kind == "float":
        return acc if dtype == torch.float64 else 0
    return acc if kind == "scalar" else rows * acc


def _padded(rows: int, classes: int) -> int:
    shape = tile(classes)
    return -(-rows // shape.rows) * shape.rows * -(-classes // shape.classes) * shape.classes


def _work(logits: int, count: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float64:
        return {"fp64": logits * (count + EXP64)}
    return {"fp32": logits * count, "sfu": logits}
