"""What tracking adds to a training step: tracked and untracked steps take turns in one process.

python benchmarks/bench_tracking.py --model resnet18 --image 32 --batch 128
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported; see fastrank/cli.py

import timm
import torch
from harness import environment

import fastrank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=94)
    parser.add_argument("--steps", type=int, default=15, help="pairs of steps")
    args = parser.parse_args()
    print(environment())
    for preset in ("light", "default"):
        untracked, tracked, cost = measure(args, preset)
        ratio = statistics.median(tracked) / statistics.median(untracked) - 1
        print(
            f"{args.model} {args.image} px, batch {args.batch}, metrics={preset}: untracked {spread(untracked)}, "
            f"tracked {spread(tracked)}, tracking adds {ratio:+.0%}"
        )
        print("  ms per step: " + ", ".join(f"{kind} {ms:.1f}" for kind, ms in cost.items() if kind != "share"))


def measure(args: argparse.Namespace, preset: str) -> tuple[list[float], list[float], dict[str, float]]:
    """Seconds of `steps` untracked and `steps` tracked training steps in turns, and the watcher's own account."""
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=args.classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    criterion = fastrank.TemperedCE(T=100)
    x, y = torch.randn(args.batch, 3, args.image, args.image), torch.randint(args.classes, (args.batch,))
    seconds: tuple[list[float], list[float]] = ([], [])
    with fastrank.watch(model, metrics=preset, T=100) as w:
        for step in range(2 * args.steps + 4):
            on = step % 2
            w.resume() if on else w.pause()
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            w.step(target=y, loss=loss)
            if step >= 4:  # the first ones allocate, and start the subspaces cold
                seconds[on].append(time.perf_counter() - start)
        return *seconds, w.cost()


def spread(seconds: list[float]) -> str:
    low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
    return f"{middle:.0f} ms ({low:.0f} .. {high:.0f})"


if __name__ == "__main__":
    main()
