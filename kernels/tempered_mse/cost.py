"""Launches of the tempered squared error on CUDA, counted from triton.py (which tests hold this file to).

The forward pass reads the logits once from memory; a row that exceeds one tile is walked along twice, and what the
second walk asks for is in `requested`, for the caches to serve. The backward pass reads the logits once more and writes
the gradient. Arithmetic is counted per logit: the constant work per row and tile is left out. All labels are taken as
used (rows of the ignored label are not read in the backward pass).
"""

from __future__ import annotations

import torch
from fastrank.kernels.cost import Launch
from fastrank.kernels.tempered_loss.layout import accumulator
from fastrank.kernels.tempered_loss.tiles import tile
from fastrank.kernels.tempered_mse.config import REDUCE_BLOCK
from fastrank.kernels.tempered_mse.layout import STATE

_LABEL = 8  # int64

#: Per logit. First walk: take off the maximum, scale by 1 / T and log2(e), the maximum itself, the sum beside it and
#: the count at it. Second walk: the same exponential, p, d beside the maximum and at it, and five sums, three of
#: them of products.
FORWARD = 25
#: The second walk's own exponential, where the row is more than the tile that holds the first's.
SECOND_WALK = 2
#: Of a weight beside class probabilities: w's sum of products.
WEIGHTED = 2
#: Per logit: take off the maximum, scale, p, t from its unsmoothed value, (p - t - D) p, times what the row weighs.
BACKWARD = 11
#: Flops of an exponential: one result of the special function unit in fp32; in fp64, libdevice's polynomial with its
#: range reduction.
EXP64 = 30


def forward(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, *, target: str = "index", reduction: str = "mean",
    weight: bool = False, temperature: str = "float",
) -> tuple[Launch, ...]:  # fmt: skip
    """Launches of the loss of logits [rows, classes].

    Args:
        target: "index", "mixed" (its share a 0-d tensor) or "probabilities" (in the accumulator's dtype).
        reduction: as the loss's. weight: whether there is one.
        temperature: "float", "scalar" (a 0-d tensor) or "rows" (a tensor with one value per row).
    """
    acc, shape = accumulator(dtype).itemsize, tile(classes)
    soft, one_tile = target == "probabilities", classes <= shape.classes
    programs = -(-rows // shape.rows)
    logits = rows * classes * dtype.itemsize
    labels, label_requests = _target(target, rows, classes, acc)
    read = logits + labels + _temperature(temperature, rows, acc)
    requested = (1 if one_tile else 2) * logits + label_requests + (rows * acc if temperature != "float" else 0)
    if weight and soft:
        read += classes * acc
        requested += programs * classes * acc
    elif weight:
        read += min(rows, classes) * acc
        requested += (2 if target == "mixed" else 1) * rows * acc
    count = FORWARD + (0 if one_tile else SECOND_WALK) + (WEIGHTED if weight and soft else 0)
    work = lambda n: _work(n, count, 1 if one_tile else 2, dtype)  # noqa: E731
    launches = [
        *(() if reduction == "mean" else (Launch("torch.fill", 0, acc),)),
        Launch(
            "forward", read, rows * (len(STATE) + 1) * acc, work(rows * classes), work(_padded(rows, classes)),
            requested, programs,
        ),
    ]  # fmt: skip
    if reduction != "none":
        mean = reduction == "mean"
        planes = 2 if mean and target == "index" else 1
        added = rows * (2 if mean else 1)
        launches.append(
            Launch(
                "reduce", rows * planes * acc, (2 if mean else 1) * acc, {"fp64": added},
                {"fp64": -(-rows // REDUCE_BLOCK) * REDUCE_BLOCK * (2 if mean else 1)}, rows * planes * acc, 1,
            )
        )  # fmt: skip
    return tuple(launches)


def backward(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, *, target: str = "index", reduction: str = "mean",
    temperature: str = "float",
) -> tuple[Launch, ...]:  # fmt: skip
    """Launches of the logits' gradient; arguments as of `forward`. (The rows' weights are among its planes.)"""
    acc, shape = accumulator(dtype).itemsize, tile(classes)
    columns, programs = -(-classes // shape.classes), -(-rows // shape.rows)
    logits = rows * classes * dtype.itemsize
    labels, label_requests = _target(target, rows, classes, acc)
    planes = len(STATE) - 1  # all but the slope
    read = logits + labels + rows * planes * acc + _temperature(temperature, rows, acc) + acc
    read += rows * acc if reduction == "none" else acc
    per_row = (planes + 1 + (1 if temperature != "float" else 0)) * acc
    requested = logits + columns * (rows * per_row + programs * acc)
    requested += label_requests * (1 if target == "probabilities" else columns)
    launch = Launch(
        "backward", read, logits, _work(rows * classes, BACKWARD, 1, dtype),
        _work(_padded(rows, classes), BACKWARD, 1, dtype), requested, programs * columns,
    )  # fmt: skip
    return (launch,)


def _target(kind: str, rows: int, classes: int, acc: int) -> tuple[int, int]:
    """Distinct bytes of the target, and bytes that one walk along all rows asks for."""
    if kind == "probabilities":
        return rows * classes * acc, rows * classes * acc
    if kind == "mixed":
        return 2 * rows * _LABEL + acc, rows * (2 * _LABEL + acc)
    return rows * _LABEL, rows * _LABEL


def _temperature(kind: str, rows: int, acc: int) -> int:
    return {"float": 0, "scalar": acc, "rows": rows * acc}[kind]


def _padded(rows: int, classes: int) -> int:
    shape = tile(classes)
    return -(-rows // shape.rows) * shape.rows * -(-classes // shape.classes) * shape.classes


def _work(logits: int, count: int, exponentials: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float64:
        return {"fp64": logits * (count + exponentials * EXP64)}
    return {"fp32": logits * count, "sfu": logits * exponentials}
