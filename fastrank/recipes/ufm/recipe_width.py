"""ufm-width: from random layers, width biases to higher rank (Garrod et al. 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrank.recipes.effects import Effect, difference, slope
from fastrank.recipes.figures import colours, line, panels
from fastrank.recipes.recipe import Recipe, Scale, Study
from fastrank.recipes.ufm.runs import (
    EFFECTIVE_RANK,
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


def _settings(classes: int, depth: int, widths: Sequence[int], loss: float) -> dict[str, dict[str, Any]]:
    return {
        f"d={d}": {"classes": classes, "depth": depth, "width": d, "start": "layers", "scale": 1.0, "lr": 1.0 / depth,
                   "steps": 20_000, "loss_below": loss}
        for d in widths
    }  # fmt: skip


def _doublings(study: Study) -> list[float]:
    return [float(np.log2(study.settings(label)["width"])) for label in study.labels]


def effects(study: Study) -> list[Effect]:
    first, last = study.labels[0], study.labels[-1]
    return [
        slope(study, "rank", _doublings(study), study.labels, ">", "doubling of the width"),
        difference(study, "rank", last, first, ">"),
        # What the effect hangs on: the product of wider Gaussian layers has a flatter spectrum before any step.
        slope(
            study,
            "effective rank at start",
            _doublings(study),
            study.labels,
            ">",
            "doubling of the width",
            counts=False,
        ),
    ]


def draw(study: Study) -> Figure:
    figure, axes = panels(1, 2, (4.4, 3.4))
    widths = [study.settings(label)["width"] for label in study.labels]
    for name, style in (("rank", "-"), ("effective rank", "-"), ("effective rank at start", ":")):
        values = np.stack([study.values(label, name) for label in study.labels], 1)
        line(axes[0, 0], widths, values, name, linestyle=style, marker="o", markersize=3)
    settings = study.settings(study.labels[0])
    classes = settings["classes"]
    axes[0, 0].axhline(classes - 1, color="grey", linewidth=0.8)
    axes[0, 0].set(xscale="log", xlabel="width d", ylabel="of the logits at equal loss", ylim=(0, None))
    axes[0, 0].set_xticks(widths, [str(d) for d in widths], minor=False)
    axes[0, 0].minorticks_off()
    axes[0, 0].set_title(f"L = {settings['depth']}, C = {classes}", fontsize=9)
    axes[0, 0].legend(fontsize=7)
    for label, d, colour in zip(study.labels, widths, colours(len(widths)), strict=True):
        sigma = np.stack([run.spectra["logits/sigma"][1][-1] for run in study.of(label)])
        draw_sigma(axes[0, 1], sigma[:, : classes - 1], f"d={d}", colour)
    axes[0, 1].axhline(0.1, color="grey", linewidth=0.8)
    axes[0, 1].legend(fontsize=7)
    return figure


RECIPE = Recipe(
    name="ufm-width",
    claim="From randomly initialised layers, more width biases training to logits of higher rank, against depth.",
    source="Garrod, Keating & Thrampoulidis 2026 (arXiv 2605.23087), abstract",
    rule="At equal loss and depth the rank (singular values above a tenth of the largest) rises per doubling of the "
    "width, and is higher at the largest width than at the smallest.",
    scales={
        "smoke": Scale(_settings(5, 6, (5, 32), 0.02), 4, "seconds"),
        "quick": Scale(_settings(10, 6, (10, 16, 32, 64, 128), 1e-3), 20, "about a minute"),
        "full": Scale(_settings(10, 6, (10, 16, 32, 64, 128, 256, 512), 1e-5), 100, "about two hours on two cores"),
    },
    columns=(TRAIN_ACCURACY, LOSS, RANK, EFFECTIVE_RANK, START_EFFECTIVE_RANK, STEPS),
    run=simulate,
    effects=effects,
    draw=draw,
)
