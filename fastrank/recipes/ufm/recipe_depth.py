"""ufm-depth: depth alone biases gradient descent to low rank (Garrod et al. 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrank.recipes.effects import Effect, of_values, slope
from fastrank.recipes.figures import colours, line, panels
from fastrank.recipes.recipe import Recipe, Scale, Study
from fastrank.recipes.ufm.runs import (
    EFFECTIVE_RANK,
    ETF,
    LOSS,
    RANK,
    START_EFFECTIVE_RANK,
    STEPS,
    TRAIN_ACCURACY,
    draw_sigma,
    simulate,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: "product": every depth starts from the same small random Z, so that nothing but depth differs. "layers": every layer
#: is Gaussian, as networks are initialised, where the start's own spectrum already spreads with depth.
STARTS = {"product": 0.3, "layers": 1.0}


def _settings(classes: int, width: int, depths: Sequence[int], loss: float) -> dict[str, dict[str, Any]]:
    return {
        f"L={L}, {start}": {
            "classes": classes, "depth": L, "width": width, "start": start, "scale": scale,
            # Curvature grows with depth; one layer alone is convex and takes larger steps.
            "lr": 1.0 / L if L > 1 else 10.0, "steps": 20_000, "loss_below": loss,
        }
        for start, scale in STARTS.items() for L in depths
    }  # fmt: skip


def _of(study: Study, start: str) -> tuple[list[str], list[int]]:
    labels = [label for label in study.labels if study.settings(label)["start"] == start]
    return labels, [study.settings(label)["depth"] for label in labels]


def effects(study: Study) -> list[Effect]:
    found = []
    for start in STARTS:
        labels, depths = _of(study, start)
        found.append(slope(study, "rank", depths, labels, "<", "layer"))
        full = study.settings(labels[-1])["classes"] - 1
        below = study.values(labels[-1], "rank") - full
        found.append(of_values(f"{labels[-1]}: rank minus C - 1", "<", below, spoiled=study.untrained(labels[-1]),
                               half_widths=study.half_widths(labels[-1], "rank")))  # fmt: skip
    flat = _of(study, "product")[0][0]
    found.append(of_values(f"{flat}: distance to collapse", "<", study.values(flat, "distance to collapse"), null=0.1))
    return found


def draw(study: Study) -> Figure:
    figure, axes = panels(1, 3, (4.2, 3.4))
    for start, style in zip(STARTS, ("-", "--"), strict=True):
        labels, depths = _of(study, start)
        for name, colour in (("rank", "tab:blue"), ("effective rank", "tab:orange")):
            values = np.stack([study.values(label, name) for label in labels], 1)
            line(
                axes[0, 0], depths, values, f"{name}, {start}", color=colour, linestyle=style, marker="o", markersize=3
            )
    classes = study.settings(study.labels[0])["classes"]
    axes[0, 0].axhline(classes - 1, color="grey", linewidth=0.8)
    axes[0, 0].text(0.98, classes - 1.05, "C - 1", color="grey", fontsize=8, ha="right", va="top",
                    transform=axes[0, 0].get_yaxis_transform())  # fmt: skip
    axes[0, 0].set(xlabel="depth L", ylabel="of the logits at equal loss", ylim=(0, None))
    axes[0, 0].legend(fontsize=7)
    labels, depths = _of(study, "product")
    for label, L, colour in zip(labels, depths, colours(len(labels)), strict=True):
        sigma = np.stack([run.spectra["logits/sigma"][1][-1] for run in study.of(label)])
        draw_sigma(axes[0, 1], sigma[:, : classes - 1], f"L={L}", colour)
        losses = study.of(label)[0].series("logits/loss")[1]
        axes[0, 2].plot(losses, study.of(label)[0].series("logits/effective_rank")[1], color=colour)
    axes[0, 1].set_title("same product at start")
    axes[0, 1].axhline(0.1, color="grey", linewidth=0.8)
    axes[0, 1].legend(fontsize=7)
    axes[0, 2].set(xscale="log", xlabel="loss", ylabel="effective rank", title="on the way, seed 0")
    axes[0, 2].invert_xaxis()
    return figure


RECIPE = Recipe(
    name="ufm-depth",
    claim="Without any regularisation, depth alone biases gradient descent to logits of rank below C - 1; one layer "
    "goes to neural collapse.",
    source="Garrod, Keating & Thrampoulidis 2026 (arXiv 2605.23087), abstract",
    rule="At equal loss the rank (singular values above a tenth of the largest) falls with depth and is below C - 1 at "
    "the largest depth, from the same product at every depth and from Gaussian layers; one layer ends within 0.1 of "
    "neural collapse.",
    scales={
        "smoke": Scale(_settings(5, 8, (1, 3, 6), 0.02), 3, "seconds"),
        "quick": Scale(_settings(10, 32, (1, 2, 3, 4, 5, 6, 8, 10), 1e-3), 20, "about a minute"),
        "full": Scale(_settings(10, 128, (1, 2, 3, 4, 5, 6, 8, 10, 15, 20), 1e-5), 100, "about an hour on two cores"),
    },
    columns=(TRAIN_ACCURACY, LOSS, RANK, EFFECTIVE_RANK, START_EFFECTIVE_RANK, ETF, STEPS),
    run=simulate,
    effects=effects,
    draw=draw,
)
