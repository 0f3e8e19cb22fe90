"""From simulated batches to run directories, and the columns that the recipes of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastrank.recipes.recipe import Column, Job, evaluated, rank_column
from fastrank.recipes.training import recipe_facts
from fastrank.recipes.ufm import initialise
from fastrank.recipes.ufm.descent import descend
from fastrank.recipes.ufm.model import DeepUFM, logits
from fastrank.recipes.ufm.trajectory import Trajectory
from fastrank.record import RunWriter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A singular value counts for the rank that the recipes compare when it is at least this share of the largest: from a
#: generic start none is ever zero, and those that depth leaves behind differ from the others by factors.
RTOL = 0.1
#: Figures of a trajectory that go into the run directory at every record.
LOGGED = ("loss", "margin", "accuracy", "norm", "etf", "nc1_trace", "nc2_equinorm", "nc2_equiangular", "nc3_duality")


def batches(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs of one label, which differ in their seed only, together."""
    labels: dict[str, list[Job]] = {}
    for job in jobs:
        labels.setdefault(job.label, []).append(job)
    yield from labels.values()


def same_product(model: DeepUFM, seeds: list[int], scale: float) -> list[Tensor]:
    """Balanced layers of a random product Z that a seed fixes whatever the depth: entries N(0, scale^2 / C)."""
    flat = DeepUFM(model.classes, 1, 1, model.samples)
    Z = logits(initialise.gaussian(flat, seeds, scale))
    return initialise.balanced(Z, [Z.new_zeros(len(seeds), *shape) for shape in model.shapes])


def simulate(jobs: Sequence[Job], device: torch.device) -> None:
    """Gradient descent of every job in float32, one batch per label.

    Settings: classes, depth, width; start ("layers": every layer Gaussian; "product": the same random Z at any depth);
    scale, of the start; lr, steps, loss_below.
    """
    for batch in batches(jobs):
        s = batch[0].settings
        model = DeepUFM(s["classes"], s["depth"], s["width"])
        start = initialise.gaussian if s["start"] == "layers" else same_product
        weights = [W.float().to(device) for W in start(model, [job.seed for job in batch], s["scale"])]
        write(batch, descend(weights, model, s["lr"], s["steps"], loss_below=s["loss_below"]))


def write(jobs: Sequence[Job], found: Trajectory, more: Callable[[int], dict[str, Any]] = lambda run: {}) -> None:
    """One finished run directory per job, run i of `found` for job i; `more` adds to a run's evaluation."""
    rank, lo, hi = (x[[0, -1]].tolist() for x in found.rank(RTOL))
    effective = found.effective_rank()
    for i, job in enumerate(jobs):
        with RunWriter(job.path, recipe_facts(job), resume=(job.path / "run.db").is_file()) as writer:
            writer.truncate(-1)
            for at, step in enumerate(found.times.tolist()):
                figures = {f"logits/{name}": float(found[name][at, i]) for name in LOGGED if name in found.figures}
                figures |= {"logits/time": step, "logits/effective_rank": float(effective[at, i])}
                writer.log_step(at, figures, {"logits/sigma": found["sigma"][at, i]})
            writer.set_evaluation({
                "rank": {"rank": rank[1][i], "lo": lo[1][i], "hi": hi[1][i]},
                "start_rank": {"rank": rank[0][i], "lo": lo[0][i], "hi": hi[0][i]},
                "effective_rank": float(effective[-1, i]), "start_effective_rank": float(effective[0, i]),
                **{name: float(found[name][-1, i]) for name in ("loss", "margin", "norm", "etf")},
                "train_accuracy": float(found["accuracy"][-1, i].nan_to_num(0.0)),
                "steps": float(found.stopped[i].nan_to_num(float(found.times[-1]))),
                "diverged": bool(found.diverged[i]), **more(i),
            })  # fmt: skip


def draw_sigma(axes: Axes, sigma: np.ndarray, label: str, colour: tuple[float, ...]) -> None:
    """sigma_i / sigma_1 against i on a log scale: median over seeds, the quartiles as a band. sigma: [seeds, k]."""
    share = sigma / sigma[:, :1]
    low, middle, high = np.quantile(share, (0.25, 0.5, 0.75), axis=0)
    index = np.arange(1, sigma.shape[1] + 1)
    axes.plot(index, middle, color=colour, label=label, marker="o", markersize=3)
    axes.fill_between(index, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set(yscale="log", xlabel="index i", ylabel="$\\sigma_i / \\sigma_1$ at the end")


TRAIN_ACCURACY = Column("train accuracy", evaluated("train_accuracy", scale=100.0), form=".1f")
LOSS = Column("loss", evaluated("loss"))
RANK = rank_column("rank", "rank")
START_RANK = rank_column("rank at start", "start_rank")
EFFECTIVE_RANK = Column("effective rank", evaluated("effective_rank"))
START_EFFECTIVE_RANK = Column("effective rank at start", evaluated("start_effective_rank"))
ETF = Column("distance to collapse", evaluated("etf"))
STEPS = Column("steps", evaluated("steps"), form=".0f")
