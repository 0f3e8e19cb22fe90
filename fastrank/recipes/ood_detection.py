"""ood-detection: high T improves NECO's detection at the cost of generalisation out of distribution.

Masarczyk et al. 2025, Table 2 and Fig. 23 (OOD accuracy of the last layer's probe against detection). The networks are
those of temperature-sweep; at full scale those of Table 2, whose runs lie beside temperature-sweep's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrank.recipes import temperature_sweep
from fastrank.recipes.effects import Effect, correlation, difference
from fastrank.recipes.evaluating import (
    AUROC,
    FPR95,
    detection,
    evaluate_jobs,
    first_ood,
    on_other_sets,
    ood_figures,
    ood_names,
    ood_probe_accuracies,
    set_notes,
)
from fastrank.recipes.figures import colours, panels
from fastrank.recipes.recipe import Column, Recipe, Scale, Study
from fastrank.recipes.temperature_sweep import settings_of
from fastrank.recipes.training import SOLUTION_RANK, TRAIN_ACCURACY, paper_resnet
from fastrank.record import Run
from fastrank.train.presets import PRESETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def last_probe(run: Run) -> float:
    """Accuracy of the last layer's probe on the out-of-distribution set, in per cent."""
    accuracies = list(ood_probe_accuracies(run).values())
    return 100 * accuracies[-1] if accuracies else math.nan


DIRECTIONS = Column("NECO directions", lambda run: float(ood_figures(run).get("neco_dim", math.nan)), form=".1f")
LAST_PROBE = Column("OOD accuracy, last layer", last_probe, form=".1f")


def ends(study: Study) -> list[tuple[str, str]]:
    """(label of T = 1, label of the highest T) of every network that was trained: "T=1" or "ViT-B on CIFAR-10, T=1"."""
    found: dict[str, list[str]] = {}
    for label in study.labels:
        found.setdefault(label.rpartition("T=")[0], []).append(label)
    return [(labels[0], labels[-1]) for labels in found.values()]


def effects(study: Study) -> list[Effect]:
    found, shown = [], []
    for first, last in ends(study):
        found += [
            difference(study, AUROC.name, last, first, ">"),
            difference(study, FPR95.name, last, first, "<"),
            difference(study, LAST_PROBE.name, last, first, "<"),
        ]
        name = first.rpartition("T=")[0]
        labels = [label for label in study.labels if label.rpartition("T=")[0] == name]
        x, y = (
            np.concatenate([study.values(label, column.name) for label in labels]) for column in (AUROC, LAST_PROBE)
        )
        # Points of one temperature are not independent of each other: shown, not judged.
        shown.append(correlation(f"{name}OOD accuracy with NECO AUROC over all networks", "<", x, y, counts=False))
        for what, figure, claimed in (("NECO AUROC", "auroc", ">"), ("NECO FPR95", "fpr95_id_positive", "<")):
            shown += on_other_sets(
                study, what, lambda run, place, figure=figure: 100 * detection(run, figure, place=place), claimed,
                (first, last),
            )  # fmt: skip
    return found + shown


def notes(study: Study) -> list[str]:
    found = set_notes(study)
    if any(study.settings(label)["train"]["model"].startswith("vit") for label in study.labels):
        found.append("NECO of a vision transformer is multiplied by the largest logit, as its authors do.")
    for first, last in ends(study) if "digits" in ood_names(study) else ():
        sizes = [study.values(label, DIRECTIONS).mean() for label in (first, last)]
        found.append(
            f"NECO's subspace, 90 % of the variance, has {sizes[0]:.0f} directions at {first} and {sizes[1]:.0f} at "
            f"{last}. A glyph in another style lies in the few directions that are left as the training data does, "
            "noise does not: a likely reason where the one is detected worse and the other better."
        )
    return found


def draw(study: Study) -> Figure:
    """As Fig. 23: one dot a network; one panel for each architecture and data set."""
    found = ends(study)
    figure, axes = panels(-(-len(found) // 2), min(2, len(found)), (4.6, 3.4))
    for place, (first, _) in zip(axes.flat, found, strict=False):
        name = first.rpartition("T=")[0]
        labels = [label for label in study.labels if label.rpartition("T=")[0] == name]
        for label, colour in zip(labels, colours(len(labels)), strict=True):
            x, y = study.values(label, AUROC.name), study.values(label, LAST_PROBE.name)
            place.plot(x, y, "o", color=colour, label=label.removeprefix(name))
        title = f"{name}OOD: {first_ood(study, first)}"
        place.set(xlabel="NECO AUROC", ylabel="OOD accuracy of the last layer's probe", title=title)
        place.legend(fontsize=8)
    return figure


def table_2(T: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Both directions of Table 2, three networks each. The paper names no T for them: 100, as in Table 7."""
    networks = {
        "ResNet-18": paper_resnet("resnet18_cifar", ""),
        "ResNet-34": paper_resnet("resnet34_cifar", ""),
        "ViT-B": PRESETS["paper-vit"],
    }
    found = {}
    for name, other in (("CIFAR-100", "CIFAR-10"), ("CIFAR-10", "CIFAR-100")):
        folder, ood = ("folder:{data}/" + one.lower().replace("-", "") for one in (name, other))
        for network, train in networks.items():
            settings = settings_of({**train, "data": folder}, T, (ood, "folder:{data}/svhn"), ("adam", "ridge"))
            found |= {f"{network} on {name}, {label}": fields for label, fields in settings.items()}
    return found


RECIPE = Recipe(
    name="ood-detection",
    claim="High temperature improves out-of-distribution detection by NECO, at the cost of generalisation out of "
    "distribution in the last layers.",
    source="Masarczyk et al. 2025, Table 2, Fig. 23",
    rule="At the highest temperature, against T = 1: NECO's AUROC is higher, its false positive rate at 95 % of the "
    "in-distribution samples kept is lower, and the last layer's probe is less accurate on the OOD set; where several "
    "networks are trained (--full), for each of them.",
    revised="Three seeds had left all three effects open; five were then fixed, and run (see temperature-sweep).",
    scales={
        **{name: scale for name, scale in temperature_sweep.RECIPE.scales.items() if name != "full"},
        "full": Scale(
            table_2((1, 100)), 3,
            "36 trainings: ResNet-18, ResNet-34 (164 epochs) and ViT-B (pretrained, 10,000 steps) on CIFAR-100 and on "
            "CIFAR-10, each the other's OOD set",
        ),
    },
    columns=(
        TRAIN_ACCURACY,
        SOLUTION_RANK,
        AUROC,
        FPR95,
        Column("NECO FPR95, OOD as positive", lambda run: 100 * detection(run, "fpr95_ood_positive"), form=".1f"),
        Column("max-softmax AUROC", lambda run: 100 * detection(run, "auroc", "max_softmax"), form=".1f"),
        LAST_PROBE,
        DIRECTIONS,
    ),
    run=evaluate_jobs,
    effects=effects,
    draw=draw,
    notes=notes,
    shares="temperature-sweep",
)  # fmt: skip
