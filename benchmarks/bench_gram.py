"""Gram matrices in float64, from activations and weights as networks have them, read in place.

The baseline is torch's product in float64, whose accuracy the exact mode matches; the same product in the data's own
precision is what a user in a hurry would write, and its error is in the table too. BLAS syrk does half the products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import peers
import torch
from fastrank.kernels.cost import Launch
from fastrank.kernels.gram import cost, depth, gram_accumulate_, gram_dual
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

U = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


@dataclass(frozen=True, kw_only=True)
class Product(Case):
    """`accumulate` X^T X of X [n, d] into a state, `dual` X X^T, or `channels`: X is [images, d, n / images]."""

    kind: str
    n: int
    d: int
    images: int = 0
    dtype: str = "float32"

    @property
    def title(self) -> str:
        shape = f"{self.images} x {self.d} x {self.n // self.images}" if self.images else f"{self.n} x {self.d}"
        return f"{self.kind} {shape} {self.dtype}"


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
    X = (torch.randn(shape, generator=generator) + 0.5).relu().to(device, dtype)
    # Rows that are summed over, columns that are multiplied with each other.
    rows, columns = (case.d, case.n) if case.kind == "dual" else (case.n, case.d)
    truth = product(X, case.kind, torch.float64)
    scale = truth.diagonal().sqrt()

    def error(G: Tensor) -> float:
        distance = (G.double() - truth).abs() / scale[:, None] / scale
        return float(distance.tril().max())

    theirs = rows * U[torch.float64]  # a priori: |X|^T |X| times n roundings, which the diagonal's roots bound
    contenders = {
        "torch float64": Contender(lambda: product(X, case.kind, torch.float64), error, 2 * theirs),
        f"torch {case.dtype}": Contender(lambda: product(X, case.kind, dtype), error),
    }
    contenders |= {name: Contender(run, error, 2 * theirs) for name, run in syrk(case, X, device).items()}
    for mode in ("exact", "fast"):
        budget = depth(rows, columns, dtype, mode, torch.device(device).type).factor() + theirs
        launches = account(case, rows, columns, mode, device)
        contenders[f"fastrank {mode}"] = Contender(ours(case, X, mode), error, budget, True, launches)
    return Problem(contenders, "largest |G - truth|_ij / sqrt(truth_ii truth_jj)")


def product(X: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """What a user would write: a copy of the rows where they are not rows, then a product."""
    if kind == "dual":
        Y = X.to(dtype)
        return Y @ Y.T
    Y = (X.transpose(1, 2).reshape(-1, X.shape[1]) if kind == "channels" else X).to(dtype)
    return Y.T @ Y


def ours(case: Product, X: Tensor, mode: str) -> Callable[[], Tensor]:
    if case.kind == "dual":
        return lambda: gram_dual(X, mode)
    G = torch.zeros(case.d, case.d, dtype=torch.float64, device=X.device)
    total = torch.zeros(case.d, dtype=torch.float64, device=X.device)

    def run() -> Tensor:
        G.zero_()  # so that every call can be checked; an accumulating user pays less
        gram_accumulate_(G, total, X, None, mode)
        return G

    return run


def syrk(case: Product, X: Tensor, device: str) -> dict[str, Callable[[], Tensor]]:
    """float64 syrk of BLAS, conversion included: SciPy's on the CPU, cuBLAS through CuPy on a GPU."""

    def rows() -> Tensor:
        return X.transpose(1, 2).reshape(-1, case.d).double() if case.kind == "channels" else X.double()

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
    if device != "cpu":
        return (cost.dual if case.kind == "dual" else cost.accumulate)(case.n, case.d, dtype, mode)
    unit = "fp32" if mode == "fast" and dtype != torch.float64 else "fp64"
    triangle = columns * (columns + 1) // 2
    return (
        Launch("native", rows * columns * dtype.itemsize + 8 * triangle, 8 * triangle, {unit: 2 * rows * triangle}),
    )


BENCHMARK = Benchmark("gram", __doc__, CASES, prepare, peers=("scipy", "CuPy"))

if __name__ == "__main__":
    run_alone("gram")
