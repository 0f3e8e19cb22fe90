"""schedule: temperatures that change in training, between the two regimes (a question of Masarczyk et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastrank.recipes.effects import Effect, difference
from fastrank.recipes.figures import colours, line, panels
from fastrank.recipes.recipe import Recipe, Scale, Study
from fastrank.recipes.training import (
    GLYPH_MLP,
    OUTCOME,
    SMOKE_MLP,
    SOLUTION_RANK,
    TEST_ACCURACY,
    paper_resnet,
    train_jobs,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _settings(train: Mapping[str, Any], high: float, norm: float) -> dict[str, dict[str, Any]]:
    """Constant T = 1 and `high`; from high to 1 and back; T such that the first logits' norm over T is `norm`."""
    fields = {
        "T=1": {"temperature": 1.0},
        f"T={high:g}": {"temperature": high},
        f"linear {high:g} to 1": {"temperature": high, "temperature_schedule": "linear", "temperature_end": 1.0},
        f"cosine {high:g} to 1": {"temperature": high, "temperature_schedule": "cosine", "temperature_end": 1.0},
        f"cosine 1 to {high:g}": {"temperature": 1.0, "temperature_schedule": "cosine", "temperature_end": high},
        "norm-matched": {"temperature_schedule": "norm-matched", "initial_norm": norm},
    }
    return {label: {"train": {**train, **changes}} for label, changes in fields.items()}


def effects(study: Study) -> list[Effect]:
    low, high, *moving = (label for label in study.labels if label != "norm-matched")
    found = [difference(study, SOLUTION_RANK.name, high, low, "<")]
    for label in moving[:2]:
        found.append(difference(study, SOLUTION_RANK.name, label, low, "<"))
        found.append(difference(study, SOLUTION_RANK.name, label, high, ">"))
    found += [difference(study, TEST_ACCURACY.name, label, low, ">", counts=False) for label in study.labels[1:]]
    return found


def draw(study: Study) -> Figure:
    figure, axes = panels(1, 3, (3.8, 3.2))
    chosen = colours(len(study.labels), "turbo")
    for label, colour in zip(study.labels, chosen, strict=True):
        line(axes[0, 0], *study.series(label, "train/T"), label, color=colour)
        line(axes[0, 1], *study.series(label, "logits/norm_over_T"), label, color=colour)
        axes[0, 2].plot(
            study.values(label, SOLUTION_RANK.name),
            study.values(label, TEST_ACCURACY.name),
            "o",
            color=colour,
            label=label,
        )
    axes[0, 0].set(yscale="log", xlabel="step", ylabel="T")
    axes[0, 1].set(yscale="log", xlabel="step", ylabel="logits norm / T (batch)")
    axes[0, 2].set(xlabel="solution rank", ylabel="test accuracy")
    axes[0, 2].legend(fontsize=7)
    return figure


RECIPE = Recipe(
    name="schedule",
    claim="A temperature that falls from high to 1 in training leads to a rank between those of the two constant ones. "
    "(The paper asks; it makes no claim.)",
    source="Masarczyk et al. 2025, section 7 and appendix N",
    rule="The solution rank of both falling schedules lies below that of T = 1 and above that of the constant high T, "
    "which is itself lower than that of T = 1. The other schedules are shown and do not count.",
    scales={
        "smoke": Scale(_settings({**SMOKE_MLP, "track": "logits", "every": 4}, 5.0, 0.1), 2, "seconds"),
        "quick": Scale(
            _settings({**GLYPH_MLP, "track": "logits", "every": 8}, 100.0, 0.1), 3, "about 6 minutes"
        ),
        "full": Scale(
            _settings({**paper_resnet("resnet34_cifar", "cifar100"), "track": "logits", "every": 39}, 100.0, 0.1), 3,
            "18 trainings of ResNet-34 on CIFAR-100, 164 epochs each",
        ),
    },
    columns=OUTCOME,
    run=train_jobs,
    effects=effects,
    draw=draw,
)  # fmt: skip
