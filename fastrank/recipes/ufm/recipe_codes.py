"""ufm-codes: the low-rank solutions approach softmax codes (Garrod et al. 2026; Jiang et al. 2024)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastrank.evaluation.softmax_codes import one_vs_rest_margin
from fastrank.recipes.effects import Effect, of_values
from fastrank.recipes.figures import colours, line, panels
from fastrank.recipes.recipe import Column, Job, Recipe, Scale, Study, evaluated
from fastrank.recipes.ufm.codes import softmax_code
from fastrank.recipes.ufm.flow import flow
from fastrank.recipes.ufm.limit import follow
from fastrank.recipes.ufm.measure import measure
from fastrank.recipes.ufm.model import DeepUFM, logits
from fastrank.recipes.ufm.norm_propagation import favoured, margin_at_unit_layers
from fastrank.recipes.ufm.runs import LOSS, RANK, RTOL, TRAIN_ACCURACY, batches, same_product, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Margins beyond the flow's last at which shares are taken, over a decade.
BEYOND = 5
#: The share of the best margin from which a solution counts as near its code.
NEAR = 0.9


def _settings(depths: Sequence[int], classes: int, decades: int, margin: float) -> dict[str, dict[str, Any]]:
    """margin: at which the path ends."""
    common = {"classes": classes, "scale": 0.3, "decades": decades, "starts": 16, "margin": margin}
    return {f"L={L}": {**common, "depth": L} for L in depths}


def learned_margin(classifier: Tensor, rank: int) -> float:
    """GNC2 of the last layer [d, C] in its `rank` largest directions, centred over classes, as softmax sees it.

    Only there: the classifier of depth L has singular values s^(1/L), and those that the features hardly use look large
    among them. NaN where a row vanishes, or is not finite.
    """
    if not bool(classifier.isfinite().all()):
        return float("nan")
    _, s, Vh = torch.linalg.svd(classifier - classifier.mean(1, keepdim=True), full_matrices=False)
    W = Vh[:rank].T * s[:rank]
    return one_vs_rest_margin(W).margin if bool((W.norm(dim=1) > 0).all()) else float("nan")


def run(jobs: Sequence[Job], device: torch.device) -> None:
    """Flow in pieces, a decade of time each; then its path, for what is left to do takes exponentially long."""
    codes: dict[tuple[int, int], float] = {}
    for batch in batches(jobs):
        s = batch[0].settings
        C = s["classes"]
        model = DeepUFM(C, s["depth"], C)  # balanced: wider layers would be these and zeros
        weights = [W.to(device) for W in same_product(model, [job.seed for job in batch], s["scale"])]
        times, held, pieces = [0.0], [weights[-1].cpu()], []
        for time in [10.0**k for k in range(1, s["decades"] + 1)]:
            pieces.append(flow(weights, model, [0.0, time - times[-1]], rtol=1e-6, atol=1e-9))
            weights = pieces[-1].weights
            times.append(time)
            held.append(weights[-1].cpu())
        found = pieces[-1]
        found.times = torch.tensor(times, dtype=torch.float64)
        names = pieces[0].figures
        found.figures = {
            name: torch.stack([pieces[0][name][0], *(piece[name][-1] for piece in pieces)]).cpu() for name in names
        }
        beyond = []
        for margin in np.geomspace(s["margin"] / 10, s["margin"], BEYOND):
            weights, failed = follow(weights, model, float(margin))
            beyond.append(weights[-1].cpu().where(~failed.cpu()[:, None, None], torch.nan))
        Z = logits(weights).cpu()
        sigma = torch.linalg.svdvals(Z)
        # At the end of time small singular values may still be on their way down or up.
        ranks = [max(1, int(rank)) for rank in (sigma > RTOL * sigma[:, :1]).sum(1)]
        for rank in set(ranks):
            if (C, rank) not in codes:
                codes[C, rank] = softmax_code(C, rank, s["starts"]).margin
        margins = [[learned_margin(W[i], rank) for W in (*held, *beyond)] for i, rank in enumerate(ranks)]
        unit = margin_at_unit_layers(Z, model.labels, model.depth)
        reached = measure(weights, model, collapse=False)["margin"]

        def more(i: int, C=C, ranks=ranks, margins=margins, unit=unit, reached=reached) -> dict[str, Any]:
            best = codes[C, ranks[i]]
            shares = [m / best if best > 0 else float("nan") for m in margins[i]]
            return {"learned_margin": margins[i][-1], "best_margin": best, "share": shares[-1],
                    "early_share": shares[2], "late_share": shares[-BEYOND - 1], "shares": shares,
                    "last_rank": ranks[i], "last_margin": float(reached[i]), "unit_margin": float(unit[i])}  # fmt: skip

        write(batch, found, more)


def effects(study: Study) -> list[Effect]:
    found = []
    for label in study.labels:
        spoiled = study.untrained(label)
        share = study.values(label, "share of best")
        found.append(of_values(f"{label}: share of the best margin, end minus t = 100", ">",
                               share - study.values(label, "share at t = 100"), spoiled=spoiled))  # fmt: skip
        found.append(of_values(f"{label}: share of the best margin at the end", ">", share, null=NEAR, spoiled=spoiled))
    return found


@functools.cache
def _codes(classes: int) -> dict[int, Any]:
    return {rank: softmax_code(classes, rank, 8) for rank in range(2, classes)}


def draw(study: Study) -> Figure:
    figure, axes = panels(1, 3, (4.2, 3.5))
    classes = study.settings(study.labels[0])["classes"]
    codes = _codes(classes)
    axes[0, 0].plot(
        list(codes), [code.margin for code in codes.values()], "k_-", markersize=14, label="best code found"
    )
    axes[0, 0].plot(list(codes), [code.bound for code in codes.values()], "x", color="tab:red", label="proven bound")
    shades = colours(len(study.labels))
    depths = [study.settings(label)["depth"] for label in study.labels]
    for place, (label, colour) in enumerate(zip(study.labels, shades, strict=True)):
        rank, margin = study.values(label, "rank at the end"), study.values(label, "margin")
        shift = 0.06 * (place - (len(shades) - 1) / 2)
        axes[0, 0].plot(rank + shift, margin, "o", color=colour, markersize=4, alpha=0.7, label=label)
        reached = [run.series("logits/margin")[1][1:] for run in study.of(label)]
        end = study.settings(label)["margin"]
        x = [*np.median(reached, 0), *np.geomspace(end / 10, end, BEYOND)]
        shares = np.array([run.evaluation["shares"] for run in study.of(label)])
        line(axes[0, 1], x, shares[:, 1:], label, color=colour)
    axes[0, 0].set_xticks(list(codes))
    axes[0, 2].set_xticks(list(codes))
    axes[0, 0].set(xlabel="rank", ylabel="one-vs-rest margin", title="learned classifiers and softmax codes")
    axes[0, 0].legend(fontsize=7)
    axes[0, 1].axhline(NEAR, color="grey", linewidth=0.8)
    axes[0, 1].set(xscale="log", xlabel="margin", ylabel="one-vs-rest margin / best at its rank", ylim=(None, 1.02))
    labels = torch.arange(classes)
    for depth, colour in zip(depths, shades, strict=True):
        values = np.array([float(margin_at_unit_layers(code.logits[None], labels, depth)) for code in codes.values()])
        axes[0, 2].plot(list(codes), values / values[-1], color=colour, marker=".", label=f"L={depth}")
        best = favoured({rank: code.logits for rank, code in codes.items()}, depth)
        axes[0, 2].plot(best, values[best - 2] / values[-1], "*", color=colour, markersize=12)
    axes[0, 2].axhline(1, color="grey", linewidth=0.8)
    axes[0, 2].set(yscale="log", xlabel="rank of the code", ylabel="margin at unit layer norms / simplex's",
                   title="what a chain makes of its norm")  # fmt: skip
    axes[0, 2].legend(fontsize=7)
    return figure


def notes(study: Study) -> list[str]:
    first = study.settings(study.labels[0])
    classes = first["classes"]
    codes = {rank: code.logits for rank, code in _codes(classes).items()}
    end = f"1e{first['decades']}"
    margin = f"{first['margin']:g}"
    found = [
        f"Margins grow with the logarithm of time. From time {end} on the flow's path is followed without it, to "
        f"a margin of {margin}, which the flow has at a time of about e^{margin}. The claim is about the limit."
    ]
    for label in study.labels:
        best = favoured(codes, study.settings(label)["depth"])
        rank = study.values(label, "rank at the end").mean()
        found.append(f"{label}: the code of rank {best} has the largest margin at unit layer norms; "
                     f"the runs ended at rank {rank:.2g} on average.")  # fmt: skip
        shares = np.array([run.evaluation["shares"] for run in study.of(label)])
        found.append(f"{label}: over the last half decade of margins the share of the best still changed by "
                     f"{np.nanmean(shares[:, -1] - shares[:, -1 - BEYOND // 2]):+.2g}.")  # fmt: skip
    return found


RECIPE = Recipe(
    name="ufm-codes",
    claim="The low-rank solutions approach softmax codes: at their rank, their classifier's one-vs-rest margin tends "
    "to the largest that unit vectors can have.",
    source="Garrod, Keating & Thrampoulidis 2026 (arXiv 2605.23087), abstract; Jiang et al. 2024 (arXiv 2310.05351)",
    rule="At every depth the learned margin's share of the best one at the final rank (singular values above a tenth "
    "of the largest) grows from t = 100 to the end of the flow's path, and is above 0.9 there.",
    revised="The path ended at a margin of 27 at first, where the shares at depth above 2 were still moving; it was "
    "then followed to 1000, and the rule's words changed to that end. Its signs and its 0.9 stayed.",
    scales={
        "smoke": Scale(_settings((2, 4), 4, 4, 30.0), 3, "seconds"),
        "quick": Scale(_settings((2, 3, 4, 6, 8), 6, 12, 1000.0), 10, "about a minute"),
        "full": Scale(_settings((2, 3, 4, 6, 8, 12), 10, 20, 1000.0), 50, "about three hours on two cores"),
    },
    columns=(
        TRAIN_ACCURACY,
        LOSS,
        RANK,
        Column("margin", evaluated("learned_margin")),
        Column("best margin", evaluated("best_margin")),
        Column("rank at the end", evaluated("last_rank")),
        Column("share at t = 100", evaluated("early_share")),
        Column("share at the last time", evaluated("late_share")),
        Column("share of best", evaluated("share")),
        Column("margin at unit layers", evaluated("unit_margin")),
    ),
    run=run,
    effects=effects,
    draw=draw,
    notes=notes,
)
