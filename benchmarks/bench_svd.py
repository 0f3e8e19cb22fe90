"""Top 15 singular triplets, cold and one optimizer step after the last call, against torch, SciPy and scikit-learn.

Values are held to the float64 SVD within their own residuals. A warm call starts from the triplets of the weights
before the step; its vectors are judged too, where the gap to the next value allows: the sine of the angle to the true
vector, at most `SINE`, of all vectors whose relative gap is at least `GAP`. Randomised peers promise nothing: their
error is shown and not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import peers
import torch
from bench_rank import TRUTH, decaying
from fastrank.kernels.rsvd.cost_step import steps
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

import fastrank
from fastrank.subspace import OVERSAMPLE

TOP = 15
#: What a step of training moves a weight by, relative to its norm.
DRIFT = 1e-3
#: Largest sine of a warm vector, and the relative gap |sigma_i - sigma_j| / sigma_1 from which it is asked for: a drift
#: of this size turns a vector by DRIFT over its gap, so that with smaller ones the vector itself is at stake.
SINE, GAP = 1e-4, 1e-2


@dataclass(frozen=True, kw_only=True)
class Matrices(Case):
    """The matrices of one call; singular values fall as i^-decay."""

    shapes: tuple[tuple[int, int], ...]
    decay: float = 1.0

    @property
    def title(self) -> str:
        sizes = " x ".join(map(str, self.shapes[0])) if len(self.shapes) == 1 else f"{len(self.shapes)} matrices"
        return f"top {TOP} of {sizes}"


def resnet50() -> tuple[tuple[int, int], ...]:
    """The 54 weights [out, in * kh * kw] of ImageNet's ResNet-50: 53 convolutions and the head."""
    shapes, inside = [(64, 147)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, inside), (width, 9 * width), (4 * width, width)]
            if block == 0:
                shapes.append((4 * width, inside))
            inside = 4 * width
    return (*shapes, (1000, inside))


CASES = (
    Matrices(shapes=((128, 8192),), where="activations of a CIFAR ResNet-18", quick=True),
    Matrices(shapes=((512, 4608),), where="weight of a 3x3 convolution, 512 -> 512"),
    Matrices(shapes=((21841, 2048),), where="ImageNet-21k head"),
    Matrices(shapes=resnet50(), where="all weights of an ImageNet ResNet-50"),
)


def prepare(case: Matrices, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    before = [decaying(n, d, case.decay, generator) for n, d in case.shapes]
    A = [a + DRIFT * a.norm() / a.numel() ** 0.5 * torch.randn(a.shape, generator=generator) for a in before]
    truths = [truth(a) for a in A]
    A, before = ([a.to(device) for a in members] for members in (A, before))

    def values(found: list[Tensor]) -> float:
        pairs = zip(found, truths, strict=True)
        return max(float((s[:TOP].double().cpu() - t[: len(s[:TOP])]).abs().max() / t[0]) for s, (t, _) in pairs)

    stable = max(max(a.shape) for a in A) * torch.finfo(torch.float32).eps
    contenders = {
        "torch.linalg.svd": Contender(
            lambda: [torch.linalg.svd(a, full_matrices=False)[1] for a in A], values, stable, slow=True
        ),
        "torch.svd_lowrank": Contender(lambda: [torch.svd_lowrank(a, TOP + OVERSAMPLE)[1] for a in A], values),
    }
    kind = torch.device(device).type
    if peers.load("scipy", kind):
        from scipy.sparse.linalg import svds

        top = lambda a: torch.from_numpy(svds(a.numpy(), min(TOP, min(a.shape) - 1))[1].copy())  # noqa: E731
        contenders["scipy svds"] = Contender(lambda: [top(a).sort(descending=True)[0] for a in A], values, slow=True)
    if peers.load("scikit-learn", kind):
        from sklearn.utils.extmath import randomized_svd

        run = lambda: [torch.from_numpy(randomized_svd(a.numpy(), TOP, random_state=0)[1]) for a in A]  # noqa: E731
        contenders["sklearn randomized_svd"] = Contender(run, values)
    states = fastrank.top_svd(before, TOP)
    for _ in range(2):  # as a run has made some steps
        states = fastrank.top_svd(before, TOP, states)
    for name, start in (("cold", None), ("warm", states)):
        contenders[f"fastrank, {name}"] = ours(A, start, values, truths)
    return Problem(contenders, f"largest |sigma - truth| / sigma_1 of the top {TOP}")


def truth(A: Tensor) -> tuple[Tensor, Tensor]:
    """The TOP + 1 largest singular values and right vectors, float64, of A; by way of the triangle of a QR."""
    B = A.double()
    if len(B) > 2 * B.shape[1]:
        B = torch.linalg.qr(B, mode="r")[1]
    if B.shape[1] > 2 * len(B):
        Q, R = torch.linalg.qr(B.T)
        _, S, Vh = torch.linalg.svd(R.T, full_matrices=False)
        return S[: TOP + 1], (Vh[: TOP + 1] @ Q.T)
    _, S, Vh = torch.linalg.svd(B, full_matrices=False)
    return S[: TOP + 1], Vh[: TOP + 1]


def ours(A: list[Tensor], start, values: Callable, truths: list) -> Contender:
    first = fastrank.top_svd(A, TOP, start)
    budget = max(float((state.residual / state.S[0]).max()) for state in first) + TRUTH

    def error(found: list) -> float:
        if start is not None and not max(map(sine, found, truths)) <= SINE:
            return math.inf  # the call is wrong, whatever its values
        return values([state.S for state in found])

    # A cold start has more, and eigenproblems besides.
    launches = steps([a.shape for a in A], TOP + OVERSAMPLE, TOP, torch.float32) if start is not None else ()
    return Contender(lambda: fastrank.top_svd(A, TOP, start), error, budget, True, launches)


def sine(state, truth: tuple[Tensor, Tensor]) -> float:
    """The largest sine of the angle between a vector and the true one, over those with gaps of at least GAP."""
    S, Vh = truth
    padded = torch.cat([S.new_full((1,), torch.inf), S, S.new_zeros(1)])
    gap = torch.minimum(padded[:-2] - S, S - padded[2:])[: state.k] / S[0]
    V = state.Vh.double().cpu()
    W = Vh[: state.k]
    across = (V - (V * W).sum(1, keepdim=True) * W).norm(dim=1) / V.norm(dim=1)
    chosen = across[gap >= GAP]
    return float(chosen.max()) if len(chosen) else 0.0


BENCHMARK = Benchmark("svd", __doc__, CASES, prepare, peers=("scipy", "scikit-learn"))

if __name__ == "__main__":
    run_alone("svd")
