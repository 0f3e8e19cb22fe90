"""Spectra and ranks, against torch.linalg and SciPy.

A spectrum is held to the float64 singular values within its own bound, a rank to its own interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import peers
import torch
from fastrank.kernels.cost import Launch
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

import fastrank

#: What the float64 truth itself may err, relative to sigma_1.
TRUTH = 1e-12


@dataclass(frozen=True, kw_only=True)
class Matrix(Case):
    """What is asked (`kind`: spectrum or rank) of the matrices of one call; singular values fall as i^-decay."""

    kind: str
    shapes: tuple[tuple[int, int], ...]
    decay: float = 1.0

    @property
    def title(self) -> str:
        sizes = " x ".join(map(str, self.shapes[0])) if len(self.shapes) == 1 else f"{len(self.shapes)} matrices"
        return f"{self.kind} of {sizes}"


#: Weights [out, in * kh * kw] of a CIFAR ResNet-18: its convolutions and its head.
RESNET18 = (
    (64, 27), *[(64, 576)] * 4, (128, 576), *[(128, 1152)] * 3, (128, 64), (256, 1152), *[(256, 2304)] * 3, (256, 128),
    (512, 2304), *[(512, 4608)] * 3, (512, 256), (94, 512),
)  # fmt: skip

CASES = (
    Matrix(kind="spectrum", shapes=((64, 576),), where="weight of a 3x3 convolution, 64 -> 64", quick=True),
    Matrix(kind="spectrum", shapes=((128, 8192),), where="activations of a CIFAR ResNet-18, batch 128"),
    Matrix(kind="spectrum", shapes=((256, 10_000),), where="activations, batch 256, 10,000 features"),
    Matrix(kind="spectrum", shapes=((512, 4608),), where="weight of a 3x3 convolution, 512 -> 512"),
    Matrix(kind="spectrum", shapes=((1000, 2048),), where="ImageNet ResNet-50's head"),
    Matrix(kind="spectrum", shapes=RESNET18, where="all weights of a CIFAR ResNet-18"),
    Matrix(kind="rank", shapes=((128, 8192),), decay=2.0, where="activations of a CIFAR ResNet-18", quick=True),
    Matrix(kind="rank", shapes=((100_000, 1000),), decay=2.0, where="logits of 100,000 ImageNet samples"),
)


def prepare(case: Matrix, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    matrices = [decaying(n, d, case.decay, generator).to(device) for n, d in case.shapes]
    truths = [singular_values(A) for A in matrices]
    kind = torch.device(device).type
    if case.kind == "rank":
        return Problem(ranks(case, matrices, truths), "counts outside the interval given")

    def distance(sigmas: list[Tensor]) -> float:
        pairs = zip(sigmas, truths, strict=True)
        return max(float((s.double().to(t.device) - t[: len(s)]).abs().max() / t[0]) for s, t in pairs)

    return Problem(spectra(case, matrices, distance, kind), "largest |sigma - truth| / sigma_1")


def decaying(n: int, d: int, decay: float, generator: torch.Generator) -> Tensor:
    """float32 [n, d] with singular values falling about as i^-decay, as trained layers have them."""
    k = min(n, d)
    scale = torch.arange(1, k + 1, dtype=torch.float32).pow(-decay)
    mix = torch.linalg.qr(torch.randn(k, k, generator=generator))[0]
    noise = torch.randn(max(n, d), k, generator=generator)
    return noise * scale @ mix if n >= d else mix * scale @ noise.T


def singular_values(A: Tensor) -> Tensor:
    """In float64, directly; of a tall or wide matrix by way of the triangle of its QR, as stable and less work."""
    B = A.double() if len(A) >= A.shape[1] else A.double().T
    if len(B) > 2 * B.shape[1]:
        B = torch.linalg.qr(B, mode="r")[1]
    return torch.linalg.svdvals(B)


def spectra(case: Matrix, matrices: list[Tensor], distance: Callable, device: str) -> dict[str, Contender]:
    # svdvals is backward stable: a modest multiple of eps, for which max(n, d) stands (torch's own default tolerance).
    stable = max(max(A.shape) for A in matrices) * torch.finfo(torch.float32).eps
    bound = max(float(s.bound.max() / s.sigma[0]) for s in fastrank.spectrum(matrices)) + TRUTH
    contenders = {
        "torch.linalg.svdvals": each(torch.linalg.svdvals, matrices, distance, stable),
        "torch svdvals float64": each(lambda A: torch.linalg.svdvals(A.double()), matrices, distance, TRUTH, slow=True),
        "torch Gram, eigvalsh float64": each(by_hand, matrices, distance),
    }
    if peers.load("scipy", device):
        from scipy.linalg import svdvals

        run = lambda A: torch.from_numpy(svdvals(A.numpy(), check_finite=False))  # noqa: E731
        contenders["scipy svdvals"] = each(run, matrices, distance, stable, slow=True)
    if cupy := peers.load("CuPy", device):
        run = lambda A: torch.from_dlpack(cupy.linalg.svd(cupy.from_dlpack(A), compute_uv=False))  # noqa: E731
        contenders["CuPy (cuSOLVER) svd"] = each(run, matrices, distance, stable)
    mine = lambda found: distance([s.sigma for s in found])  # noqa: E731
    contenders["fastrank"] = Contender(lambda: fastrank.spectrum(matrices), mine, bound, True, account(case))
    return contenders


def ranks(case: Matrix, matrices: list[Tensor], truths: list[Tensor]) -> dict[str, Contender]:
    (A,), (truth,) = matrices, truths
    tolerance = max(A.shape) * torch.finfo(A.dtype).eps * truth[0]
    count = int((truth > tolerance).sum())
    return {
        "torch.linalg.matrix_rank": Contender(lambda: torch.linalg.matrix_rank(A), lambda r: abs(int(r) - count)),
        "fastrank": Contender(
            lambda: fastrank.matrix_rank(A), lambda r: max(r.lo - count, count - r.hi, 0), 0.0, True, account(case)
        ),
    }


def each(function: Callable, matrices: list[Tensor], error: Callable, budget=None, slow: bool = False) -> Contender:
    return Contender(lambda: [function(A) for A in matrices], error, budget, slow=slow)


def by_hand(A: Tensor) -> Tensor:
    B = A.double() if len(A) >= A.shape[1] else A.double().T
    return torch.linalg.eigvalsh(B.T @ B).clamp_min(0).sqrt().flip(0)


def account(case: Matrix) -> tuple[Launch, ...]:
    """Reading each matrix once, half of its Gram products, and 4/3 k^3 for the eigenvalues (tridiagonal reduction)."""
    read = sum(4 * n * d for n, d in case.shapes)
    work = sum(n * d * min(n, d) + 4 * min(n, d) ** 3 // 3 for n, d in case.shapes)
    return (Launch("spectrum", read, 8 * sum(min(shape) for shape in case.shapes), {"fp64": work}),)


BENCHMARK = Benchmark("rank", __doc__, CASES, prepare, peers=("scipy", "CuPy"))

if __name__ == "__main__":
    run_alone("rank")
