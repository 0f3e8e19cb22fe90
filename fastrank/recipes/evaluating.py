"""Jobs that train a network and then evaluate it on whole sets: settings {"train": ..., "evaluate": {...}}.

"evaluate": {"ood": names of data sets, the first of which is that of columns and figures, "probes": as of
`fastrank.evaluate`}. What `fastrank.evaluate` found is stored in the run under "evaluated".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fastrank.evaluation import evaluate
from fastrank.recipes.effects import Effect, difference
from fastrank.recipes.recipe import Column, Job, Study
from fastrank.recipes.training import config_of, train_jobs, workers_of
from fastrank.record import Run
from fastrank.train.data import Data
from fastrank.train.ood import Loader, check_ood, load_ood

#: [U] A.5 takes 100,000 samples of ImageNet-1k, and all of every other set.
LIMIT = 100_000


def evaluate_jobs(jobs: Sequence[Job], device: torch.device) -> None:
    for job in jobs:
        check_ood(job.settings["evaluate"]["ood"])
    train_jobs(jobs, device, also=_evaluate)


def _evaluate(model: nn.Module, data: Data, T: float, job: Job) -> dict[str, Any]:
    config, options = config_of(job), job.settings["evaluate"]
    workers = workers_of(config)
    train, test = (Loader(split, workers, LIMIT) for split in (data.train, data.test))
    found = evaluate(
        model, train, test=test, ood=load_ood(config, options["ood"], data, workers, LIMIT), T=T,
        probes=options["probes"], limit=LIMIT, seed=job.seed, device=next(model.parameters()).device,
    )  # fmt: skip
    return {"evaluated": found.to_dict()}


def probe_accuracies(run: Run) -> dict[str, float]:
    """layer -> accuracy in distribution: of the paper's probes where they were trained, else of ridge probes."""
    probes = _evaluated(run).get("probes", {})
    return probes.get("adam") or probes.get("ridge") or {}


def ood_figures(run: Run, place: int = 0) -> dict[str, Any]:
    """Those of the out-of-distribution set in that place; the first by default."""
    return (list(_evaluated(run).get("ood", {}).values()) or [{}])[place]


def ood_probe_accuracies(run: Run) -> dict[str, float]:
    found = ood_figures(run)
    return found.get("probes") or found.get("ridge") or {}


def orthodev(run: Run, place: int = 0) -> float:
    return _number(ood_figures(run, place).get("orthodev"))


def detection(run: Run, figure: str, score: str = "neco", place: int = 0) -> float:
    """NECO is that of Ammar et al. for the network: of a transformer it is multiplied by the largest logit."""
    if score == "neco" and run.config["model"].startswith("vit"):
        score = "neco_max_logit"
    return _number(ood_figures(run, place).get("scores", {}).get(score, {}).get(figure))


def collapse_figure(run: Run, figure: str) -> float:
    return _number(_evaluated(run).get("collapse", {}).get(figure))


def _evaluated(run: Run) -> dict[str, Any]:
    return run.evaluation.get("evaluated", {})


def _kappa(run: Run) -> float:
    probes = _evaluated(run).get("probes", {})
    return _number(probes.get("kappa" if probes.get("adam") else "ridge_kappa"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


KAPPA = Column("kappa", _kappa)
RHO = Column("rho", lambda run: rho(run))
NC1 = Column("NC1", lambda run: collapse_figure(run, "nc1_pinv"))
#: 0 at collapse, by their definitions of 2020: spread within classes, angles between class means, classifier against
#: class means, and in per cent what the nearest class mean decides otherwise.
COLLAPSE = (
    NC1,
    Column("NC2, angles", lambda run: collapse_figure(run, "nc2_equiangular")),
    Column("NC3", lambda run: collapse_figure(run, "nc3_duality")),
    Column("NC4", lambda run: 100 * collapse_figure(run, "nc4"), form=".2f"),
)
MEAN_SHARE = Column("common mean's share of class means", lambda run: collapse_figure(run, "mean_share"))
ORTHODEV = Column("OrthoDev", lambda run: orthodev(run))
AUROC = Column("NECO AUROC", lambda run: 100 * detection(run, "auroc"), form=".1f")
FPR95 = Column("NECO FPR95", lambda run: 100 * detection(run, "fpr95_id_positive"), form=".1f")


def first_ood(study: Study, label: str = "") -> str:
    return ood_names(study, label)[0]


def ood_names(study: Study, label: str = "") -> list[str]:
    """Those of the out-of-distribution sets of a label, or of the first; of a folder's path the last part."""
    return [name.rpartition("/")[2] for name in study.settings(label or study.labels[0])["evaluate"]["ood"]]


def rho(run: Run, place: int = 0) -> float:
    """Share of the best layer's out-of-distribution accuracy that the last layer loses, on the set in that place."""
    found = ood_figures(run, place)
    return _number(found.get("rho" if found.get("probes") else "ridge_rho"))


def on_other_sets(
    study: Study, what: str, of: Callable[[Run, int], float], claimed: str, ends: tuple[str, str] | None = None
) -> list[Effect]:
    """The highest temperature against T = 1 on each set beside the first: shown, not judged. of: (run, place).

    ends: the labels of T = 1 and of the highest; the study's first and last by default.
    """
    first, last = ends or (study.labels[0], study.labels[-1])
    columns = (
        Column(f"{what} on {name}", lambda run, place=place: of(run, place))
        for place, name in enumerate(ood_names(study, first)[1:], 1)
    )
    return [difference(study, column, last, first, claimed, counts=False) for column in columns]


def set_notes(study: Study) -> list[str]:
    """In what the bundled sets differ from the paper's."""
    if "digits" not in ood_names(study):
        return []
    return [
        "The bundled sets are not like the paper's (SVHN, CIFAR), which have other classes than the training set: "
        "digits are handwritten forms of ten of the 94 glyphs, and the rotated and noisy glyphs are of all 94. "
        "What is out of distribution here is the style, and what is found depends on the set: compare the effects "
        "that do not count."
    ]


def probe_notes(study: Study, label: str = "") -> list[str]:
    """By which probes kappa and rho are, at a label or at the first."""
    if "adam" in study.settings(label or study.labels[0])["evaluate"]["probes"]:
        return []
    return [
        "kappa and rho are by ridge probes in closed form, at most 1024 features a layer, not by the paper's (Adam)."
    ]
