"""Jobs that train a network and then evaluate it on whole sets: settings {"train": ..., "evaluate": {...}}.

"evaluate": {"ood": names of data sets, the first of which is the one of columns and figures, "probes": as of
`fastrank.evaluate`}. What `fastrank.evaluate` found is stored in the run under "evaluated".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastrank.evaluation import evaluate
from fastrank.recipes.recipe import Column, Job, Study
from fastrank.recipes.training import config_of, train_jobs
from fastrank.record import Run
from fastrank.train.data import Data, load_data
from fastrank.train.splits import Split

BATCH = 512
#: [U] A.5 takes 100,000 samples of ImageNet-1k, and all of every other set.
LIMIT = 100_000


@dataclass(frozen=True)
class Batches:
    """A split as a loader that can be read again."""

    dataset: Split

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.dataset.plain_batches(BATCH))


def evaluate_jobs(jobs: Sequence[Job], device: torch.device) -> None:
    train_jobs(jobs, device, also=_evaluate)


def _evaluate(model: nn.Module, data: Data, T: float, job: Job) -> dict[str, Any]:
    config, options = config_of(job), job.settings["evaluate"]
    sets = {}
    for name in options["ood"]:
        other = load_data(replace(config, data=name, image_size=data.image_size), seen_by=config.data)
        sets[name] = (Batches(other.train), Batches(other.test))
    found = evaluate(
        model, Batches(data.train), test=Batches(data.test), ood=sets, T=T, probes=options["probes"],
        limit=LIMIT, seed=job.seed, device=next(model.parameters()).device,
    )  # fmt: skip
    return {"evaluated": {"first_ood": options["ood"][0], **found.to_dict()}}


def probe_accuracies(run: Run) -> dict[str, float]:
    """layer -> accuracy in distribution: of the paper's probes where they were trained, else of ridge probes."""
    probes = _evaluated(run).get("probes", {})
    return probes.get("adam") or probes.get("ridge") or {}


def ood_figures(run: Run) -> dict[str, Any]:
    """Those of the first out-of-distribution set."""
    found = _evaluated(run)
    return found.get("ood", {}).get(found.get("first_ood"), {})


def ood_probe_accuracies(run: Run) -> dict[str, float]:
    found = ood_figures(run)
    return found.get("probes") or found.get("ridge") or {}


def detection(run: Run, figure: str, score: str = "neco") -> float:
    return _number(ood_figures(run).get("scores", {}).get(score, {}).get(figure))


def collapse_figure(run: Run, figure: str) -> float:
    return _number(_evaluated(run).get("collapse", {}).get(figure))


def _evaluated(run: Run) -> dict[str, Any]:
    return run.evaluation.get("evaluated", {})


def _kappa(run: Run) -> float:
    probes = _evaluated(run).get("probes", {})
    return _number(probes.get("kappa" if probes.get("adam") else "ridge_kappa"))


def _rho(run: Run) -> float:
    found = ood_figures(run)
    return _number(found.get("rho" if found.get("probes") else "ridge_rho"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


KAPPA = Column("kappa", _kappa)
RHO = Column("rho", _rho)
NC1 = Column("NC1", lambda run: collapse_figure(run, "nc1_pinv"))
ORTHODEV = Column("OrthoDev", lambda run: _number(ood_figures(run).get("orthodev")))
AUROC = Column("NECO AUROC", lambda run: 100 * detection(run, "auroc"), form=".1f")
FPR95 = Column("NECO FPR95", lambda run: 100 * detection(run, "fpr95_id_positive"), form=".1f")


def first_ood(study: Study) -> str:
    return study.settings(study.labels[0])["evaluate"]["ood"][0]


def probe_notes(study: Study) -> list[str]:
    """By which probes kappa and rho are."""
    if "adam" in study.settings(study.labels[0])["evaluate"]["probes"]:
        return []
    return [
        "kappa and rho are by ridge probes in closed form, at most 1024 features a layer, not by the paper's (Adam)."
    ]
