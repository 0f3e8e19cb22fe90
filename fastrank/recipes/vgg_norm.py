"""vgg-norm: VGG-19 starts with far smaller logits than a ResNet (Masarczyk et al. 2025, Table 3, Fig. 8, 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastrank.recipes.effects import Effect, difference, of_values
from fastrank.recipes.figures import panels
from fastrank.recipes.recipe import Column, Job, Recipe, Scale, Study, evaluated
from fastrank.recipes.training import (
    FIRST_NORM,
    SMALL_RESNET,
    SOLUTION_RANK,
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    UNTRACKED,
    paper_resnet,
    recipe_facts,
    train_jobs,
)
from fastrank.record import RunWriter
from fastrank.temperature import logits_norm
from fastrank.train.config import TrainConfig
from fastrank.train.data import load_data
from fastrank.train.models import build_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: "Orders of magnitude": at least this factor between the norms, in decades.
DECADES = 1.0
BATCHES = 4


def _settings(
    networks: Mapping[str, Mapping[str, Any]], train: Mapping[str, Any], T: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Random networks first ("VGG-19 at random"), then VGG-19 trained at each T."""
    found = {f"{name}, random": {"train": {**train, **fields}, "random": True} for name, fields in networks.items()}
    return found | {f"VGG-19, T={t:g}": {"train": {**train, **networks["VGG-19"], "temperature": t}} for t in T}


def run(jobs: Sequence[Job], device: torch.device) -> None:
    for job in (job for job in jobs if job.settings.get("random")):
        with RunWriter(job.path, recipe_facts(job), resume=(job.path / "run.db").is_file()) as writer:
            writer.set_evaluation({"first_logits_norm": _random_norm(job, device)})
    train_jobs([job for job in jobs if not job.settings.get("random")], device)


def _random_norm(job: Job, device: torch.device) -> float:
    config = TrainConfig(**job.settings["train"], seed=job.seed)
    data = load_data(config)
    torch.manual_seed(job.seed)
    model = build_model(config.model, data.classes, data.channels, data.image_size, config.model_kwargs).to(device)
    batches = ((images.to(device),) for images, _ in data.train.train_batches(0, config.batch_size))
    return logits_norm(model, batches, BATCHES)


def _random(study: Study) -> list[str]:
    return [label for label in study.labels if label.endswith(", random")]


def effects(study: Study) -> list[Effect]:
    vgg, *others = _random(study)
    norms = {label: np.log10(study.values(label, FIRST_NORM.name)) for label in (vgg, *others)}
    found = [
        of_values(f"decades from {vgg} to {other}", ">", norms[other] - norms[vgg], null=DECADES) for other in others
    ]
    trained = [label for label in study.labels if label not in norms]
    for label in trained[1:]:
        found.append(difference(study, SOLUTION_RANK.name, label, trained[0], ">"))
    return found


def draw(study: Study) -> Figure:
    """Left as Fig. 8: one dot a random network; right the rank of VGG-19 trained at each T."""
    figure, axes = panels(1, 2, (4.0, 3.0))
    for place, label in enumerate(_random(study)):
        values = study.values(label, FIRST_NORM.name)
        axes[0, 0].plot(np.full(len(values), place), values, "o", markersize=4)
    names = [label.removesuffix(", random") for label in _random(study)]
    axes[0, 0].set(yscale="log", ylabel="norm of a sample's logits, at random", xticks=range(len(names)))
    axes[0, 0].set_xticklabels(names, fontsize=8)
    trained = [label for label in study.labels if label not in _random(study)]
    for label in trained:
        x = study.settings(label)["train"]["temperature"]
        values = study.values(label, SOLUTION_RANK.name)
        axes[0, 1].plot(np.full(len(values), x), values, "x" if study.untrained(label) else "o", color="tab:blue")
    axes[0, 1].set(xscale="log", xlabel="T", ylabel="solution rank of VGG-19", title="x: did not train")
    return figure


def notes(study: Study) -> list[str]:
    vgg, other, *_ = (study.values(label, FIRST_NORM.name).mean() for label in _random(study))
    return [f"T = {vgg / other:.2g} gives VGG-19 the first norm that {_random(study)[1].split(',')[0]} has at T = 1."]


NARROW = {
    "VGG-19": {"model": "vgg19", "model_kwargs": {"width": 0.125}},
    "ResNet-20": {"model": "resnet20_cifar", "model_kwargs": {}},
    "ResNet-18": {"model": "resnet18_cifar", "model_kwargs": {"channels": [16, 32, 64, 128]}},
}
FULL = {"VGG-19": {"model": "vgg19", "model_kwargs": {}}} | {
    f"ResNet-{depth}": {"model": f"resnet{depth}_cifar", "model_kwargs": {}} for depth in (18, 20, 34)
}
SMOKE = {"data": "digits", "image_size": 8, "epochs": 2, "batch_size": 50, "samples_per_class": 10, "lr": 0.003,
         "optimizer": "adamw", **UNTRACKED}  # fmt: skip
QUICK = {key: value for key, value in SMALL_RESNET.items() if key not in ("model", "model_kwargs")} | {
    "image_size": 16, "lr": 0.002, "epochs": 20, **UNTRACKED,
}  # fmt: skip
PAPER = {**paper_resnet("vgg19", "cifar10"), "epochs": 160, "milestones": [80, 120], **UNTRACKED}

RECIPE = Recipe(
    name="vgg-norm",
    claim="VGG-19 starts with logits norms orders of magnitude below ResNets'; a low temperature that matches the "
    "norms shifts its collapse.",
    source="Masarczyk et al. 2025, Table 3, Fig. 8, 9",
    rule="The first norm of random ResNets exceeds that of random VGG-19s at least tenfold; trained at a low "
    "temperature VGG-19 has a higher solution rank than at T = 1. Where it does not train, nothing is judged.",
    scales={
        "smoke": Scale(_settings(NARROW, SMOKE, (1, 0.3)), 2, "seconds"),
        "quick": Scale(_settings(NARROW, QUICK, (1, 0.1)), 3, "about 10 minutes"),
        "full": Scale(_settings(FULL, PAPER, (1, 0.1, 10, 50, 100)), 3, "15 trainings of VGG-19 on CIFAR-10"),
    },
    columns=(
        TRAIN_ACCURACY,
        TEST_ACCURACY,
        FIRST_NORM,
        SOLUTION_RANK,
        Column("T", evaluated("temperature")),
    ),
    run=run,
    effects=effects,
    draw=draw,
    notes=notes,
)  # fmt: skip
