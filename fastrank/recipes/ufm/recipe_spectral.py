"""ufm-spectral: singular values repel early under spectral initialisation, by an exact ODE (Garrod et al. 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastrank.recipes.effects import Effect, of_values
from fastrank.recipes.figures import colours, panels
from fastrank.recipes.recipe import Column, Job, Recipe, Scale, Study, evaluated
from fastrank.recipes.ufm import bases, initialise
from fastrank.recipes.ufm.flow import flow
from fastrank.recipes.ufm.model import DeepUFM
from fastrank.recipes.ufm.reduced import amplification, reduced_flow, turning_point
from fastrank.recipes.ufm.runs import EFFECTIVE_RANK, LOSS, RANK, TRAIN_ACCURACY, batches, write
from fastrank.recipes.ufm.trajectory import log_times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: "Early" is until the mean singular value is 1: before softmax saturates, and reached at every depth.
EARLY = 1.0
#: Largest |sigma - sigma of the ODE| / sigma_1 that counts as the same: the integrators' tolerances leave 1e-8.
SAME = 1e-6


def _settings(
    depths: Sequence[int], classes: int, start: float, spread: float, end: float
) -> dict[str, dict[str, Any]]:
    common = {"classes": classes, "width": classes + 4, "start": start, "spread": spread, "end": end}
    return {f"L={L}": {"depth": L, **common} for L in depths}


def run(jobs: Sequence[Job], device: torch.device) -> None:
    for batch in batches(jobs):
        s = batch[0].settings
        model, U = DeepUFM(s["classes"], s["depth"], s["width"]), bases.walsh(s["classes"])
        generators = [torch.Generator().manual_seed(job.seed) for job in batch]
        normal = torch.stack([torch.randn(U.shape[1], generator=g, dtype=torch.float64) for g in generators])
        values = s["start"] * torch.exp(s["spread"] * normal)
        times = log_times(s["end"], 20, 0.01)
        weights = [W.to(device) for W in initialise.spectral(model, U, values, seed=0)]
        full = flow(weights, model, times, rtol=1e-9, atol=1e-12)
        alone = reduced_flow(values, U, model.depth, times)
        k = U.shape[1]
        ordered = alone.sort(-1, descending=True).values
        gaps = ((full["sigma"][..., :k].cpu() - ordered).abs() / ordered[..., :1]).amax((0, 2))
        spread = alone.log().std(-1, correction=0)  # [T, B]
        early = [int((alone[:, i].mean(-1) <= EARLY).sum()) - 1 for i in range(len(batch))]

        def more(
            i: int, gaps=gaps, spread=spread, early=early, alone=alone, L=model.depth, s=s, times=times, ordered=ordered
        ) -> dict[str, Any]:
            first, last = alone[0, i].mean().item(), alone[early[i], i].mean().item()
            return {
                "ode_gap": float(gaps[i]), "early_time": float(times[early[i]]),
                "early_spread": float(spread[early[i], i] - spread[0, i]),
                "early_factor": float(spread[early[i], i] / spread[0, i]),
                "first_order_factor": float(amplification(last, first, s["classes"], L)),
                "early_difference": float(alone[early[i], i].std() / alone[0, i].std()),
                "ode": ordered[:, i].tolist(),
            }  # fmt: skip

        write(batch, full, more)


def effects(study: Study) -> list[Effect]:
    found = []
    for label in study.labels:
        L, spoiled = study.settings(label)["depth"], study.untrained(label)
        gap, spread = (study.values(label, name) for name in ("gap to the ODE", "early spread"))
        found.append(of_values(f"{label}: log10 of the gap to the ODE", "<", np.log10(gap), null=float(np.log10(SAME)),
                               spoiled=spoiled))  # fmt: skip
        found.append(of_values(f"{label}: early change of the spread of log sigma", ">" if L > 2 else "<", spread,
                               spoiled=spoiled))  # fmt: skip
        if L > 1:
            found.append(of_values(f"{label}: early growth of the standard deviation of sigma", ">",
                                   study.values(label, "early difference"), null=1.0, counts=False))  # fmt: skip
    last = study.labels[-1]
    below = study.values(last, "rank") - (study.settings(last)["classes"] - 1)
    found.append(of_values(f"{last}: rank minus C - 1", "<", below, half_widths=study.half_widths(last, "rank")))
    return found


def draw(study: Study) -> Figure:
    figure, axes = panels(1, len(study.labels), (3.3, 3.2), sharey=True)
    for place, label in enumerate(study.labels):
        ax, run = axes[0, place], study.of(label)[0]
        times = run.series("logits/time")[1]
        sigma = run.spectra["logits/sigma"][1]
        ode = np.array(run.evaluation["ode"])
        k = ode.shape[1]
        for index, colour in enumerate(colours(k)):
            ax.plot(times[1:], sigma[1:, index], color=colour, linewidth=2.5, alpha=0.7)
        ax.plot(times[1:], ode[1:], color="black", linewidth=0.7, linestyle="--")
        spread = np.log(ode).std(1)
        growing = np.append(np.diff(spread) > 0, False)
        whole = ax.get_xaxis_transform()
        ax.fill_between(times[1:], 0, 1, where=growing[1:], transform=whole, color="tab:red", alpha=0.12, linewidth=0)
        turn = turning_point(k + 1, study.settings(label)["depth"])
        if turn > 0:
            ax.axhline(turn, color="tab:red", linewidth=0.8, linestyle=":")
        ax.set(xscale="log", yscale="log", xlabel="time", title=label)
    axes[0, 0].set_ylabel("singular values of Z")
    figure.suptitle(
        "lines: flow of the layers; dashes: ODE; red: relative repulsion, dotted at $C (1 - 2/L)$", fontsize=9
    )
    return figure


RECIPE = Recipe(
    name="ufm-spectral",
    claim="Under spectral initialisation the singular values follow an ODE of their own; in deep models they repel "
    "each other early, and low rank emerges.",
    source="Garrod, Keating & Thrampoulidis 2026 (arXiv 2605.23087), abstract; the ODE: DevNotes.md beside the code",
    rule="Flow of the layers and the ODE agree to 1e-6 of sigma_1 at all times; until the mean singular value is 1 the "
    "spread of log sigma grows for L > 2 and shrinks for L <= 2, as first-order theory has it; the deepest model ends "
    "with rank below C - 1.",
    scales={
        "smoke": Scale(_settings((1, 4), 4, 0.05, 0.3, 100.0), 3, "seconds"),
        "quick": Scale(_settings((1, 2, 3, 5, 8), 8, 0.05, 0.3, 3e3), 10, "about a minute"),
        "full": Scale(_settings((1, 2, 3, 4, 5, 8, 12), 16, 0.01, 0.3, 1e5), 50, "about an hour on two cores"),
    },
    columns=(
        TRAIN_ACCURACY,
        LOSS,
        RANK,
        EFFECTIVE_RANK,
        Column("gap to the ODE", evaluated("ode_gap"), form=".1e"),
        Column("early spread", evaluated("early_spread"), form="+.3f"),
        Column("factor", evaluated("early_factor")),
        Column("first-order factor", evaluated("first_order_factor")),
        Column("early difference", evaluated("early_difference")),
    ),
    run=run,
    effects=effects,
    draw=draw,
)
