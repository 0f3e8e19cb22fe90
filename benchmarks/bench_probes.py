"""Linear probes of all layers of a network: trained together against one after another, by the same protocol.

A call is 20 epochs of the 50 of the paper's protocol (Adam, lr 1e-3, weight decay 1e-3, batches of 4096, standardised
features). fastrank's call also bounds what each probe has left to lose. The loops train torch.nn.Linear layer by layer,
as one would write it down. Starts and orders of samples are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

from fastrank.evaluation.probes import ProbeProtocol, train_probes

PROTOCOL = ProbeProtocol(epochs=20)
#: Of a probe's mean cross-entropy on its samples: some hundred roundings of float32 over the steps. (Weights themselves
#: differ by more: Adam turns a rounding of a tiny gradient into a whole step.)
BUDGET = 1e-3


@dataclass(frozen=True, kw_only=True)
class Layers(Case):
    """`layers` layers of `width` features at `rows` samples of `classes` classes."""

    layers: int
    width: int
    classes: int
    rows: int

    @property
    def title(self) -> str:
        return f"{self.layers} layers of {self.width}, {self.rows} samples, C={self.classes}, {PROTOCOL.epochs} epochs"


CASES = (
    Layers(layers=40, width=10, classes=10, rows=200, where="small networks, many layers", quick=True),
    Layers(layers=8, width=64, classes=10, rows=1437, where="an MLP on digits", quick=True),
    Layers(layers=17, width=512, classes=10, rows=1437, where="ResNet-18 on digits"),
    Layers(layers=8, width=1024, classes=94, rows=7520, where="an MLP on glyphs"),
)


def prepare(case: Layers, device: str) -> Problem:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(case.classes, (case.rows,), generator=g)
    centres = torch.randn(case.layers, case.classes, case.width, generator=g)
    X = (torch.randn(case.layers, case.rows, case.width, generator=g) + centres[:, y]).to(device)
    y = y.to(device)
    # A whole training in float64, from the start that `train_probes` draws.
    truth = _losses(loop(X.double(), y, case.classes, "for"), X, y)

    def error(probes: list[tuple[Tensor, Tensor]]) -> float:
        return float(((_losses(probes, X, y) - truth) / truth).abs().max())

    def together() -> list[tuple[Tensor, Tensor]]:
        found = train_probes([X.clone()], y, case.classes, PROTOCOL)[0]
        return [(probe.weight, probe.bias) for probe in found]

    def one_by_one(how: str) -> Callable[[], list[tuple[Tensor, Tensor]]]:
        return lambda: loop(X, y, case.classes, how)

    return Problem(
        {
            "loop of torch modules": Contender(one_by_one("default"), error, BUDGET),
            "loop, fused Adam": Contender(one_by_one("fused"), error, BUDGET),
            "fastrank": Contender(together, error, BUDGET, ours=True),
        },
        "largest |loss - truth| / truth",
    )


def loop(X: Tensor, y: Tensor, classes: int, how: str) -> list[tuple[Tensor, Tensor]]:
    """how: Adam's implementation, torch's default, "fused", or "for" in the dtype of X."""
    start, found = torch.Generator().manual_seed(PROTOCOL.seed), []
    G, n, d = X.shape
    W, b = ((torch.empty(G, classes, *k).uniform_(-1, 1, generator=start) / math.sqrt(d)).to(X) for k in ((d,), ()))
    options = {"fused": {"fused": True}, "for": {"foreach": False}}.get(how, {})
    for i in range(G):
        x = (X[i] - X[i].mean(0)) / X[i].std(0, correction=0)
        probe = torch.nn.Linear(d, classes, dtype=X.dtype, device=X.device)
        with torch.no_grad():
            probe.weight.copy_(W[i])
            probe.bias.copy_(b[i])
        optimizer = torch.optim.Adam(probe.parameters(), PROTOCOL.lr, weight_decay=PROTOCOL.weight_decay, **options)
        order = torch.Generator().manual_seed(PROTOCOL.seed + 1)
        for _ in range(PROTOCOL.epochs):
            for rows in torch.randperm(n, generator=order).to(y.device).split(PROTOCOL.batch_size):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(probe(x[rows]), y[rows]).backward()
                optimizer.step()
        found.append((probe.weight.detach(), probe.bias.detach()))
    return found


def _losses(probes: list[tuple[Tensor, Tensor]], X: Tensor, y: Tensor) -> Tensor:
    """[G] float64, the mean cross-entropy of each layer's probe on its samples."""
    found = []
    for (W, b), layer in zip(probes, X.double(), strict=True):
        x = (layer - layer.mean(0)) / layer.std(0, correction=0)
        found.append(torch.nn.functional.cross_entropy(x @ W.double().T + b.double(), y))
    return torch.stack(found)


BENCHMARK = Benchmark("probes", __doc__, CASES, prepare)

if __name__ == "__main__":
    run_alone("probes")
