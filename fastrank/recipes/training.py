"""Jobs that train a network: settings {"train": fields of TrainConfig} to a run directory, and their usual columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fastrank.recipes.recipe import Column, Job, Scale, evaluated, rank_column
from fastrank.record import Run
from fastrank.train.config import TrainConfig
from fastrank.train.data import Data
from fastrank.train.loop import train
from fastrank.train.presets import PRESETS

if TYPE_CHECKING:
    from fastrank.recipes.recipe import Study

TRAIN_ACCURACY = Column("train accuracy", evaluated("train_accuracy", scale=100), form=".1f")
TEST_ACCURACY = Column("test accuracy", evaluated("test_accuracy", scale=100), form=".1f")
SOLUTION_RANK = rank_column("solution rank", "solution_rank")
FIRST_NORM = Column("first norm of a sample's logits", evaluated("first_logits_norm"))
LOGITS_NORM = Column("logits norm", evaluated("logits_norm"))
NORM_OVER_T = Column("logits norm / T", evaluated("logits_norm_over_T"))
OUTCOME = (TRAIN_ACCURACY, TEST_ACCURACY, SOLUTION_RANK, LOGITS_NORM, NORM_OVER_T)

Also = Callable[[nn.Module, Data, float, Job], Mapping[str, Any]]
Each = Callable[[nn.Module, Data, float, Job], Mapping[str, float]]


def rank_at(tolerance: float) -> Column:
    """Rank of the training set's logits at `tolerance` times their largest singular value."""

    def of(run: Run) -> float:
        sigma = np.array(run.evaluation["logits_sigma"])
        return float((sigma > tolerance * sigma[0]).sum())

    return Column(f"rank at {tolerance:g} of sigma_1", of)


def config_of(job: Job) -> TrainConfig:
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in job.settings["train"].items()}
    return TrainConfig(**fields, seed=job.seed)


def train_jobs(jobs: Sequence[Job], device: torch.device, also: Also | None = None, each: Each | None = None) -> None:
    """One after the other; each goes on from its checkpoint where it was interrupted.

    also: (trained model, data, last temperature, job) -> figures that join the run's evaluation. each: (model, data,
    temperature, job) -> figures of every recorded step.
    """
    configs = [config_of(job) for job in jobs]  # every mistake is said before the first run
    for number, (job, config) in enumerate(zip(jobs, configs, strict=True), 1):
        print(f"{job.path} ({number} of {len(jobs)})", flush=True)
        found, recorded = (
            None if of is None else (lambda model, data, T, of=of, job=job: of(model, data, T, job))
            for of in (also, each)
        )
        train(config, job.path, True, device, workers_of(config), recipe_facts(job), found, recorded)


def workers_of(config: TrainConfig) -> int:
    """Processes that read images from disk; what they read does not depend on their number."""
    return min(8, (os.cpu_count() or 1) - 1) if config.data.startswith("folder:") else 0


def recipe_facts(job: Job) -> dict[str, Any]:
    """What a run directory must say of itself to be taken for this job's."""
    return {"recipe": {"settings": job.settings, "seed": job.seed}}


def over_temperatures(
    train: Mapping[str, Any], temperatures: Sequence[float], **others: Any
) -> dict[str, dict[str, Any]]:
    """{"T=1": ..., "T=100": ...}: the same training at several temperatures; `others` stand beside "train"."""
    return {f"T={T:g}": {"train": {**train, "temperature": T}, **others} for T in temperatures}


def temperatures(study: Study) -> list[float]:
    return [study.settings(label)["train"]["temperature"] for label in study.labels]


# What the recipes train. Smoke: seconds, for tests. Small: minutes on two cores. Paper: Table 4 of [U].
UNTRACKED: dict[str, Any] = {"track": "off", "every": 10}
SMOKE_MLP: dict[str, Any] = {
    "model": "mlp", "model_kwargs": {"depth": 2, "width": 32}, "data": "digits", "image_size": 8, "epochs": 5,
    "samples_per_class": 20, "batch_size": 50, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.0,
}  # fmt: skip
#: Eight layers, as the paper's, narrower. Adam's steps do not shrink with the gradient, which T = 100 makes small. From
#: torch's own initialisation the logits' norm is 0.1: there T = 1 is already the regime of low norms, and one seed in
#: three does not train at T = 100. From Kaiming's it is 3, and all do.
SMALL_MLP: dict[str, Any] = {
    "model": "mlp", "model_kwargs": {"depth": 8, "width": 256, "init": "kaiming"}, "data": "digits", "image_size": 16,
    "epochs": 40, "batch_size": 128, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "warmup_epochs": 1.0,
}  # fmt: skip
#: The demo's ResNet-10 and data, shorter.
SMALL_RESNET: dict[str, Any] = {**PRESETS["demo"], "samples_per_class": 40, "epochs": 12}
#: 94 classes, which show a deficit that 10 cannot, at a quarter of the small ResNet's time. It memorises: the training
#: accuracy comes to 99 %, the test accuracy to 60 %.
GLYPH_MLP: dict[str, Any] = {
    "model": "mlp", "model_kwargs": {"depth": 6, "width": 256, "init": "kaiming"}, "data": "glyphs", "image_size": 16,
    "samples_per_class": 60, "epochs": 25, "batch_size": 128, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.0,
    "warmup_epochs": 1.0,
}  # fmt: skip
PAPER_MLP: dict[str, Any] = {**PRESETS["paper-mlp"], "data": "folder:{data}/cifar10"}


def paper_resnet(model: str, data: str) -> dict[str, Any]:
    return {**PRESETS["paper-resnet"], "model": model, "data": f"folder:{{data}}/{data}"}


def mlp_scales(track: str, seeds: int, minutes: int, every: int = 39) -> dict[str, Scale]:
    """The MLP at T = 1 and at a high temperature, watched for `track` throughout training.

    seeds, minutes: of the quick scale. every: steps between measurements at the full one.
    """
    trainings = "6 trainings of the MLP on CIFAR-10, 100 epochs each"
    return {
        "smoke": Scale(over_temperatures({**SMOKE_MLP, "track": track, "every": 5}, (1, 10)), 2, "seconds"),
        "quick": Scale(
            over_temperatures({**SMALL_MLP, "track": track, "every": 6}, (1, 100)), seeds, f"about {minutes} minutes"
        ),
        "full": Scale(over_temperatures({**PAPER_MLP, "track": track, "every": every}, (1, 100)), 3, trainings),
    }
