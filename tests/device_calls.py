"""One small call of every op on a device: what the checks of streams and graphs and the sanitizers run.

A new op joins by one entry in `CALLS`. `python tests/device_calls.py [DEVICE]` runs them all once, for
compute-sanitizer.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from fastrank.kernels.gram import Convolution, gram_accumulate_, gram_dual, gram_dual_many, gram_patches_
from fastrank.kernels.tempered_ce import tempered_cross_entropy
from fastrank.kernels.tempered_mse import tempered_mse
from torch import Tensor

#: Where tests/device runs. "cpu" takes the same tests over the CPU's kernels, to try the tests themselves.
DEVICE = os.environ.get("FASTRANK_TEST_DEVICE", "cuda")
MISSING = "" if DEVICE == "cpu" or torch.cuda.is_available() else "no CUDA device (tests/device needs one)"


@dataclass(frozen=True)
class Call:
    """`inputs(generator)` on the CPU, `run(*inputs)` on the device, which must only launch: no look at the data."""

    name: str
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
    run: Callable[..., tuple[Tensor, ...]]

    def inputs_on(self, device: str, seed: int = 0) -> tuple[Tensor, ...]:
        moved = tuple(x.to(device) for x in self.inputs(torch.Generator().manual_seed(seed)))
        return tuple(x.requires_grad_() if x.is_floating_point() else x for x in moved)


def loss(rows: int, classes: int, dtype: torch.dtype, backward: bool, temperature: bool = False, **options) -> Call:
    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        z = 3 * torch.randn(rows, classes, generator=generator)
        y = torch.randint(classes, (rows,), generator=generator)
        T = 0.5 + torch.rand(rows, generator=generator)
        return (z.to(dtype), y, T) if temperature else (z.to(dtype), y)

    def run(z: Tensor, y: Tensor, T: Tensor | float = 2.0) -> tuple[Tensor, ...]:
        if not backward:
            with torch.no_grad():
                value, stats = tempered_cross_entropy(z, y, T, return_stats=True, **options)
            return value, *stats
        value = tempered_cross_entropy(z, y, T, **options)
        return value.detach(), *torch.autograd.grad(value.sum(), [x for x in (z, T) if isinstance(x, Tensor)])

    kind = "forward, backward" if backward else "forward, statistics"
    extra = "".join(f", {name}={value}" for name, value in options.items()) + ", T per row" * temperature
    return Call(f"tempered_ce {rows} x {classes} {str(dtype)[6:]} {kind}{extra}", inputs, run)


def squared_error(rows: int, classes: int, dtype: torch.dtype, soft: bool = False, **options) -> Call:
    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        z = 3 * torch.randn(rows, classes, generator=generator)
        y = torch.randint(classes, (rows,), generator=generator)
        return z.to(dtype), torch.rand(rows, classes, generator=generator) if soft else y

    def run(z: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        value = tempered_mse(z, target.detach(), 2.0, **options)
        return value.detach(), *torch.autograd.grad(value.sum(), z)

    extra = "".join(f", {name}={value}" for name, value in options.items()) + ", probabilities" * soft
    return Call(f"tempered_mse {rows} x {classes} {str(dtype)[6:]}{extra}", inputs, run)


def accumulate(n: int, d: int, dtype: torch.dtype, mode: str, images: int = 0) -> Call:
    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        X = torch.randn(n, d, generator=generator).to(dtype)
        X = X.view(images, -1, d).transpose(1, 2).contiguous() if images else X
        return X, torch.randn(d, generator=generator, dtype=torch.float64)

    def run(X: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        G, total = shift.new_zeros(d, d), shift.new_zeros(d)
        gram_accumulate_(G, total, X, shift.detach(), mode)
        return G, total

    return Call(f"gram_accumulate_ {n} x {d} {str(dtype)[6:]} {mode}{' channels' * bool(images)}", inputs, run)


def dual(n: int, d: int, dtype: torch.dtype, mode: str) -> Call:
    return Call(
        f"gram_dual {n} x {d} {str(dtype)[6:]} {mode}",
        lambda generator: (torch.randn(n, d, generator=generator).to(dtype),),
        lambda X: (gram_dual(X, mode),),
    )


def dual_many(sizes: tuple[tuple[int, int], ...], mode: str) -> Call:
    return Call(
        f"gram_dual_many of {len(sizes)} {mode}",
        lambda generator: tuple(torch.randn(size, generator=generator) for size in sizes),
        lambda *X: tuple(gram_dual_many(list(X), mode)),
    )


def patches(size: tuple[int, ...], convolution: Convolution, mode: str) -> Call:
    channels = size[1] // convolution.groups

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        return torch.randn(size, generator=generator), torch.randn(channels, generator=generator, dtype=torch.float64)

    def run(x: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        d = convolution.features(size[1])
        G, total = shift.new_zeros(d, d), shift.new_zeros(d)
        gram_patches_(G, total, x, convolution, shift.detach(), mode)
        return G, total

    return Call(f"gram_patches_ {'x'.join(map(str, size))} stride {convolution.stride[0]} {mode}", inputs, run)


F64, F32, B16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
#: Odd sizes: one and several tiles, one and several splits, every dtype and mode.
CALLS = (
    *(loss(7, c, dtype, True) for c, dtype in ((10, F32), (94, B16), (1000, F16), (1025, F64), (9001, F32))),
    loss(33, 130, F32, True, temperature=True, label_smoothing=0.1),
    loss(33, 130, B16, True, reduction="none"),
    loss(20, 1001, F32, False),
    *(squared_error(7, c, dtype) for c, dtype in ((10, F32), (94, B16), (1000, F16), (1025, F64))),
    squared_error(5, 4500, F32, soft=True, reduction="none"),
    *(accumulate(n, d, F32, mode) for (n, d), mode in itertools.product(((3, 17), (2600, 70)), ("exact", "fast"))),
    *(accumulate(257, 100, dtype, "exact") for dtype in (F64, B16, F16)),
    accumulate(5 * 49, 33, F32, "exact", images=5),
    *(dual(n, d, F32, mode) for (n, d), mode in itertools.product(((17, 300), (70, 2600)), ("exact", "fast"))),
    *(dual_many(((17, 300), (70, 2600), (5, 3)), mode) for mode in ("exact", "fast")),
    *(patches((2, 40, 7, 9), Convolution.of(3, s, 1), mode) for s, mode in ((1, "exact"), (1, "fast"), (2, "fast"))),
)


def main(device: str) -> None:
    for call in CALLS:
        call.run(*call.inputs_on(device))
        print(call.name, flush=True)
    if device != "cpu":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
