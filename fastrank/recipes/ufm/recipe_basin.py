"""ufm-basin: the basin of attraction of neural collapse shrinks with depth (Garrod et al. 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastrank.recipes.effects import Effect, correlation, difference, slope
from fastrank.recipes.figures import panels
from fastrank.recipes.recipe import Column, Job, Recipe, Scale, Study, evaluated
from fastrank.recipes.training import recipe_facts
from fastrank.recipes.ufm import initialise
from fastrank.recipes.ufm.descent import descend
from fastrank.recipes.ufm.model import DeepUFM
from fastrank.recipes.ufm.reduced import amplification, turning_point
from fastrank.recipes.ufm.runs import LOSS, TRAIN_ACCURACY, batches
from fastrank.record import RunWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def collapsed_below(classes: int) -> float:
    """The distance to collapse (`etf`) that no matrix of rank C - 2 can have: (2 - 2 sqrt((C - 2) / (C - 1)))^(1/2).

    Unit-norm matrices at inner product c with the simplex's are (2 - 2c)^(1/2) away, and c is at most the norm of the
    simplex's C - 2 largest singular values, which are all equal.
    """
    return math.sqrt(2 - 2 * math.sqrt((classes - 2) / (classes - 1)))


def predicted_radius(classes: int, depth: int, start: float) -> float:
    """First-order theory: the relative perturbation that grows to `collapsed_below` at the peak of its amplification.

    Half of a random perturbation's squared norm is its antisymmetric part, which never grows.
    """
    peak = max(turning_point(classes, depth), start)
    return math.sqrt(2) * collapsed_below(classes) / float(amplification(peak, start, classes, depth))


def _settings(
    depths: Sequence[int], classes: int, points: int, steps_scale: float, loss: float
) -> dict[str, dict[str, Any]]:
    return {
        f"L={L}": {"classes": classes, "depth": L, "start": 0.1, "points": points, "smallest": 1e-3, "largest": 2.0,
                   "lr": steps_scale / L if L > 1 else 10.0, "steps": 20_000, "loss_below": loss}
        for L in depths
    }  # fmt: skip


def perturbations(settings) -> torch.Tensor:
    """[points] float64, relative to the norm of the collapsed start."""
    low, high = math.log10(settings["smallest"]), math.log10(settings["largest"])
    return torch.logspace(low, high, settings["points"], dtype=torch.float64)


def run(jobs: Sequence[Job], device: torch.device) -> None:
    """All seeds and perturbations of a depth are one batch.

    The start is s (I - 1 1^T / C) plus a random matrix, in balanced layers. Their C-dimensional inner spaces are no
    restriction: balanced layers of any larger width are these and zeros, and zeros stay.
    """
    for batch in batches(jobs):
        s = batch[0].settings
        model, eps = DeepUFM(s["classes"], s["depth"], s["classes"]), perturbations(s)
        count = len(eps) * len(batch)
        simplex = torch.eye(model.classes, dtype=torch.float64) - 1 / model.classes
        like = [torch.zeros(count, *shape, dtype=torch.float64) for shape in model.shapes]
        start = initialise.balanced((s["start"] * simplex).expand(count, -1, -1), like)
        # A seed's direction is the same at every size.
        seeds = [job.seed for job in batch for _ in eps]
        weights = initialise.perturbed(start, eps.repeat(len(batch)), seeds)
        weights = [W.float().to(device) for W in weights]
        found = descend(weights, model, s["lr"], s["steps"], loss_below=s["loss_below"], collapse=False)
        last = {name: found[name][-1].view(len(batch), -1).cpu() for name in ("etf", "loss", "accuracy")}
        rank = found.rank(0.1)[0][-1].view(len(batch), -1).cpu()
        diverged = found.diverged.view(len(batch), -1).cpu()
        for i, job in enumerate(batch):
            inside = last["etf"][i] < collapsed_below(model.classes)  # NaN is not
            first_out = int(inside.long().cumprod(0).sum())
            with RunWriter(job.path, recipe_facts(job), resume=(job.path / "run.db").is_file()) as writer:
                writer.truncate(-1)
                arrays = {"basin/perturbation": eps, "basin/etf": last["etf"][i], "basin/rank": rank[i],
                          "basin/loss": last["loss"][i]}  # fmt: skip
                writer.log_step(0, {"basin/diverged": float(diverged[i].sum())}, arrays)
                writer.set_evaluation({
                    "log_radius": _log_radius(eps, first_out), "collapsed_share": float(inside.double().mean()),
                    "train_accuracy": float(last["accuracy"][i].nan_to_num(0.0).min()),
                    "loss": float(last["loss"][i].max()),
                    "rank_at_largest": float(rank[i, -1]),
                })  # fmt: skip


def _log_radius(eps: torch.Tensor, first_out: int) -> float:
    """log10 of the boundary, halfway between the last perturbation up to which all collapse and the next one on the log
    scale; at the grid's end where it lies beyond."""
    at = eps.log10()
    if first_out in (0, len(eps)):
        return float(at[0] if first_out == 0 else at[-1])
    return float((at[first_out - 1] + at[first_out]) / 2)


def effects(study: Study) -> list[Effect]:
    deep = [label for label in study.labels if study.settings(label)["depth"] > 1]
    depths = np.log10([study.settings(label)["depth"] for label in deep])
    measured = np.array([study.values(label, "log10 radius").mean() for label in deep])
    predicted = [_prediction(study, label) for label in deep]
    return [
        slope(study, "log10 radius", depths, deep, "<", "decade of depth"),
        difference(study, "log10 radius", deep[-1], deep[0], "<"),
        correlation(
            "log10 radius, measured against first-order theory, over depths", ">", predicted, measured, counts=False
        ),
    ]


def _prediction(study: Study, label: str) -> float:
    s = study.settings(label)
    return math.log10(predicted_radius(s["classes"], s["depth"], s["start"]))


def draw(study: Study) -> Figure:
    figure, axes = panels(1, 2, (5.0, 3.8))
    depths = np.array([study.settings(label)["depth"] for label in study.labels])
    eps = study.of(study.labels[0])[0].spectra["basin/perturbation"][1][0]
    classes = study.settings(study.labels[0])["classes"]
    for ax, key, title, limits, shown in (
        (axes[0, 0], "etf", "share of seeds that stay near collapse", (0, 1), "viridis"),
        (axes[0, 1], "rank", "rank of the logits, mean over seeds", (1, classes - 1), "magma"),
    ):
        values = np.stack(
            [np.stack([run.spectra[f"basin/{key}"][1][0] for run in study.of(label)]) for label in study.labels]
        )
        share = (values < collapsed_below(classes)) if key == "etf" else values
        image = ax.pcolormesh(
            depths,
            eps,
            np.nanmean(share.astype(float), 1).T,
            shading="nearest",
            vmin=limits[0],
            vmax=limits[1],
            cmap=shown,
        )
        predicted = [10 ** _prediction(study, label) for label in study.labels]
        ax.plot(
            depths[depths > 1],
            np.array(predicted)[depths > 1],
            color="tab:red",
            linewidth=1.5,
            label="first-order theory",
        )
        ax.set(yscale="log", xlabel="depth L", ylabel="relative perturbation of the collapsed start", title=title)
        ax.set_ylim(eps[0], eps[-1])
        figure.colorbar(image, ax=ax)
    axes[0, 0].legend(fontsize=8, loc="upper right")
    return figure


def notes(study: Study) -> list[str]:
    diverged = int(sum(run.series("basin/diverged")[1][-1] for label in study.labels for run in study.of(label)))
    loss = study.settings(study.labels[0])["loss_below"]
    return [
        f"Judged at a loss of {loss:g}. Past s = C (1 - 2/L) deviations shrink again, as exp(-s / C) with s "
        "of the order of the log of time: a run somewhat off there may still collapse in a limit nobody waits for.",
        f"{diverged} runs diverged; each counts as not collapsed.",
    ]


RECIPE = Recipe(
    name="ufm-basin",
    claim="Depth shrinks the basin of attraction of neural collapse.",
    source="Garrod, Keating & Thrampoulidis 2026 (arXiv 2605.23087), abstract",
    rule="From a collapsed start with a random perturbation of relative size eps, a run stays near collapse where it "
    "ends closer to the simplex than any matrix of rank C - 2 can be. The log10 of the largest eps up to which all do "
    "falls per decade of depth, and is smaller at the largest depth than at L = 2.",
    scales={
        "smoke": Scale(_settings((1, 2, 4, 8), 5, 8, 1.0, 0.02), 2, "seconds"),
        "quick": Scale(_settings(range(1, 41), 10, 40, 0.3, 1e-3), 10, "about 6 minutes"),
        "full": Scale(_settings(range(1, 81), 10, 80, 0.1, 1e-5), 100, "for a GPU"),
    },
    columns=(
        TRAIN_ACCURACY,
        LOSS,
        Column("log10 radius", evaluated("log_radius"), form="+.3f"),
        Column("share that collapses", evaluated("collapsed_share")),
        Column("rank at the largest perturbation", evaluated("rank_at_largest")),
    ),
    run=run,
    effects=effects,
    draw=draw,
    notes=notes,
)
