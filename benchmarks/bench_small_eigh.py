"""Eigenvalues, counts and eigenvectors of symmetric float64 matrices, many in one call, against LAPACK one by one.

Eigenvalues are held to the proven bound that comes with them, counts to their slack, vectors to the residual of
LAPACK's own. ldl_factor (with the pivots of Bunch and Kaufman) is what a count of signs would be made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import peers
import torch
from fastrank.kernels.cost import Launch
from fastrank.kernels.small_eigh import eigh_many, eigvalsh_many, inertia_many
from harness import Benchmark, Case, Contender, Problem, run_alone
from torch import Tensor

U = 2.0**-53


@dataclass(frozen=True, kw_only=True)
class Symmetric(Case):
    """What is asked (`kind`: values, count or vectors) of `count` Gram matrices of m rows."""

    kind: str
    m: int
    count: int = 1

    @property
    def title(self) -> str:
        return f"{self.kind} of {f'{self.count} of ' if self.count > 1 else ''}{self.m} x {self.m}"


CASES = (
    Symmetric(kind="values", m=64, count=50, where="Gram matrices of narrow layers", quick=True),
    Symmetric(kind="values", m=256, count=50, where="activations of 50 layers, batch 256"),
    Symmetric(kind="values", m=512, where="weights of a ResNet's last stage"),
    Symmetric(kind="values", m=1000, where="logits of ImageNet"),
    Symmetric(kind="values", m=2048, where="features of a ResNet-50's head"),
    Symmetric(kind="count", m=256, count=50, where="activations of 50 layers, batch 256", quick=True),
    Symmetric(kind="count", m=1000, where="logits of ImageNet"),
    Symmetric(kind="vectors", m=27, count=54, where="Rayleigh-Ritz of warm subspaces", quick=True),
)


def prepare(case: Symmetric, device: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    G = []
    for _ in range(case.count):
        A = torch.randn(case.m, 2 * case.m, generator=generator, dtype=torch.float64)
        G.append((A @ A.T).to(device))
    truths = [torch.linalg.eigvalsh(g) for g in G]
    # The truth's own error: a modest multiple of u lambda_1.
    own = 16 * case.m * U

    def off(values: list[Tensor]) -> float:
        return max(float((v - t).abs().max() / t[-1]) for v, t in zip(values, truths, strict=True))

    if case.kind == "values":
        errors = eigvalsh_many(G)[1]
        bound = max(float(e / t[-1]) for e, t in zip(errors, truths, strict=True)) + own
        contenders = {"torch.linalg.eigvalsh": Contender(lambda: [torch.linalg.eigvalsh(g) for g in G], off, own)}
        if peers.load("scipy", torch.device(device).type):
            from scipy.linalg import eigvalsh

            run = lambda: [torch.from_numpy(eigvalsh(g.numpy(), check_finite=False, driver="ev")) for g in G]  # noqa: E731
            contenders["scipy eigvalsh"] = Contender(run, off, own)
        contenders["fastrank"] = Contender(lambda: eigvalsh_many(G)[0], off, bound, True, account(case))
        return Problem(contenders, "largest |lambda - truth| / lambda_1")
    if case.kind == "count":
        shift = torch.stack([t.mean() for t in truths])
        contenders = {
            "torch.linalg.ldl_factor": Contender(
                lambda: [torch.linalg.ldl_factor(g - s * torch.eye(case.m, device=device)) for g, s in zip(G, shift)],  # noqa: B905
                lambda found: 0.0,
            ),
            "torch.linalg.eigvalsh": Contender(
                lambda: torch.stack([(torch.linalg.eigvalsh(g) > s).sum() for g, s in zip(G, shift, strict=True)]),
                lambda found: wrong(found, shift, shift * own, truths),
            ),
            "fastrank": Contender(
                lambda: inertia_many(G, shift), lambda found: wrong(found[0], shift, found[1], truths), 0, True,
                account(case),
            ),
        }  # fmt: skip
        return Problem(contenders, "counts beyond their slack")
    torchs = lambda: [torch.linalg.eigh(g) for g in G]  # noqa: E731
    contenders = {
        "torch.linalg.eigh": Contender(torchs, lambda found: residual(G, *zip(*found, strict=True)), own),
        "fastrank": Contender(lambda: eigh_many(G), lambda found: residual(G, *found), own, True, account(case)),
    }
    return Problem(contenders, "largest |G Q - Q diag(lambda)| / lambda_1")


def wrong(counts: Tensor, shift: Tensor, slack: Tensor, truths: list[Tensor]) -> int:
    low, high = ([int((t > x).sum()) for t, x in zip(truths, s, strict=True)] for s in (shift + slack, shift - slack))
    return max(max(a - c, c - b, 0) for a, b, c in zip(low, high, counts.tolist(), strict=True))


def residual(G: list[Tensor], values: list[Tensor], vectors: list[Tensor]) -> float:
    return max(float((g @ q - q * v).norm() / v[-1]) for g, v, q in zip(G, values, vectors, strict=True))


def account(case: Symmetric) -> tuple[Launch, ...]:
    """A third of m^3 for a count, four thirds for the values (tridiagonal form), 9 m^3 with the vectors (LAPACK)."""
    flops = {"count": case.m**3 // 3, "values": 4 * case.m**3 // 3, "vectors": 9 * case.m**3}[case.kind]
    square = 8 * case.m * case.m
    written = square if case.kind == "vectors" else 8 * case.m
    return (Launch(case.kind, case.count * square // 2, case.count * written, {"fp64": case.count * flops}),)


BENCHMARK = Benchmark("small_eigh", __doc__, CASES, prepare, peers=("scipy",))

if __name__ == "__main__":
    run_alone("small_eigh")
