"""Gram products on this machine: `python benchmarks/bench_gram.py [--seconds 1] [--only WORD]`.

Each case times ours beside what a user would write with torch: `addmm` in the data's own precision (fast, and wrong by
float32's rounding), and the float64 product (the accuracy of our exact mode). Ratios, not milliseconds, carry over.
"""

from __future__ import annotations

import argparse

import torch
from fastrank.kernels.gram import gram_accumulate_, gram_dual
from harness import compare, environment, table

from fastrank import GramState

#: n x d of an update: layers of a ResNet (channels) and of an MLP.
PRIMAL = [(8192, 64), (4096, 256), (2048, 512), (2048, 1024), (1024, 2048)]
#: n x d of a batch's flattened activations, n < d: once per layer and step.
DUAL = [(128, 2048), (128, 8192), (128, 10_000), (256, 8192)]
#: B, C, S of a convolution's output, read in place.
CHANNELS = [(64, 64, 1024), (64, 256, 64), (64, 512, 16)]


def primal(n: int, d: int, dtype: torch.dtype, seconds: float) -> None:
    X, shift = torch.randn(n, d).to(dtype), torch.zeros(d, dtype=torch.float64)
    G, total, G32 = torch.zeros(d, d).double(), torch.zeros(d).double(), torch.zeros(d, d, dtype=dtype)
    report(
        f"accumulate {n} x {d} {dtype}",
        {
            "addmm, own precision": lambda: torch.addmm(G32, X.T, X),
            "float64 product": lambda: X.double().T @ X.double(),
            "exact": lambda: gram_accumulate_(G, total, X, shift),
            "fast": lambda: gram_accumulate_(G, total, X, shift, "fast"),
        },
        seconds,
    )


def dual(n: int, d: int, dtype: torch.dtype, seconds: float) -> None:
    X = torch.randn(n, d).to(dtype)
    truth = X.double() @ X.double().T
    report(
        f"dual {n} x {d} {dtype}",
        {
            "mm, own precision": lambda: X @ X.T,
            "float64 product": lambda: X.double() @ X.double().T,
            "exact": lambda: gram_dual(X),
            "fast": lambda: gram_dual(X, "fast"),
        },
        seconds,
        check=lambda: torch.testing.assert_close(gram_dual(X), truth, rtol=1e-12, atol=1e-9),
    )


def channels(B: int, C: int, S: int, seconds: float) -> None:
    x = torch.randn(B, C, S)
    state = GramState(C).update_channels(x)
    rows = lambda: x.transpose(1, 2).reshape(-1, C)  # noqa: E731
    report(
        f"channels {B} x {C} x {S}",
        {
            "copy, addmm float32": lambda: rows().T @ rows(),
            "copy, float64 product": lambda: rows().double().T @ rows().double(),
            "exact, in place": lambda: state.update_channels(x),
        },
        seconds,
    )


def report(title: str, contenders: dict, seconds: float, check=lambda: None) -> None:
    results = compare(contenders, check, seconds)
    print(f"\n{title}\n{table(results, next(iter(contenders)))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="per contender and case")
    parser.add_argument("--only", choices=["accumulate", "dual", "channels"], help="one family of cases")
    arguments = parser.parse_args()
    print(environment())
    if arguments.only in (None, "dual"):
        for n, d in DUAL:
            dual(n, d, torch.float32, arguments.seconds)
        dual(128, 8192, torch.bfloat16, arguments.seconds)
    if arguments.only in (None, "accumulate"):
        for n, d in PRIMAL:
            primal(n, d, torch.float32, arguments.seconds)
        primal(2048, 512, torch.bfloat16, arguments.seconds)
    if arguments.only in (None, "channels"):
        for B, C, S in CHANNELS:
            channels(B, C, S, arguments.seconds)


if __name__ == "__main__":
    main()
