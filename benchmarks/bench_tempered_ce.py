"""Tempered cross-entropy: one loss, or loss and gradient, of logits as a classifier or a language model leaves them.

Peers take no temperature: like eager torch they are given `logits / T`, which is what their user would write.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import peers
import torch
import torch.nn.functional as F
from fastrank.kernels.linear_tempered_ce import linear_tempered_cross_entropy
from fastrank.kernels.tempered_ce import cost, tempered_cross_entropy
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

T = 100.0
OURS = ("fastrank", "fastrank, with statistics", "fastrank, fused")


@dataclass(frozen=True, kw_only=True)
class Loss(Case):
    """Logits [rows, classes]; with `features` the classifier's product [rows, features] x [features, classes] too;
    `soft`: class probabilities as the target, not labels."""

    rows: int
    classes: int
    dtype: str = "float32"
    backward: bool = True
    features: int = 0
    soft: bool = False

    @property
    def title(self) -> str:
        head = f"{self.features} -> " if self.features else ""
        passes = "forward + backward" if self.backward else "forward"
        return f"{self.rows} x {head}{self.classes} {self.dtype} {'soft ' if self.soft else ''}{passes}"


CASES = (
    Loss(rows=256, classes=10, where="CIFAR-10 batch", quick=True),
    Loss(rows=256, classes=100, where="CIFAR-100 batch"),
    Loss(rows=1024, classes=1000, where="ImageNet batch", quick=True),
    Loss(rows=1024, classes=1000, backward=False, where="ImageNet batch, evaluation"),
    Loss(rows=1024, classes=1000, dtype="bfloat16", where="ImageNet batch, mixed precision"),
    Loss(rows=1024, classes=1000, soft=True, where="ImageNet batch, distillation"),
    Loss(rows=4096, classes=1000, where="large ImageNet batch"),
    Loss(rows=1024, classes=21841, where="ImageNet-21k head", quick=True),
    Loss(rows=1024, classes=21841, dtype="bfloat16", where="ImageNet-21k head, mixed precision"),
    Loss(rows=100_000, classes=1000, backward=False, where="logits of 100,000 samples"),
    Loss(rows=512, classes=128256, devices=("cpu",), where="LLM vocabulary"),
    Loss(rows=8192, classes=128256, dtype="bfloat16", devices=("cuda",), where="LLM vocabulary", quick=True),
    Loss(rows=32768, classes=4096, dtype="bfloat16", devices=("cuda",), where="mid-size vocabulary"),
    Loss(rows=1024, classes=21841, features=512, where="ImageNet-21k head with its product"),
    Loss(rows=8192, classes=128256, features=2048, dtype="bfloat16", devices=("cuda",), where="LLM head with product"),
)


def prepare(case: Loss, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    if case.soft:
        target = torch.randn(case.rows, case.classes, generator=generator).softmax(1).to(device)
    else:
        target = torch.randint(case.classes, (case.rows,), generator=generator).to(device)
    if case.features:
        x = torch.randn(case.rows, case.features, generator=generator)
        w = torch.randn(case.classes, case.features, generator=generator) * 3 / math.sqrt(case.features)
        inputs = [v.to(device, dtype).requires_grad_() for v in (x, w)]
    else:
        logits = 3 * torch.randn(case.rows, case.classes, generator=generator)
        inputs = [logits.to(device, dtype).requires_grad_(case.backward)]
    truth = Truth(case, [v.detach() for v in inputs], target)
    launches = () if case.features else account(case, dtype, device)
    contenders = {
        name: Contender(
            run=partial(step, loss_of, inputs, target, case.backward), error=truth.error,
            budget=truth.budget(fused=name in OURS), ours=name in OURS, launches=launches if name == "fastrank" else (),
            slow=name == "torch.compile", compiles=name == "torch.compile",
        )
        for name, loss_of in losses(case, device).items()
    }  # fmt: skip
    if not case.features:
        # The least that a pass over the logits could cost.
        copy = torch.empty_like(inputs[0])
        contenders["copy_ of the logits"] = Contender(
            run=lambda: copy.copy_(inputs[0].detach()), error=lambda _: float((copy != inputs[0]).sum())
        )
    return Problem(contenders, "largest error over largest value, of the loss and of the gradient of 256 rows")


def losses(case: Loss, device: str) -> dict[str, Callable[..., Tensor]]:
    """name -> loss of (input, target) or of (features, weight, target); the baseline comes first."""
    eager = lambda z, y: F.cross_entropy(z / T, y)  # noqa: E731
    fused = lambda z, y: tempered_cross_entropy(z, y, T)  # noqa: E731
    if case.features:
        found = {
            "eager": lambda x, w, y: eager(x @ w.T, y),
            "F.linear_cross_entropy": lambda x, w, y: F.linear_cross_entropy(x / T, w, y),
            "fastrank": lambda x, w, y: fused(x @ w.T, y),
            "fastrank, fused": lambda x, w, y: linear_tempered_cross_entropy(x, w, y, None, T),
        }
        if cce := peers.load("cut-cross-entropy", device):
            found["cut-cross-entropy"] = lambda x, w, y: cce.linear_cross_entropy(x / T, w, y)
        return found
    torch._dynamo.reset()  # a graph for this size, not one for any size
    found = {
        "eager": eager,
        "fastrank": fused,
        "fastrank, with statistics": lambda z, y: tempered_cross_entropy(z, y, T, return_stats=True)[0],
        "torch.compile": torch.compile(eager, dynamic=False),
    }
    if case.soft:
        return found  # no peer takes probabilities
    if liger := peers.load("Liger", device):
        found["Liger"] = lambda z, y: liger.liger_cross_entropy(z / T, y)
    if quack := peers.load("quack", device):
        found["quack"] = lambda z, y: quack.cross_entropy(z / T, y, reduction="mean")
    return found


def step(loss_of, inputs: list[Tensor], target: Tensor, backward: bool) -> list[Tensor]:
    """One call as a training or evaluation step makes it: the loss and, with `backward`, the inputs' gradients."""
    if not backward:
        with torch.no_grad():
            return [loss_of(*inputs, target)]
    loss = loss_of(*inputs, target)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


class Truth:
    """Loss, and gradient of the first 256 rows, in float64; and how far rounding may lead away from them.

    With X the spread of a row over T and e the roundoff of the accumulator: a fused pass is right to e (4 X + C / 8 +
    20) and one rounding to the dtype (tests/tempered_ce_conformity.py derives it; X's factor there covers a GPU's
    exponential here). Peers round logits / T and log-probabilities, at most X + log C, to the dtype. A product in front
    adds its own rounding to the logits and, amplified by cancellation, to its gradient.
    """

    ROWS = 256

    def __init__(self, case: Loss, inputs: list[Tensor], target: Tensor) -> None:
        self.case, self.inputs = case, inputs
        x, *w = inputs
        wanted = target.double() if case.soft else target
        logits = lambda rows: (rows.double() @ w[0].double().T if w else rows.double()) / T  # noqa: E731
        blocks = max(1, (1 << 26) // case.classes)
        losses = [
            F.cross_entropy(logits(rows), labels, reduction="sum")
            for rows, labels in zip(x.split(blocks), wanted.split(blocks), strict=True)
        ]
        self.loss = sum(losses) / case.rows
        z = logits(x[: self.ROWS]).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(z, wanted[: self.ROWS], reduction="sum") / (case.rows * T), z)
        z = z.detach()
        self.grad = grad @ w[0].double() if w else grad
        self.spread = float((z.amax(1) - z.amin(1)).max())
        self.cancellation = float((grad.abs() @ w[0].double().abs()).max() / self.grad.abs().max()) if w else 1.0

    def error(self, result: list[Tensor]) -> float:
        loss, *grads = result
        error = float((loss.double() - self.loss).abs() / self.loss.abs())
        if grads:
            error = max(error, float((grads[0][: self.ROWS].double() - self.grad).abs().max() / self.grad.abs().max()))
        return error

    def budget(self, fused: bool) -> float:
        C, X, dtype = self.case.classes, self.spread, self.inputs[0].dtype
        acc, eps = torch.finfo(torch.float32).eps, torch.finfo(dtype).eps
        relative = acc * (4 * X + C / 8 + 20) + (eps / 2 if fused else eps * (X + math.log(C) + 4))
        if self.case.features:
            norms = [v.float().norm(dim=1).max() for v in self.inputs]
            product = acc / 2 * self.case.features * float(norms[0] * norms[1]) / T + eps * 2 * X
            relative = (relative + product + eps + acc / 2 * C) * self.cancellation
        return relative


def account(case: Loss, dtype: torch.dtype, device: str) -> tuple[cost.Launch, ...]:
    """What the fused loss moves: on the CPU the gradient comes out of the pass that reads the logits."""
    size = (case.rows, case.classes, dtype)
    target = "probabilities" if case.soft else "index"
    forward = cost.forward(*size, target=target)
    if device != "cpu":
        return forward + (cost.backward(*size, target=target) if case.backward else ())
    written = case.rows * case.classes * dtype.itemsize if case.backward else 0
    return (cost.Launch("native", forward[0].read, written, forward[0].flops),)


BENCHMARK = Benchmark(
    "tempered_ce", __doc__, CASES, prepare, compiled=True, peers=("Liger", "quack", "cut-cross-entropy")
)

if __name__ == "__main__":
    run_alone("tempered_ce")
