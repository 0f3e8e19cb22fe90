"""Gram matrices from activations and weights as networks have them, read in place, into float64 sums.

The baseline is what a user would write: `addmm_` into a float32 Gram matrix, of rows that are copied where they are not
rows (converted, permuted, unfolded, shifted). It sums in float32, so its error is in the table and not judged. BLAS
syrk does half the products. A dual product is checked as the full matrix that is promised, an accumulated state by its
lower triangle and its sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import peers
import torch
import torch.nn.functional as F
from fastrank.kernels.cost import Launch
from fastrank.kernels.gram import (
    DIGITS_BLOCK,
    Convolution,
    cost,
    cost_patches,
    depth,
    depth_patches,
    digits,
    gram_accumulate_,
    gram_dual,
    gram_dual_many,
    gram_patches_,
)
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

U = 2.0**-53
#: A number is rounded by 2^-23 of the largest in its column at most, DIGITS_BLOCK rows at a time, of which all others
#: may be far smaller: 2 sqrt(512) 2^-23 of a product of two columns.
ROUNDED = 2 * math.sqrt(DIGITS_BLOCK) * 2.0**-23
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


@dataclass(frozen=True, kw_only=True)
class Patches(Case):
    """The patches that a convolution sees in [images, channels, side, side]."""

    images: int
    channels: int
    side: int
    kernel: int = 3
    stride: int = 1

    @property
    def convolution(self) -> Convolution:
        return Convolution.of(self.kernel, self.stride, self.kernel // 2)

    @property
    def title(self) -> str:
        kernel = f"{self.kernel} x {self.kernel}{f' / {self.stride}' if self.stride > 1 else ''}"
        return f"patches {kernel} of {self.images} x {self.channels} x {self.side} x {self.side}"


@dataclass(frozen=True, kw_only=True)
class Group(Case):
    """Dual products of `count` matrices [n, d], in one call."""

    count: int
    n: int
    d: int

    @property
    def title(self) -> str:
        return f"dual {self.count} x ({self.n} x {self.d})"


def accumulate(n: int, d: int, where: str, **options) -> Product:
    return Product(kind="accumulate", n=n, d=d, where=where, **options)


def dual(n: int, d: int, where: str, **options) -> Product:
    return Product(kind="dual", n=n, d=d, where=where, **options)


def channels(images: int, d: int, pixels: int, where: str, **options) -> Product:
    return Product(kind="channels", n=images * pixels, d=d, images=images, where=where, **options)


CASES = (
    accumulate(8192, 2048, "penultimate features, ImageNet ResNet-50"),
    accumulate(4096, 1000, "logits of ImageNet", quick=True),
    accumulate(256, 2048, "penultimate features, a batch of 256"),
    *(
        accumulate(n, d, f"{d} features", quick=(n, d) in ((256, 10), (4096, 128)))
        for d in (10, 64, 128, 256, 512)
        for n in (256, 4096)
    ),
    accumulate(4096, 512, "features far from zero: mean 1000, spread 1", quick=True, shift=True),
    accumulate(4096, 512, "penultimate features, mixed precision", dtype="bfloat16"),
    accumulate(8192, 2048, "the same of ResNet-50", dtype="bfloat16"),
    accumulate(100_000, 100, "logits of CIFAR-100, twice over"),
    dual(128, 8192, "CIFAR ResNet-18 layer 3, flattened activations (batch x features)", quick=True),
    dual(128, 10_000, "the most features of a layer that are tracked"),
    dual(256, 10_000, "the same, batch of 256, mixed precision", dtype="bfloat16"),
    dual(512, 4608, "weight of a 3x3 convolution, 512 -> 512"),
    Group(count=54, n=32, d=8000, where="activations of all layers of ResNet-50", quick=True),
    channels(64, 64, 1024, "CIFAR ResNet-18 layer 1, channels in place", quick=True),
    channels(64, 512, 16, "CIFAR ResNet-18 layer 4, channels in place"),
    channels(32, 256, 784, "ImageNet ResNet-50 layer 1, channels in place"),
    Patches(images=32, channels=64, side=56, where="ImageNet ResNet-50 layer 1", quick=True),
    Patches(images=32, channels=128, side=28, where="layer 2"),
    Patches(images=32, channels=256, side=14, where="layer 3"),
    Patches(images=32, channels=512, side=7, where="layer 4"),
    Patches(images=32, channels=128, side=56, stride=2, where="the first of layer 2"),
    Patches(images=32, channels=3, side=224, kernel=7, stride=2, where="the stem"),
    channels(256, 256, 3136, "ImageNet ResNet-50 layer 1, batch 256", devices=("cuda",)),
    accumulate(100_000, 1000, "logits of 100,000 ImageNet samples", devices=("cuda",), quick=True),
)


def prepare(case: Product | Patches | Group, device: str) -> Problem:
    if isinstance(case, Patches):
        return prepare_patches(case, device)
    if isinstance(case, Group):
        return prepare_group(case, device)
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
    sums = None if case.kind == "dual" else column_sums(as_rows(X, case.kind, torch.float64, shift))
    of = Errors(truth, sums)

    # A priori: |X|^T |X|, which the diagonal's roots bound, times n roundings and those of two subtractions.
    theirs = (rows + 2) * U
    G32 = torch.zeros(columns, columns, device=device)

    def addmm() -> Tensor:
        Y = as_rows(X, case.kind, torch.float32, shift)
        G32.zero_()
        return G32.addmm_(Y, Y.T) if case.kind == "dual" else G32.addmm_(Y.T, Y)

    contenders = {
        "addmm_ float32": Contender(addmm, of.full),
        "torch float64": Contender(lambda: product(X, case.kind, torch.float64, shift), of.full, 2 * theirs),
    }
    contenders |= {
        f"{name} {precision}": Contender(run, of.lower, 2 * theirs if precision == "float64" else None)
        for precision in ("float32", "float64")
        for name, run in syrk(case, X, device, shift, precision).items()
    }
    for mode in ("exact", "fast"):
        budget = depth(rows, columns, dtype, mode, torch.device(device).type).factor() + theirs
        launches = account(case, rows, columns, mode, device)
        judge = of.full if case.kind == "dual" else of.state
        contenders[f"fastrank {mode}"] = Contender(ours(case, X, mode, shift), judge, budget, True, launches)
    if digits(torch.device(device)) and dtype != torch.float64:
        rounded = torch.zeros(1, dtype=torch.float64)
        contenders["fastrank fast, rounded"] = Contender(
            ours(case, X, "fast", shift, rounded), judge, ROUNDED + theirs, True
        )
    return Problem(contenders, of.unit)


def prepare_patches(case: Patches, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(case.images, case.channels, case.side, case.side, generator=generator) + 0.5).relu().to(device)
    convolution = case.convolution
    d = convolution.features(case.channels)

    def unfolded(x: Tensor) -> Tensor:
        P = F.unfold(x, case.kernel, 1, case.kernel // 2, case.stride)
        return P.transpose(1, 2).reshape(-1, d)

    truth, total, absolute = (torch.zeros(d, d, dtype=torch.float64, device=device), *torch.zeros(2, d).double())
    for image in x.double():
        P = unfolded(image[None])
        truth.addmm_(P.T, P)
        total += P.sum(0).cpu()
        absolute += P.abs().sum(0).cpu()
    of = Errors(truth, (total.to(device), absolute.to(device)))
    G32 = torch.zeros(d, d, device=device)

    def addmm() -> Tensor:
        P = unfolded(x)
        G32.zero_()
        return G32.addmm_(P.T, P)

    contenders = {"unfold, addmm_ float32": Contender(addmm, of.full)}
    rows = convolution.rows(x.shape)
    for mode in ("exact", "fast"):
        budget = depth_patches(tuple(x.shape), convolution, x.dtype, mode, x.device.type).factor() + (rows + 2) * U
        run = accumulating(d, device, lambda G, total, mode=mode: gram_patches_(G, total, x, convolution, None, mode))
        launches = ()
        if x.is_cuda:
            sides = [(side, side) for side in (case.side, case.kernel, case.kernel // 2, case.stride)]
            launches = cost_patches.patches(cost_patches.Patches(case.images, case.channels, *sides), mode=mode)
        contenders[f"fastrank {mode}"] = Contender(run, of.state, budget, True, launches)
    return Problem(contenders, of.unit)


def prepare_group(case: Group, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    X = [(torch.randn(case.n, case.d, generator=generator) + 0.5).relu().to(device) for _ in range(case.count)]
    errors = [Errors(product(x, "dual", torch.float64), None) for x in X]

    def worst(results: list[Tensor]) -> float:
        return max(of.full(K) for of, K in zip(errors, results, strict=True))

    def loop() -> list[Tensor]:
        return [A.double() @ A.double().T for A in X]

    theirs = (case.d + 2) * U
    contenders = {"torch float64, one by one": Contender(loop, worst, 2 * theirs)}
    for mode in ("exact", "fast"):
        budget = depth(case.d, case.n, torch.float32, mode, torch.device(device).type).factor() + theirs
        contenders[f"fastrank {mode}, one by one"] = Contender(
            lambda mode=mode: [gram_dual(x, mode) for x in X], worst, budget, True
        )
        contenders[f"fastrank {mode}"] = Contender(lambda mode=mode: gram_dual_many(X, mode), worst, budget, True)
    return Problem(contenders, errors[0].unit)


class Errors:
    """Distances from the true Gram matrix and the true column sums (with those of absolute values; not of a dual)."""

    def __init__(self, truth: Tensor, sums: tuple[Tensor, Tensor] | None) -> None:
        self.truth, self.sums = truth, sums
        self.scale = truth.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        unit = "largest |G - truth|_ij / sqrt(truth_ii truth_jj)"
        self.unit = unit if sums is None else unit + ", or |total - truth|_j / sum_i |x_ij|"

    def full(self, G: Tensor) -> float:
        return float(((G.double() - self.truth).abs() / self.scale[:, None] / self.scale).max())

    def lower(self, G: Tensor) -> float:
        return self.full(G.double().tril() + self.truth.triu(1))  # the rest of a triangle's matrix may hold anything

    def state(self, result: tuple[Tensor, Tensor]) -> float:
        G, total = result
        of_total = float(((total - self.sums[0]).abs() / self.sums[1]).max())
        return max(self.lower(G), of_total, key=lambda error: (math.isnan(error), error))  # a NaN is the largest


def product(X: Tensor, kind: str, dtype: torch.dtype, shift: Tensor | None = None) -> Tensor:
    Y = as_rows(X, kind, dtype, shift)
    return Y @ Y.T if kind == "dual" else Y.T @ Y


def as_rows(X: Tensor, kind: str, dtype: torch.dtype, shift: Tensor | None) -> Tensor:
    Y = (X.transpose(1, 2).reshape(-1, X.shape[1]) if kind == "channels" else X).to(dtype)
    return Y if shift is None else Y - shift.to(dtype)


def column_sums(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Of the numbers and of their absolute values, which the error of a sum is relative to."""
    return Y.sum(0), Y.abs().sum(0)


def ours(
    case: Product, X: Tensor, mode: str, shift: Tensor | None, rounded: Tensor | None = None
) -> Callable[[], Tensor | tuple[Tensor, Tensor]]:
    if case.kind == "dual":
        return lambda: gram_dual(X, mode) if rounded is None else gram_dual_many([X], mode, rounded=rounded)[0]
    return accumulating(case.d, X.device, lambda G, total: gram_accumulate_(G, total, X, shift, mode, rounded=rounded))


def accumulating(d: int, device: str, add: Callable[[Tensor, Tensor], None]) -> Callable[[], tuple[Tensor, Tensor]]:
    G = torch.zeros(d, d, dtype=torch.float64, device=device)
    total = torch.zeros(d, dtype=torch.float64, device=device)

    def run() -> tuple[Tensor, Tensor]:
        G.zero_()  # so that every call can be checked; an accumulating user pays less
        total.zero_()
        add(G, total)
        return G, total

    return run


def syrk(
    case: Product, X: Tensor, device: str, shift: Tensor | None, precision: str
) -> dict[str, Callable[[], Tensor]]:
    """syrk of BLAS, conversion included: SciPy's (OpenBLAS) on the CPU, cuBLAS through CuPy on a GPU."""

    def rows() -> Tensor:
        return as_rows(X, case.kind, getattr(torch, precision), shift)

    kind = torch.device(device).type
    if peers.load("scipy", kind):
        from scipy.linalg.blas import dsyrk, ssyrk

        # A row-major matrix is its transpose to Fortran: `trans` and the triangle swap, and nothing is copied.
        trans, function = case.kind == "dual", ssyrk if precision == "float32" else dsyrk
        return {"scipy syrk": lambda: torch.from_numpy(function(1.0, rows().numpy().T, trans=trans, lower=0).T)}
    if cupy := peers.load("CuPy", kind):
        from cupy import cublas

        def run() -> Tensor:
            Y = cupy.from_dlpack(rows())
            return torch.from_dlpack(cublas.syrk("N" if case.kind == "dual" else "T", Y, lower=True))

        return {"CuPy syrk": run}
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
