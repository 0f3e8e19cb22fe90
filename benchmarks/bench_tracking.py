"""What tracking adds to a training step: the same network trained untracked, tracked, and measured by hand in hooks.

Every contender trains a copy of its own, from the same weights on the same batch. The baseline is the untracked step:
a speed of 0.80x means that tracking adds a quarter. `torch.linalg` measures the way one would write it: in hooks the
ranks of activations and logits, which is what `light` does; as default also singular values of weights and ranks of
gradients, without the alignment (both take too long for --quick).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor, nn

import fastrank
from fastrank.capture import MAX_FEATURES
from fastrank.extras import require
from fastrank.layers import select_layers

T = 100.0


@dataclass(frozen=True, kw_only=True)
class Step(Case):
    """One step of SGD on a timm model: a batch of square images; or on an MLP, named by its layers, of vectors."""

    model: str
    image: int = 0
    batch: int
    classes: int = 94
    presets: tuple[str, ...] = ("light", "default")
    every: int = 1

    @property
    def title(self) -> str:
        often = f", every {self.every}th step" if self.every > 1 else ""
        return f"{self.model}{f' {self.image} px' if self.image else ''}, batch {self.batch}{often}"

    def network(self) -> tuple[nn.Module, Tensor]:
        """And its batch."""
        if self.model.startswith("MLP"):
            layers, width = map(int, self.model.removeprefix("MLP ").split("x"))
            hidden = [m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())]
            return nn.Sequential(*hidden, nn.Linear(width, self.classes)), torch.randn(self.batch, width)
        timm = require("timm", "the tracking benchmark")
        images = torch.randn(self.batch, 3, self.image, self.image)
        return timm.create_model(self.model, num_classes=self.classes), images


CASES = (
    Step(model="resnet10t", image=32, batch=32, where="the demo's network, a small batch", quick=True),
    Step(model="resnet18", image=32, batch=128, where="CIFAR"),
    Step(model="resnet18", image=32, batch=128, every=10, where="CIFAR, off schedule nine times of ten"),
    Step(model="MLP 8x2048", batch=128, where="wide and shallow"),
    Step(model="resnet50", image=224, batch=32, classes=1000, devices=("cpu",), where="ImageNet"),
    Step(model="resnet50", image=224, batch=128, classes=1000, devices=("cuda",), where="ImageNet"),
)


def prepare(case: Step, device: str) -> Problem:
    torch.manual_seed(0)
    model, x = case.network()
    model, x = model.to(device), x.to(device)
    y = torch.randint(case.classes, (case.batch,), device=device)
    steps = {"untracked": Training(model, x, y)}
    if case.every == 1:
        steps |= {"torch.linalg in hooks": ByHand(model, x, y), "torch.linalg as default": ByHand(model, x, y, True)}
    steps |= {f"fastrank {preset}": Tracked(model, x, y, preset, case.every) for preset in case.presets}
    contenders = {
        name: Contender(step, step.error, step.budget, isinstance(step, Tracked), slow=isinstance(step, ByHand))
        for name, step in steps.items()
    }
    return Problem(contenders, "of the logits' norm and the largest singular value of every measured activation")


class Training:
    """A network with its optimiser; a call is one training step."""

    budget: float | None = None

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = copy.deepcopy(model), x, y
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.criterion = fastrank.TemperedCE(T=T)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.logits = self.model(self.x)
        self.loss = self.criterion(self.logits, self.y)
        self.loss.backward()
        self.optimizer.step()

    def error(self, result: None) -> float:
        return float("nan")  # nothing is measured, or by torch itself


class Tracked(Training):
    """The figures come from a `Watcher`; its first figures are checked against float64 in hooks of our own."""

    #: exact mode: float64 sums of exact products; 1e-9 leaves room for the eigensolver and for nothing of float32.
    budget = 1e-9

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, preset: str, every: int) -> None:
        super().__init__(model, x, y)
        self.watcher = fastrank.watch(self.model, metrics=preset, T=T, every=every)
        self.calls = itertools.count()

    def __call__(self) -> None:
        super().__call__()
        self.watcher.step(target=self.y, loss=self.loss)

    def error(self, result: None) -> float:
        """Of one more step, whose activations and logits are kept."""
        seen: dict[str, Tensor] = {}
        handles = [
            layer.module.register_forward_hook(
                lambda m, i, out, name=layer.name: seen.update({name: out.detach().clone()})
            )
            for layer in select_layers(self.model, "*")
            if layer.output
        ]
        latest = self.watcher.latest
        while self.watcher.latest is latest:  # up to the next step on schedule
            self()
        for handle in handles:
            handle.remove()
        figures = self.watcher.latest
        errors = [abs(figures["logits/norm"] / float(self.logits.detach().double().norm()) - 1)]
        for name, out in seen.items():
            X = out.flatten(1).double()
            if X.shape[1] <= MAX_FEATURES and f"act/{name}/sigma_1" in figures:
                errors.append(abs(figures[f"act/{name}/sigma_1"] / float(torch.linalg.matrix_norm(X, 2)) - 1))
        return max(errors)


class ByHand(Training):
    """Rank of every activation [batch, at most 10,000 features] and of the logits with torch.linalg; `weights`: also
    the singular values of every weight [out, in * kernel] and the rank of its gradient."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, weights: bool = False) -> None:
        super().__init__(model, x, y)
        self.ranks: dict[str, Tensor] = {}
        self.weights = [layer.module.weight for layer in select_layers(self.model, "*") if layer.weight and weights]
        for layer in select_layers(self.model, "*"):
            if layer.output:
                layer.module.register_forward_hook(self.hook(layer.name))

    def hook(self, name: str) -> Callable:
        def measure(module: nn.Module, inputs: tuple, out: Tensor) -> None:
            self.ranks[name] = torch.linalg.matrix_rank(out.detach().flatten(1)[:, :MAX_FEATURES])

        return measure

    def __call__(self) -> None:
        super().__call__()
        self.ranks["logits"] = torch.linalg.matrix_rank(self.logits.detach())
        self.spectra = [torch.linalg.svdvals(weight.detach().flatten(1)) for weight in self.weights]
        self.of_gradients = [torch.linalg.matrix_rank(weight.grad.flatten(1)) for weight in self.weights]


BENCHMARK = Benchmark("tracking", __doc__, CASES, prepare)

if __name__ == "__main__":
    run_alone("tracking")
