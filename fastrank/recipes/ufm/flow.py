"""Gradient flow dW_l/dt = -dloss/dW_l of many runs, each integrated with its own steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.recipes.ufm.checkpoint import Checkpoint
from fastrank.recipes.ufm.integrate import Integrator
from fastrank.recipes.ufm.measure import measure
from fastrank.recipes.ufm.model import Chain, DeepUFM, check_weights, join, split
from fastrank.recipes.ufm.trajectory import Trajectory


def flow(
    weights: list[Tensor],
    model: DeepUFM,
    times: Sequence[float] | Tensor,
    *,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    loss_below: float = 0.0,
    collapse: bool = True,
    checkpoint: Path | None = None,
) -> Trajectory:
    """The flow from `weights`, recorded at `times` (ascending, from 0 on), in float64.

    rtol, atol: of the local error of each step, in the weights (root mean square over a run's weights). loss_below as
    and checkpoint as in `descend`. `diverged` marks runs whose step vanished, or that take over `integrate.MOST_STEPS`
    steps from one record to the next.

    Raises:
        InputError: shapes that do not fit, times out of order.
    """
    check_weights(weights, model)
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.ndim != 1 or not len(times) or times[0] < 0 or not bool((times.diff() > 0).all() & times.isfinite().all()):
        raise InputError("times", "a vector of ascending, finite times from 0 on", times.tolist())
    y = join([W.detach().double() for W in weights])
    rate = _Rate(model, y)
    integrator = Integrator(rate, y, rtol, atol)
    active = torch.ones(len(y), dtype=torch.bool, device=y.device)
    stopped, records = y.new_full((len(y),), torch.nan), []
    kept = Checkpoint(checkpoint, model, times, rtol, atol, loss_below, collapse, y)
    if (held := kept.load(y.device)) is not None:
        records, active, stopped = held["records"], held["active"], held["stopped"]
        integrator.restore(held["integrator"])
    for time in times.tolist()[len(records) :]:
        integrator.advance(time, active)
        active &= ~integrator.failed
        found = measure(split(integrator.y, model), model, collapse)
        for value in found.values():
            value[integrator.failed] = torch.nan
        records.append(found)
        done = active & (found["loss"] <= loss_below)
        stopped[done] = time
        active &= ~done
        state = {"records": records, "active": active, "stopped": stopped, "integrator": integrator.state()}
        kept.save(state, last=len(records) == len(times))
    figures = {name: torch.stack([r[name] for r in records]) for name in records[0]}
    return Trajectory(model, times, figures, stopped, integrator.failed, split(integrator.y, model))


class _Rate:
    """-dloss/dW of flat states; buffers for as many runs as are still on their way."""

    def __init__(self, model: DeepUFM, y: Tensor) -> None:
        self.model, self.chain, self.size = model, None, -1

    def __call__(self, y: Tensor, runs: Tensor) -> Tensor:
        if len(y) != self.size:
            self.chain, self.size = Chain(self.model, len(y), y.dtype, y.device), len(y)
        self.chain.load(y)
        return self.chain.gradients(y.new_full((len(y), 1, 1), -1 / self.model.rows))
