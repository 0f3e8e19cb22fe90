"""Tempered cross-entropy, forward and backward: this package against eager torch, one process, taken in turn.

python benchmarks/bench_tempered_ce.py [--device cpu|cuda] [--dtype float32] [--shape 1024x1000 ...] [--compile]
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from fastrank.kernels.tempered_ce import tempered_cross_entropy
from harness import compare, environment, table

T = 100.0


def eager(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits / T, target)


def ours(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return tempered_cross_entropy(logits, target, T)


def step(loss_of, logits: torch.Tensor, target: torch.Tensor, backward: bool):
    """One call as a training step makes it; returns loss and gradient."""
    if not backward:
        with torch.no_grad():
            return loss_of(logits, target), None
    loss = loss_of(logits, target)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def bench(rows: int, classes: int, dtype: torch.dtype, device: str, compiled: bool, seconds: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(rows, classes, generator=generator)).to(device, dtype).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator).to(device)
    losses = {"eager": eager, "fastrank": ours} | ({"compiled": torch.compile(eager)} if compiled else {})

    def check() -> None:
        truth, truth_grad = step(eager, logits.double(), target, backward=True)
        eps = torch.finfo(dtype).eps
        for name in ("fastrank",):
            loss, grad = step(losses[name], logits, target, backward=True)
            torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
            torch.testing.assert_close(grad.double(), truth_grad, rtol=max(eps, 1e-5), atol=eps * 1e-3 / rows)

    for backward in (False, True):
        print(f"\n{rows} x {classes} {str(dtype)[6:]} {device}, {'forward and backward' if backward else 'forward'}")
        runs = {name: (lambda f=f: step(f, logits, target, backward)) for name, f in losses.items()}
        print(table(compare(runs, check, seconds), baseline="eager"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float64", "float32", "bfloat16", "float16"])
    parser.add_argument("--shape", nargs="+", default=["256x10", "256x1000", "1024x1000", "256x21841"])
    parser.add_argument("--seconds", type=float, default=1.0, help="per contender and figure")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the eager loss")
    parser.add_argument("--threads", type=int, help="of torch and of the kernel (default: torch's)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(environment())
    for shape in options.shape:
        rows, classes = map(int, shape.split("x"))
        bench(rows, classes, getattr(torch, options.dtype), options.device, options.compile, options.seconds)


if __name__ == "__main__":
    main()
