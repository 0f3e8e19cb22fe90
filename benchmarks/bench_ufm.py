"""Gradient descent on deep unconstrained feature models: all runs as one batch against a loop over small torch modules.

A call is `STEPS` steps of `runs` runs, whose time is that of the whole simulation's steps in the same proportion: every
step does the same work. fastrank's call also takes the figures of one record. The loop trains one run of the batch
after another, as one would write it down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

from fastrank.recipes.ufm import initialise
from fastrank.recipes.ufm.descent import descend
from fastrank.recipes.ufm.model import DeepUFM, logits

STEPS, LR = 20, 0.2
#: float32 products of five layers over 20 steps, relative to ||Z||_F: 5 * 20 steps of a few roundings each.
BUDGET = 1e-4


@dataclass(frozen=True, kw_only=True)
class Runs(Case):
    """`runs` runs; their seeds are 0, 1, ..."""

    classes: int
    depth: int
    width: int
    runs: int

    @property
    def title(self) -> str:
        return f"{self.runs} runs, C={self.classes} L={self.depth} d={self.width}, {STEPS} steps"


CASES = (
    Runs(classes=10, depth=5, width=32, runs=32, where="a subset of 1000 runs of 10,000 steps", quick=True),
    Runs(classes=10, depth=5, width=32, runs=1000, where="1000 runs of 10,000 steps"),
    Runs(classes=10, depth=40, width=10, runs=400, where="the deepest column of ufm-basin"),
)


def prepare(case: Runs, device: str) -> Problem:
    model = DeepUFM(case.classes, case.depth, case.width)
    weights = initialise.gaussian(model, list(range(case.runs)))
    truth = logits(descend(weights, model, LR, STEPS, record=[0, STEPS], collapse=False).weights)
    weights = [W.float().to(device) for W in weights]

    def error(Z: Tensor) -> float:
        gap = (Z.double().cpu() - truth).flatten(1).norm(dim=1)
        return float((gap / truth.flatten(1).norm(dim=1)).max())

    def batched() -> Tensor:
        return logits(descend(weights, model, LR, STEPS, record=[STEPS], collapse=False).weights)

    return Problem(
        {
            "loop of torch modules": Contender(lambda: loop(weights, model), error, BUDGET),
            "loop, gradients by hand": Contender(lambda: loop_by_hand(weights, model), error, BUDGET, slow=True),
            "torch.func.vmap": Contender(lambda: mapped(weights, model), error, BUDGET, slow=True),
            "fastrank": Contender(batched, error, BUDGET, ours=True),
        },
        "largest ||Z - truth||_F / ||truth||_F",
    )


def loop(weights: list[Tensor], model: DeepUFM) -> Tensor:
    """One nn.Sequential and SGD after another."""
    inputs, labels, found = *_data(weights, model), []
    for run in range(len(weights[0])):
        layers = [torch.nn.Linear(m, n, bias=False, device=inputs.device) for m, n in model.shapes]
        for layer, W in zip(layers, weights, strict=True):
            layer.weight.data.copy_(W[run].mT)
        net = torch.nn.Sequential(*layers)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
        found.append(net(inputs).detach())
    return torch.stack(found)


def loop_by_hand(weights: list[Tensor], model: DeepUFM) -> Tensor:
    """The same without autograd and modules: the least that a loop over runs can do with torch's operations."""
    onehot, found = torch.nn.functional.one_hot(_data(weights, model)[1]).to(weights[0]), []
    for run in range(len(weights[0])):
        W = [layer[run].clone() for layer in weights]
        for _ in range(STEPS):
            A = [W[0]]
            for layer in W[1:]:
                A.append(A[-1] @ layer)
            D = (torch.softmax(A[-1], 1) - onehot) * (LR / model.rows)
            for l in range(len(W) - 1, 0, -1):
                D, update = D @ W[l].mT, A[l - 1].mT @ D
                W[l] -= update
            W[0] -= D
        found.append(torch.linalg.multi_dot(W) if len(W) > 1 else W[0])
    return torch.stack(found)


def mapped(weights: list[Tensor], model: DeepUFM) -> Tensor:
    """Batched by torch.func: vmap of grad over the runs."""
    labels = _data(weights, model)[1]

    def loss(*layers: Tensor) -> Tensor:
        Z = layers[0]
        for W in layers[1:]:
            Z = Z @ W
        return torch.nn.functional.cross_entropy(Z, labels)

    gradient = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(len(weights)))))
    W = list(weights)
    for _ in range(STEPS):
        W = [w - LR * g for w, g in zip(W, gradient(*W), strict=True)]
    return logits(W)


def _data(weights: list[Tensor], model: DeepUFM) -> tuple[Tensor, Tensor]:
    device = weights[0].device
    return torch.eye(model.rows, device=device), model.labels.to(device)


BENCHMARK = Benchmark("ufm", __doc__, CASES, prepare)

if __name__ == "__main__":
    run_alone("ufm")
