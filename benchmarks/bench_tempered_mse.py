"""Squared error of the softmax of logits over a temperature: loss, or loss and gradient, as a classifier leaves them.

Eager torch is what a user would write, nn.MSELoss of softmax(logits / T) and one-hot targets (in float32, as MSELoss
rounds its result to the dtype); torch.compile is the same, compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from bench_tempered_ce import step
from fastrank.kernels.tempered_mse import cost, tempered_mse
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

T = 100.0


@dataclass(frozen=True, kw_only=True)
class SquaredError(Case):
    """Logits [rows, classes]; class probabilities instead of labels where `soft`."""

    rows: int
    classes: int
    dtype: str = "float32"
    backward: bool = True
    soft: bool = False

    @property
    def title(self) -> str:
        kind = " probabilities" if self.soft else ""
        return f"{self.rows} x {self.classes} {self.dtype}{kind} {'forward + backward' if self.backward else 'forward'}"


CASES = (
    SquaredError(rows=256, classes=10, where="CIFAR-10 batch", quick=True),
    SquaredError(rows=256, classes=100, where="CIFAR-100 batch"),
    SquaredError(rows=1024, classes=1000, where="ImageNet batch", quick=True),
    SquaredError(rows=1024, classes=1000, backward=False, where="ImageNet batch, evaluation"),
    SquaredError(rows=1024, classes=1000, dtype="bfloat16", where="ImageNet batch, mixed precision"),
    SquaredError(rows=1024, classes=1000, soft=True, where="ImageNet batch, distillation"),
    SquaredError(rows=256, classes=21841, where="ImageNet-21k head"),
    SquaredError(rows=32768, classes=4096, dtype="bfloat16", devices=("cuda",), where="mid-size vocabulary"),
)


def prepare(case: SquaredError, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(case.rows, case.classes, generator=generator)).to(device, getattr(torch, case.dtype))
    logits.requires_grad_(case.backward)
    target = torch.randint(case.classes, (case.rows,), generator=generator).to(device)
    if case.soft:
        target = torch.randn(case.rows, case.classes, generator=generator).softmax(1).to(device)
    truth = Truth(case, logits.detach(), target)
    torch._dynamo.reset()  # a graph for this size, not one for any size
    losses = {
        "eager": written_out,
        "fastrank": lambda z, y: tempered_mse(z, y, T),
        "torch.compile": torch.compile(written_out, dynamic=False),
    }
    launches = account(case, device)
    contenders = {
        name: Contender(
            run=partial(step, loss_of, [logits], target, case.backward), error=truth.error,
            budget=truth.budget(fused=name == "fastrank"), ours=name == "fastrank", launches=launches,
            slow=name == "torch.compile", compiles=name == "torch.compile",
        )
        for name, loss_of in losses.items()
    }  # fmt: skip
    return Problem(contenders, "largest error over largest value, of the loss and of the gradient of 256 rows")


def written_out(z: Tensor, target: Tensor) -> Tensor:
    if not target.is_floating_point():
        target = F.one_hot(target, z.shape[1]).float()
    return F.mse_loss((z / T).softmax(1).float(), target)


class Truth:
    """Loss, and gradient of the first 256 rows, in float64; and how far rounding may lead away from them.

    At this T no probability is near 1, so a fused pass is right to e (4 X + C / 8 + 30) of its largest figure and one
    rounding to the dtype, with X the spread of a row over T and e the roundoff of the accumulator
    (tests/tempered_mse_conformity.py derives it); the others round logits / T, the probabilities and their gradient to
    the dtype on their way, and sum all rows * classes squares in float32, a vector of 16 at a time.
    """

    ROWS = 256

    def __init__(self, case: SquaredError, logits: Tensor, target: Tensor) -> None:
        self.case, self.dtype = case, logits.dtype
        self.loss = sum(
            written_out64(z, y, reduction="sum")
            for z, y in zip(logits.split(self.ROWS), target.split(self.ROWS), strict=True)
        ) / logits.numel()  # fmt: skip
        z = logits[: self.ROWS].double().requires_grad_()
        loss = written_out64(z, target[: self.ROWS], reduction="sum") / logits.numel()
        self.grad = torch.autograd.grad(loss, z)[0]
        z = z.detach() / T
        self.spread = float((z.amax(1) - z.amin(1)).max())

    def error(self, result: list[Tensor]) -> float:
        loss, *grads = result
        error = float((loss.double() - self.loss).abs() / self.loss.abs())
        if grads:
            error = max(error, float((grads[0][: self.ROWS].double() - self.grad).abs().max() / self.grad.abs().max()))
        return error

    def budget(self, fused: bool) -> float:
        acc, eps = torch.finfo(torch.float32).eps, torch.finfo(self.dtype).eps
        relative = acc * (4 * self.spread + self.case.classes / 8 + 30)
        if fused:
            return relative + eps / 2
        return relative + eps * (self.spread + 6) + acc / 2 * self.case.rows * self.case.classes / 16


def written_out64(z: Tensor, target: Tensor, reduction: str) -> Tensor:
    target = target.double() if target.is_floating_point() else F.one_hot(target, z.shape[1]).double()
    return F.mse_loss((z.double() / T).softmax(1), target, reduction=reduction)


def account(case: SquaredError, device: str) -> tuple[cost.Launch, ...]:
    """What the fused loss moves: on the CPU the gradient comes out of the pass that reads the logits."""
    dtype, kind = getattr(torch, case.dtype), "probabilities" if case.soft else "index"
    forward = cost.forward(case.rows, case.classes, dtype, target=kind)
    if device != "cpu":
        return forward + (cost.backward(case.rows, case.classes, dtype, target=kind) if case.backward else ())
    size = case.rows * case.classes
    read = size * (dtype.itemsize + (4 if case.soft else 0))
    return (cost.Launch("native", read, size * dtype.itemsize if case.backward else 0, forward[1].flops),)


BENCHMARK = Benchmark("tempered_mse", __doc__, CASES, prepare, compiled=True)

if __name__ == "__main__":
    run_alone("tempered_mse")
