"""`fastrank evaluate`: a trained run's model and data by name, its evaluation stored with the run, and shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastrank.errors import InputError
from fastrank.evaluation import Evaluation, ProbeProtocol, evaluate
from fastrank.extras import require
from fastrank.record import add_evaluation
from fastrank.train.checkpoint import FILE, load_checkpoint
from fastrank.train.config import TrainConfig
from fastrank.train.data import load_data
from fastrank.train.models import build_model
from fastrank.train.ood import Loader, load_ood


def evaluate_checkpoint(
    checkpoint: Path, ood: Sequence[str] = (), *, device: torch.device, workers: int = 0, epochs: int | None = None,
    probe_batch: int | None = None, probe_steps: int | None = None, **options: Any,
) -> Evaluation:  # fmt: skip
    """The evaluation of a run that `fastrank train` made, stored with it.

    checkpoint: the run's directory, or the file checkpoint.pt in it. ood: names of data sets as of `fastrank train`,
    rendered at the model's image size. options: as of `fastrank.evaluate`.

    Raises:
        InputError: no checkpoint, or an OOD set of another number of channels than the model takes.
    """
    run = checkpoint.parent if checkpoint.name == FILE else checkpoint
    state = load_checkpoint(run)
    if state is None:
        raise InputError("checkpoint", f"a run directory with {FILE}", run)
    config = TrainConfig(**state["config"])
    data = load_data(config)
    model = build_model(config.model, data.classes, data.channels, data.image_size, config.model_kwargs)
    model.load_state_dict(state["model"])
    limit = options.get("limit")
    others = load_ood(replace(config, samples_per_class=None), ood, data, workers, limit)
    asked = {"epochs": epochs, "batch_size": probe_batch, "least_steps": probe_steps}
    asked = {name: value for name, value in asked.items() if value is not None}
    protocol = ProbeProtocol(seed=options.get("seed", 0), **asked) if asked else None
    found = evaluate(
        model.to(device), Loader(data.train, workers, limit), test=Loader(data.test, workers, limit),
        ood=others or None, T=config.temperature, protocol=protocol, device=device, **options,
    )  # fmt: skip
    add_evaluation(run, found.to_dict())
    return found


def print_evaluation(found: Evaluation) -> None:
    """Tables: the whole, each layer, each out-of-distribution set; then every note."""
    box = require("rich.box", "the tables").SIMPLE_HEAD
    table_type, console = require("rich.table", "the tables").Table, require("rich.console", "the tables").Console()
    rank, c, probes = found.solution_rank, found.collapse, found.probes
    whole = table_type("figure", "value", box=box)
    for name, value in (
        ("solution rank", f"{rank.rank} [{rank.lo}, {rank.hi}]"),
        ("rank after the softmax", f"{rank.after.rank} [{rank.after.lo}, {rank.after.hi}]"),
        ("logits norm, norm / T", f"{rank.norm:.4g}, {rank.norm_over_T:.4g}"),
        ("train, test accuracy", f"{_percent(rank.accuracy)}, {_percent(found.test_accuracy)}"),
        ("NC1 (pinv, trace, CDNV)", f"{c.nc1_pinv:.3g}, {c.nc1_trace:.3g}, {c.nc1_cdnv:.3g}"),
        ("NC2 (norms, angles, ETF)", f"{c.nc2_equinorm:.3g}, {c.nc2_equiangular:.3g}, {c.nc2_etf:.3g}"),
        ("NC3 (duality, ETF)", f"{c.nc3_duality:.3g}, {c.nc3_etf:.3g}"),
        ("NC4", f"{_percent(c.nc4)} of {c.nc4_samples}"),
        ("GNC2, GNC3", f"{c.gnc2:.3g}, {c.gnc3:.3g}"),
        ("kappa (adam, ridge)", f"{_percent(probes.kappa)}, {_percent(probes.ridge_kappa)}"),
    ):
        whole.add_row(name, value)
    console.print(whole)
    layers = table_type(
        "layer", "adam", "loss left", "ridge", "NC1 trace", *(f"{name} orthodev" for name in found.ood), box=box
    )
    for name, figures in found.layers.items():
        accuracies = [_percent(of.get(name, math.nan)) for of in (probes.adam, probes.excess, probes.ridge)]
        deviations = [f"{one.orthodev_layers.get(name, math.nan):.3f}" for one in found.ood.values()]
        layers.add_row(name, *accuracies, f"{figures['nc1_trace']:.3g}", *deviations)
    console.print(layers)
    if found.ood:
        sets = table_type("OOD", "orthodev", "rho", "score", "AUROC", "FPR95, ID positive", "OOD positive", box=box)
        for name, one in found.ood.items():
            for score, d in one.scores.items():
                sets.add_row(
                    name, f"{one.orthodev:.3f}", _percent(one.rho), score, _percent(d.auroc),
                    _percent(d.fpr95_id_positive), _percent(d.fpr95_ood_positive),
                )  # fmt: skip
        console.print(sets)
    for note in (
        *c.notes,
        *probes.notes,
        *(f"{name}: {note}" for name, one in found.ood.items() for note in one.notes),
    ):
        console.print(note, highlight=False, markup=False)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"
