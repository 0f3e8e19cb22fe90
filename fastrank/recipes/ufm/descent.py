"""Full-batch gradient descent of many runs at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.recipes.ufm.checkpoint import Checkpoint
from fastrank.recipes.ufm.measure import measure
from fastrank.recipes.ufm.model import Chain, DeepUFM, check_weights, join, split
from fastrank.recipes.ufm.trajectory import Trajectory, log_steps

#: Bytes of weights and buffers that runs worked on together may have on a CPU: half of a core's second-level cache, so
#: that a step reads nothing from memory. On a GPU all runs go together.
GROUP_BYTES = 1 << 20
#: A run has diverged where its loss exceeds this many times the larger of its first loss and log C.
DIVERGED = 10.0


def descend(
    weights: list[Tensor],
    model: DeepUFM,
    lr: float | Tensor,
    steps: int,
    *,
    record: Sequence[int] | None = None,
    weight_decay: float | Tensor = 0.0,
    loss_below: float = 0.0,
    collapse: bool = True,
    group: int | None = None,
    checkpoint: Path | None = None,
) -> Trajectory:
    """`steps` steps of W_l -= lr * (dloss/dW_l + weight_decay * W_l) on every run.

    Args:
        weights: [B, m, n] of W_1 ... W_L, float32 or float64, on any device; not changed.
        lr, weight_decay: one number, or [B].
        record: steps at which figures are taken, ascending; logarithmic by default.
        loss_below: a run stops at the first record at which its loss is at most this.
        collapse: whether NC1 .. NC3 and GNC3 are recorded.
        group: runs worked on together, by default what fits GROUP_BYTES. No figure depends on it.
        checkpoint: file from which a call with the same arguments goes on, and that it writes.

    Raises:
        InputError: shapes that do not fit, lr not positive, records out of order.
    """
    check_weights(weights, model)
    runs, device, dtype = len(weights[0]), weights[0].device, weights[0].dtype
    rates = _per_run("lr", lr, weights[0], least=0, strict=True)
    decay = _per_run("weight_decay", weight_decay, weights[0], least=0)
    record = log_steps(steps) if record is None else [int(r) for r in record]
    if not record or record != sorted(set(record)) or record[0] < 0 or record[-1] > steps:
        raise InputError("record", f"steps between 0 and {steps}, ascending", record)
    state = join([W.detach() for W in weights])
    kept = Checkpoint(checkpoint, model, rates, decay, record, loss_below, collapse, state)
    at, records, active = 0, [], torch.ones(runs, dtype=torch.bool, device=device)
    stopped = rates.new_full((runs,), torch.nan, dtype=torch.float64)
    if (held := kept.load(device)) is not None:
        at, records, active, stopped, state = (held[k] for k in ("at", "records", "active", "stopped", "state"))
    size = group or (
        runs if device.type != "cpu" else max(1, GROUP_BYTES // (3 * model.parameters * dtype.itemsize // 2))
    )
    for step in record[len(records) :]:
        if step > at and bool(active.any()):
            for some in active.nonzero().flatten().split(size):
                state[some] = _steps(state[some], model, rates[some], decay[some], step - at)
        at = step
        found = measure(split(state, model), model, collapse) if not records or bool(active.all()) else None
        if found is None:  # those that stopped keep their figures
            found = {name: value.clone() for name, value in records[-1].items()}
            fresh = measure(split(state[active], model), model, collapse) if bool(active.any()) else {}
            for name, value in fresh.items():
                found[name][active] = value
        records.append(found)
        limit = DIVERGED * records[0]["loss"].clamp_min(math.log(model.classes))
        active &= found["loss"] <= limit  # NaN is not
        done = active & (found["loss"] <= loss_below)
        stopped[done] = float(step)
        active &= ~done
        kept.save(
            {"at": at, "records": records, "active": active, "stopped": stopped, "state": state},
            last=step == record[-1],
        )
    figures = {name: torch.stack([r[name] for r in records]) for name in records[0]}
    diverged = ~(active | stopped.isfinite())
    if bool(diverged.any()):  # where a step was too large, what came of it is no figure of gradient descent
        lost = (~(figures["loss"] <= limit)).cummax(0).values & diverged
        for value in figures.values():
            value[lost] = torch.nan
    times = torch.tensor(record, dtype=torch.float64)
    return Trajectory(model, times, figures, stopped, diverged, split(state, model))


def _steps(state: Tensor, model: DeepUFM, lr: Tensor, decay: Tensor, count: int) -> Tensor:
    """`state` [b, P] after `count` steps; a copy whose layers are contiguous."""
    chain = Chain(model, len(state), state.dtype, state.device)
    chain.load(state)
    scale = (lr / model.rows)[:, None, None]
    shrink = (1 - lr * decay)[:, None, None] if bool(decay.any()) else None
    for _ in range(count):
        chain.descend_(scale, shrink)
    return join(chain.weights)


def _per_run(name: str, value: float | Tensor, like: Tensor, least: float, strict: bool = False) -> Tensor:
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if value.shape not in ((), (len(like),)):
        raise InputError(name, f"one number, or [{len(like)}]", tuple(value.shape))
    if not bool(((value > least) if strict else (value >= least)).all() & value.isfinite().all()):
        raise InputError(name, f"finite and {'above' if strict else 'at least'} {least:g}", value.tolist())
    return value.expand(len(like)).contiguous()
