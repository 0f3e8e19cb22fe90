"""Jobs that train a network: settings {"train": fields of TrainConfig} to a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastrank.recipes.recipe import Column, Job, evaluated, rank_column
from fastrank.train.config import TrainConfig
from fastrank.train.loop import train

TRAIN_ACCURACY = Column("train accuracy", evaluated("train_accuracy", scale=100), form=".1f")
TEST_ACCURACY = Column("test accuracy", evaluated("test_accuracy", scale=100), form=".1f")
SOLUTION_RANK = rank_column("solution rank", "solution_rank")
LOGITS_NORM = Column("logits norm", evaluated("logits_norm"))
NORM_OVER_T = Column("logits norm / T", evaluated("logits_norm_over_T"))


def config_of(job: Job) -> TrainConfig:
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in job.settings["train"].items()}
    return TrainConfig(**fields, seed=job.seed)


def train_jobs(jobs: Sequence[Job], device: torch.device) -> None:
    """One after the other; each goes on from its checkpoint where it was interrupted."""
    configs = [config_of(job) for job in jobs]  # every mistake is said before the first run
    for job, config in zip(jobs, configs, strict=True):
        train(config, job.path, resume=True, device=device, facts=recipe_facts(job))


def recipe_facts(job: Job) -> dict[str, Any]:
    """What a run directory must say of itself to be taken for this job's."""
    return {"recipe": {"settings": job.settings, "seed": job.seed}}


def over_temperatures(train: dict[str, Any], temperatures: Sequence[float]) -> dict[str, dict[str, Any]]:
    """{"T=1": ..., "T=100": ...}: the same training at several temperatures."""
    return {f"T={T:g}": {"train": {**train, "temperature": T}} for T in temperatures}
