"""Gram matrices in float64, from activations and weights as networks have them, read in place.

The baseline is torch's product in float64, whose accuracy the exact mode matches; the same product in the data's own
precision is what a user in a hurry would write, and its error is in the table too. BLAS syrk does half the products.
A dual product is checked as the full matrix that is promised, an accumulated state by its lower triangle and its sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import peers
import torch
from fastrank.kernels.cost import Launch
from fastrank.kernels.gram import cost, depth, gram_accumulate_, gram_dual
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

U = 2.0**-53
#: Mean of the data of a shifted case, in units of its spread.
OFFSET = 1000.0


@dataclass(frozen=True, kw_only=True)
class Product(Case):
    """`accumulate` X^T X of X [n, d] into a state, `dual` X X^T, or `channels`: X is [images, d, n / images].

    With `shift` the columns' mean is OFFSET times their spread, and about as much is subtracted (not from a dual).
    """

    kind: str
    n: int
    d: int
    images: int = 0
    dtype: str = "float32"
    shift: bool = False

    @property
    def title(self) -> str:
        shape = f"{self.images} x {self.d} x {self.n // self.images}" if self.images else f"{self.n} x {self.d}"
        return f"{self.kind} {shape} {self.dtype}{' shifted' if self.shift else ''}"


def accumulate(n: int, d: int, where: str, **options) -> Product:
    return Product(kind="accumulate", n=n, d=d, where=where, **options)


def dual(n: int, d: int, where: str, **options) -> Product:
    return Product(kind="dual", n=n, d=d, where=where, **options)


def channels(images: int, d: int, pixels: int, where: str, **options) -> Product:
    return Product(kind="channels", n=images * pixels, d=d, images=images, where=where, **options)


CASES = (
    dual(128, 2048, "flattened activations, CIFAR ResNet-18 layer 4 (batch x features)"),
    dual(128, 8192, "CIFAR ResNet-18 layer 3", quick=True),
    dual(128, 10_000, "the most features of a layer that are tracked"),
    dual(256, 10_000, "the same, batch of 256, mixed precision", dtype="bfloat16"),
    dual(512, 4608, "weight of a 3x3 convolution, 512 -> 512"),
    channels(64, 64, 1024, "CIFAR ResNet-18 layer 1, channels in place", quick=True),
    channels(64, 512, 16, "CIFAR ResNet-18 layer 4, channels in place"),
    channels(32, 256, 784, "ImageNet ResNet-50 layer 1, channels in place"),
    accumulate(1024, 512, "penultimate features, CIFAR", quick=True),
    accumulate(4096, 512, "features far from zero: mean 1000, spread 1", quick=True, shift=True),
    accumulate(2048, 2048, "penultimate features, ImageNet ResNet-50"),
    accumulate(25_000, 1000, "logits of ImageNet, a quarter of the 100,000 samples"),
    accumulate(100_000, 100, "logits of CIFAR-100, twice over"),
    channels(256, 256, 3136, "ImageNet ResNet-50 layer 1, batch 256", devices=("cuda",)),
    accumulate(100_000, 1000, "logits of 100,000 ImageNet samples", devices=("cuda",), quick=True),
)


def prepare(case: Product, device: str) -> Problem:
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)
    shape = (case.images, case.d, case.n // case.images) if case.images else (case.n, case.d)
    X = torch.randn(shape, generator=generator)
    X = (X + OFFSET if case.shift else (X + 0.5).relu()).to(device, dtype)
    # Another one for each column, and none that float32 holds: a subtraction in float32 would show.
    shift = OFFSET + torch.linspace(-0.3, 0.3, case.d, dtype=torch.float64, device=device) if case.shift else None
    # Rows that are summed over, columns that are multiplied with each other.
    rows, columns = (case.d, case.n) if case.kind == "dual" else (case.n, case.d)
    truth = product(X, case.kind, torch.float64, shift)
    scale = truth.diagonal().sqrt()
    sums = None if case.kind == "dual" else column_sums(X, case.kind, shift)

    def full(G: Tensor) -> float:
        return float(((G.double() - truth).abs() / scale[:, None] / scale).max())

    def lower(G: Tensor) -> float:
        return full(G.double().tril() + truth.triu(1))  # the rest of a triangle's matrix may hold anything

    def state(result: tuple[Tensor, Tensor]) -> float:
        G, total = result
        of_total = float(((total - sums[0]).abs() / sums[1]).max())
        return max(lower(G), of_total, key=lambda error: (math.isnan(error), error))  # a NaN is the largest

    # A priori: |X|^T |X|, which the diagonal's roots bound, times n roundings and those of two subtractions.
    theirs = (rows + 2) * U
    contenders = {
        "torch float64": Contender(lambda: product(X, case.kind, torch.float64, shift), full, 2 * theirs),
        f"torch {case.dtype}": Contender(lambda: product(X, case.kind, dtype, shift), full),
    }
    contenders |= {name: Contender(run, lower, 2 * theirs) for name, run in syrk(case, X, device, shift).items()}
    for mode in ("exact", "fast"):
        budget = depth(rows, columns, dtype, mode, torch.device(device).type).factor() + theirs
        launches = account(case, rows, columns, mode, device)
        judge = full if case.kind == "dual" else state
        contenders[f"fastrank {mode}"] = Contender(ours(case, X, mode, shift), judge, budget, True, launches)
    unit = "largest |G - truth|_ij / sqrt(truth_ii truth_jj)"
    return Problem(contenders, unit if case.kind == "dual" else unit + ", or |total - truth|_j / sum_i |x_ij|")


def product(X: Tensor, kind: str, dtype: torch.dtype, shift: Tensor | None = None) -> Tensor:
    """What a user would write: a copy of the rows where they are not rows, then a product."""
    if kind == "dual":
        Y = X.to(dtype)
        return Y @ Y.T
    Y = as_rows(X, kind, dtype, shift)
    return Y.T @ Y


def as_rows(X: Tensor, kind: str, dtype: torch.dtype, shift: Tensor | None) -> Tensor:
    Y = (X.transpose(1, 2).reshape(-1, X.shape[1]) if kind == "channels" else X).to(dtype)
    return Y if shift is None else Y - shift.to(dtype)


def column_sums(X: Tensor, kind: str, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of the rows less the shift, and of their absolute values, which the error of a sum is relative to."""
    Y = as_rows(X, kind, torch.float64, shift)
    return Y.sum(0), Y.abs().sum(0)


def ours(case: Product, X: Tensor, mode: str, shift: Tensor | None) -> Callable[[], Tensor | tuple[Tensor, Tensor]]:
    if case.kind == "dual":
        return lambda: gram_dual(X, mode)
    G = torch.zeros(case.d, case.d, dtype=torch.float64, device=X.device)
    total = torch.zeros(case.d, dtype=torch.float64, device=X.device)

    def run() -> tuple[Tensor, Tensor]:
        G.zero_()  # so that every call can be checked; an accumulating user pays less
        total.zero_()
        gram_accumulate_(G, total, X, shift, mode)
        return G, total

    return run


def syrk(case: Product, X: Tensor, device: str, shift: Tensor | None) -> dict[str, Callable[[], Tensor]]:
    """float64 syrk of BLAS, conversion included: SciPy's on the CPU, cuBLAS through CuPy on a GPU."""

    def rows() -> Tensor:
        return as_rows(X, case.kind, torch.float64, shift)

    kind = torch.device(device).type
    if peers.load("scipy", kind):
        from scipy.linalg.blas import dsyrk

        # A row-major matrix is its transpose to Fortran: `trans` and the triangle swap, and nothing is copied.
        trans = case.kind == "dual"
        return {"scipy dsyrk": lambda: torch.from_numpy(dsyrk(1.0, rows().numpy().T, trans=trans, lower=0).T)}
    if cupy := peers.load("CuPy", kind):
        from cupy import cublas

        def run() -> Tensor:
            Y = cupy.from_dlpack(rows())
            return torch.from_dlpack(cublas.syrk("N" if case.kind == "dual" else "T", Y, lower=True))

        return {"CuPy dsyrk": run}
    return {}


def account(case: Product, rows: int, columns: int, mode: str, device: str) -> tuple[Launch, ...]:
    """On the CPU what the algorithm needs: X read once, the triangle read and written; half of the products."""
    dtype = getattr(torch, case.dtype)
    if torch.device(device).type != "cpu":
        if case.kind == "dual":
            return cost.dual(case.n, case.d, dtype, mode)
        return cost.accumulate(case.n, case.d, dtype, mode, shift=case.shift)
    unit = "fp32" if mode == "fast" and dtype != torch.float64 else "fp64"
    triangle = columns * (columns + 1) // 2
    return (
        Launch("native", rows * columns * dtype.itemsize + 8 * triangle, 8 * triangle, {unit: 2 * rows * triangle}),
    )


BENCHMARK = Benchmark("gram", __doc__, CASES, prepare, peers=("scipy", "CuPy"))

if __name__ == "__main__":
    run_alone("gram")
