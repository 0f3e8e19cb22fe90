"""gradient-rank: the rank of a layer's input bounds that of its weight's gradient, and both collapse at high T.

Masarczyk et al. 2025, eq. 3 and Fig. 4. Ranks are those of the whole training set: of all inputs of a layer, and of
the gradient of the mean loss. Thresholds are torch's defaults for the paper's matrices, 50,000 x 2,048 and 2,048 x
2,048: a default is proportional to the larger side, and under that of small matrices little collapses. The bound is
that of eq. 3, between the input and the gradient of the same batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fastrank import GramState, TemperedCE, TemperedMSE, matrix_rank
from fastrank.recipes.effects import Effect, difference, proportion
from fastrank.recipes.figures import line, panels
from fastrank.recipes.recipe import Column, Job, Recipe, Study
from fastrank.recipes.training import TEST_ACCURACY, TRAIN_ACCURACY, config_of, mlp_scales, train_jobs
from fastrank.record import Run
from fastrank.record.schema import split_key
from fastrank.train.data import Data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

EPS = torch.finfo(torch.float32).eps
#: Over the largest singular value: of inputs, of gradients.
INPUT_RTOL, GRADIENT_RTOL = 50_000 * EPS, 2048 * EPS
BATCH = 512


def run(jobs: Sequence[Job], device: torch.device) -> None:
    train_jobs(jobs, device, each=ranks_of_the_set)


def ranks_of_the_set(model: nn.Module, data: Data, T: float, job: Job) -> dict[str, float]:
    """Ranks of every linear layer's inputs and of its gradient, over the whole training set, in evaluation mode.

    "set_input_rank_i", "set_gradient_rank_i" at the paper's thresholds, "own_..." at the matrices' own defaults; layers
    i are counted from 0.
    """
    config = config_of(job)
    loss = {"ce": TemperedCE, "mse": TemperedMSE}[config.loss](T=T, label_smoothing=config.label_smoothing)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [module.weight for module in linear]
    inputs = {module: GramState(module.in_features, device=module.weight.device) for module in linear}
    gradients = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]

    def take(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[module].update(args[0].detach().float())

    handles = [module.register_forward_pre_hook(take) for module in linear]
    was_training = model.training
    model.eval()
    device, seen = weights[0].device, 0
    for images, labels in data.train.plain_batches(BATCH):
        total = loss(model(images.to(device)), labels.to(device)) * len(labels)
        for sum_, one in zip(gradients, torch.autograd.grad(total, weights), strict=True):
            sum_ += one
        seen += len(labels)
    model.train(was_training)
    for handle in handles:
        handle.remove()
    spectra = [state.spectrum() for state in inputs.values()]
    of_mean = [(total / seen).float() for total in gradients]
    found = {
        "set_input": matrix_rank(spectra, rtol=INPUT_RTOL), "set_gradient": matrix_rank(of_mean, rtol=GRADIENT_RTOL),
        "own_input": matrix_rank(spectra), "own_gradient": matrix_rank(of_mean),
    }  # fmt: skip
    return {f"{what}_rank_{i}": int(rank) for what, ranks in found.items() for i, rank in enumerate(ranks)}


def above(run: Run) -> float:
    """Share of layers and measured steps at which the set's gradient has a higher rank than the layer's inputs."""
    keys = [key for key in run.keys if key.startswith("train/set_input_rank_")]
    pairs = [(run.series(key)[1], run.series(key.replace("input", "gradient"))[1]) for key in keys]
    return float(np.mean([gradient > input_ for input_, gradient in pairs]))


def of_set(run: Run, what: str) -> np.ndarray:
    """[layers]: "set_input", ...: means over training."""
    keys = sorted(
        (key for key in run.keys if key.startswith(f"train/{what}_rank_")), key=lambda key: int(key.rpartition("_")[2])
    )
    return np.array([run.series(key)[1].mean() for key in keys])


def deep_of_set(what: str) -> Column:
    """Mean over training and the second half of the hidden layers; the classifier's gradient has one row a class."""
    names = {"set": "", "own": " at its own default"}
    whose, matrix = what.split("_")

    def mean(run: Run) -> float:
        ranks = of_set(run, what)[:-1]
        return float(ranks[len(ranks) // 2 :].mean())

    return Column(f"deep {matrix} rank of the set{names[whose]}", mean)


def layers(run: Run) -> list[str]:
    """Those with a bound, in the network's order."""
    return [layer for kind, layer, metric in map(split_key, run.keys) if (kind, metric) == ("grad", "input_rank")]


def by_layer(run: Run, metric: str) -> np.ndarray:
    """[layers], means over training."""
    return np.array([run.series(f"grad/{layer}/{metric}")[1].mean() for layer in layers(run)])


def deep(run: Run, metric: str) -> float:
    """As `deep_of_set`, of batches."""
    ranks = by_layer(run, metric)[:-1]
    return float(ranks[len(ranks) // 2 :].mean())


def effective_by_layer(run: Run) -> np.ndarray:
    """[hidden layers] effective ranks (Roy & Vetterli 2007) of their activations, means over training."""
    keys = [key for key, (kind, _, metric) in zip(run.keys, map(split_key, run.keys), strict=True)
            if (kind, metric) == ("act", "effective_rank")]  # fmt: skip
    return np.array([run.series(key)[1].mean() for key in keys])


def deep_effective(run: Run) -> float:
    """Mean over training and the second half of the layers that `deep` looks at."""
    ranks = effective_by_layer(run)[:-1]
    return float(ranks[len(ranks) // 2 :].mean())


def exceeded(run: Run) -> tuple[int, int]:
    """(pairs of layer and step at which the bound is certainly exceeded, all pairs)"""
    excess = np.concatenate([run.series(f"grad/{layer}/bound_excess")[1] for layer in layers(run)])
    return int((excess > 0).sum()), len(excess)


def effects(study: Study) -> list[Effect]:
    low, high = study.labels[0], study.labels[-1]
    counts = np.array([exceeded(run) for label in study.labels for run in study.of(label)]).sum(0)
    return [
        difference(study, SET_GRADIENT, high, low, "<"),
        difference(study, SET_INPUT, high, low, "<"),
        # Eq. 3 holds for exact ranks; numerical ones have tolerances of their own on both sides.
        proportion("share of layers and steps within the bound", ">", int(counts[1] - counts[0]), int(counts[1]), 0.95),
        difference(study, deep_of_set("own_gradient"), high, low, "<", counts=False),
        difference(study, deep_of_set("own_input"), high, low, "<", counts=False),
        difference(study, "deep gradient rank of batches", high, low, "<", counts=False),
        difference(study, "deep input rank of batches", high, low, "<", counts=False),
        difference(study, "deep effective rank of batches", high, low, "<", counts=False),
    ]


def draw(study: Study) -> Figure:
    """As Fig. 4, one panel a temperature: ranks by layer, means over training, dots for seeds."""
    figure, axes = panels(1, len(study.labels), (4.0, 3.0), sharey=True)
    for place, label in zip(axes[0], study.labels, strict=True):
        for what, name, colour in (("input", "rank($A^i$)", "tab:blue"), ("gradient", "rank($G^{i+1}$)", "tab:red")):
            ranks = np.stack([of_set(run, f"set_{what}") for run in study.of(label)])
            x = np.arange(ranks.shape[1])
            place.plot(x, ranks.mean(0), color=colour, label=name)
            place.plot(np.broadcast_to(x, ranks.shape).T, ranks.T, ".", color=colour, markersize=4)
        effective = np.stack([effective_by_layer(run) for run in study.of(label)])
        # A^i of the hidden layers; A^0 is the images.
        line(
            place, np.arange(1, 1 + effective.shape[1]), effective, "effective rank of $A^i$, batches", color="tab:cyan"
        )
        place.set(xlabel="layer i", title=label, yscale="log")
    axes[0, 0].set_ylabel("rank, mean over training")
    axes[0, 0].legend(fontsize=8)
    return figure


def notes(study: Study) -> list[str]:
    shares = ", ".join(f"{np.mean([above(run) for run in study.of(label)]):.0%} at {label}" for label in study.labels)
    return [
        "At these thresholds the set's gradient has a higher rank than the layer's inputs in a share of layers and "
        f"steps: {shares}. Eq. 3 is of exact ranks, and knows no thresholds; the gradient's is 24 times lower. Of "
        "batches, at their own, the effects say how often the bound is certainly exceeded.",
        f"Inputs are counted at {INPUT_RTOL:.1g} of their largest singular value, gradients at {GRADIENT_RTOL:.1g}: "
        "torch's defaults for the paper's 50,000 samples and 2,048 features. What is left at the defaults of these "
        "smaller matrices, and of batches, whose rank is at most their size, is shown and not judged. The effective "
        "rank has no threshold.",
    ]


SET_GRADIENT, SET_INPUT = deep_of_set("set_gradient"), deep_of_set("set_input")

RECIPE = Recipe(
    name="gradient-rank",
    claim="The rank of a layer's input bounds the rank of its weight's gradient; at high temperature both collapse in "
    "the deep layers.",
    source="Masarczyk et al. 2025, eq. 3, Fig. 4",
    rule="Over the whole training set, averaged over training and the second half of the hidden layers, the ranks of "
    "gradients and of inputs are both lower at the highest temperature than at T = 1; the bound is certainly exceeded "
    "by the batches at fewer than 5 % of all layers and steps.",
    revised="The rule was of batches of 128 at first, and not held: the inputs had rank 128, the most they can, at "
    "either temperature. Whole set and thresholds were then chosen as in logits-norm, before any run with them.",
    scales=mlp_scales("act,bound", 3, 5, every=390),
    columns=(
        TRAIN_ACCURACY,
        TEST_ACCURACY,
        SET_GRADIENT,
        SET_INPUT,
        Column("deep gradient rank of batches", lambda run: deep(run, "rank")),
        Column("deep input rank of batches", lambda run: deep(run, "input_rank")),
        Column("deep effective rank of batches", deep_effective),
        Column("layers and steps beyond the bound", lambda run: exceeded(run)[0], form=".0f"),
    ),
    run=run,
    effects=effects,
    draw=draw,
    notes=notes,
)  # fmt: skip
