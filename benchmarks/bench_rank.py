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

BATCH = 1024
#: sigma / sigma_1 that a fast Gram matrix resolves (GramState.floor); torch's tolerance is above it from 35,000 rows.
FAST_FLOOR = 4e-3
#: What the float64 truth itself may err, relative to sigma_1.
TRUTH = 1e-12


@dataclass(frozen=True, kw_only=True)
class Matrix(Case):
    """What is asked (`kind`) of the matrices of one call, whose singular values fall as i^-decay.

    kind: spectrum, rank, or `stream` (the rank of rows that come in batches of BATCH).
    """

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

#: Weights of ResNet-50, [out, in * kh * kw].
RESNET50 = (
    (64, 147), (64, 64), (64, 576), (256, 64), (256, 64), *[(64, 256), (64, 576), (256, 64)] * 2,
    (128, 256), (128, 1152), (512, 128), (512, 256), *[(128, 512), (128, 1152), (512, 128)] * 3,
    (256, 512), (256, 2304), (1024, 256), (1024, 512), *[(256, 1024), (256, 2304), (1024, 256)] * 5,
    (512, 1024), (512, 4608), (2048, 512), (2048, 1024), *[(512, 2048), (512, 4608), (2048, 512)] * 2, (1000, 2048),
)  # fmt: skip

CASES = (
    Matrix(kind="spectrum", shapes=((64, 576),), where="weight of a 3x3 convolution, 64 -> 64", quick=True),
    Matrix(kind="spectrum", shapes=((128, 8192),), where="activations of a CIFAR ResNet-18, batch 128"),
    Matrix(kind="spectrum", shapes=((256, 10_000),), where="activations, batch 256, 10,000 features"),
    Matrix(kind="spectrum", shapes=((512, 4608),), where="weight of a 3x3 convolution, 512 -> 512"),
    Matrix(kind="spectrum", shapes=((1000, 2048),), where="ImageNet ResNet-50's head"),
    Matrix(kind="spectrum", shapes=RESNET18, where="all weights of a CIFAR ResNet-18"),
    Matrix(kind="rank", shapes=((128, 8192),), decay=2.0, where="activations of a CIFAR ResNet-18", quick=True),
    Matrix(kind="rank", shapes=((256, 8000),) * 50, decay=2.0, where="50 layers' activations, batch 256"),
    Matrix(kind="rank", shapes=RESNET50, where="all weight gradients of ResNet-50"),
    Matrix(kind="rank", shapes=((100_000, 1000),), decay=2.0, where="logits of 100,000 ImageNet samples"),
    Matrix(kind="stream", shapes=((100_000, 1000),), decay=2.0, where="the same in batches of 1024"),
)


def prepare(case: Matrix, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    matrices = [decaying(n, d, case.decay, generator).to(device) for n, d in case.shapes]
    truths = [singular_values(A) for A in matrices]
    kind = torch.device(device).type
    if case.kind in ("rank", "stream"):
        contenders = (ranks if case.kind == "rank" else streams)(case, matrices, truths)
        return Problem(contenders, "counts outside the interval given")

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
    counts = [true_rank(A, truth) for A, truth in zip(matrices, truths, strict=True)]
    contenders = {
        "torch.linalg.matrix_rank": Contender(
            lambda: [torch.linalg.matrix_rank(A) for A in matrices],
            lambda found: max(abs(int(r) - count) for r, count in zip(found, counts, strict=True)),
        )
    }
    for name, method in (("fastrank", "auto"), ("fastrank, inertia", "inertia")):
        contenders[name] = Contender(
            lambda method=method: fastrank.matrix_rank(matrices, method=method),
            lambda found: outside(found, counts), 0.0, True, account(case),
        )  # fmt: skip
    return contenders


def streams(case: Matrix, matrices: list[Tensor], truths: list[Tensor]) -> dict[str, Contender]:
    """Ranks after the last batch; torch has to keep all rows, which it is given as one matrix."""
    (A,), (truth,) = matrices, truths
    counts, batches = [true_rank(A, truth)], A.split(BATCH)

    def run(mode: str) -> list:
        state = fastrank.GramState(d=A.shape[1], mode=mode, device=A.device)
        for batch in batches:
            state.update(batch)
        return [fastrank.matrix_rank(state)]

    def stacked() -> list:
        sigma = torch.linalg.svdvals(A)
        return [(sigma > max(A.shape) * torch.finfo(A.dtype).eps * sigma[0]).sum()]

    contenders = {"torch.linalg.svdvals, stacked": Contender(stacked, lambda found: abs(int(found[0]) - counts[0]))}
    resolved = max(A.shape) * torch.finfo(A.dtype).eps > FAST_FLOOR
    for mode in ("exact", "fast") if resolved else ("exact",):
        contenders[f"fastrank, {mode}"] = Contender(
            lambda mode=mode: run(mode), lambda found: outside(found, counts), 0.0, True, account(case)
        )
    return contenders


def true_rank(A: Tensor, truth: Tensor) -> int:
    return int((truth > max(A.shape) * torch.finfo(A.dtype).eps * truth[0]).sum())


def outside(found: list, counts: list[int]) -> int:
    """How far the counts lie outside the intervals, and how wide these are: 0 for what is exact and right."""
    return max(max(r.hi - r.lo, r.lo - count, count - r.hi) for r, count in zip(found, counts, strict=True))


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
