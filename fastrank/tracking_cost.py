"""What a tracked step does with one matrix, counted: our kernels, torch's operations, factorisations.

It follows `fastrank.spectra` and `fastrank.subspace` as they stand, for a GPU; `fastrank.plan` adds it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastrank.capture import MAX_FEATURES
from fastrank.kernels import cost
from fastrank.kernels.cost import Device, Launch
from fastrank.kernels.gram import cost as gram
from fastrank.metrics import OF_SPECTRUM
from fastrank.metrics.alignment import alignment
from fastrank.precision import one_thread
from fastrank.ranks import rank_counts
from fastrank.spectra import spectrum
from fastrank.subspace import OVERSAMPLE, top_svd
from fastrank.watcher import TOP

#: Share of its unit's peak that a factorisation of torch.linalg is taken to reach on a GPU: a guess from the nature of
#: the work (panels of matrix-vector products, hundreds of launches), to be replaced by a measurement.
LIBRARY_SHARE = 0.02


class Matrix(NamedTuple):
    """A matrix [n, d] that a tracked step measures, and the small operations that cut it out of its source."""

    kind: str
    layer: str
    source: str
    n: int
    d: int
    dtype: torch.dtype
    ops: int = 0


@dataclass(frozen=True)
class Call:
    """A factorisation of torch.linalg: its flops, by the textbook's count (Golub & Van Loan, Matrix Computations)."""

    name: str
    flops: int
    unit: str


@dataclass(frozen=True)
class Work:
    """What a tracked step does with one matrix [n, d].

    Attributes:
        kind: "act", "logits", "weight", "grad" or "align", as in the run database. layer: its name there.
        source: "act", "input", "weight", "grad" or "logits": where the matrix is from.
        launches: our kernels and torch's matrix products. ops: torch's small operations besides.
        calls: factorisations. kept: bytes from step to step. temporary: bytes while it is measured.
    """

    kind: str
    layer: str
    source: str
    n: int
    d: int
    dtype: torch.dtype
    launches: tuple[Launch, ...]
    ops: int
    calls: tuple[Call, ...]
    kept: int
    temporary: int


def work_on(matrix: Matrix, figures: tuple[str, ...]) -> Work:
    kind, layer, source, n, d, dtype, ops = matrix
    # What is not a view is a copy: a subset of features, rows or patches; logits as float32; the softmax.
    copied = source == "input" or (source == "act" and d == MAX_FEATURES) or kind == "logits"
    if kind == "align":
        launches, calls, kept, temporary = _subspace(n, d, dtype)
        ops += _ops("top_svd", n < d) + (_ops("alignment") if source == "input" else 0)
    else:
        launches, calls, temporary = _spectrum(n, d, torch.float32 if kind == "logits" else dtype)
        ops, kept = ops + _ops("spectrum", n < d) + _ops("figures", figures=figures), 0
    if copied:
        moved = n * d * dtype.itemsize
        launches, temporary = (Launch("torch.index", moved, moved), *launches), temporary + moved
    return Work(kind, layer, source, n, d, dtype, launches, ops, calls, kept, temporary)


def _spectrum(n: int, d: int, dtype: torch.dtype) -> tuple[tuple[Launch, ...], tuple[Call, ...], int]:
    """As `spectra.spectrum`: the smaller Gram matrix in mode "exact", then its eigenvalues."""
    k = min(n, d)
    square = 8 * k * k
    if n < d:
        launches, rows = gram.dual(n, d, dtype), d
    else:
        launches, rows = gram.accumulate(n, d, dtype, shift=False), n
        launches = (Launch("torch.zeros", 0, square), *launches)
    launches = (*launches, Launch("torch.isfinite", square, k * k))
    calls = (Call("eigvalsh", 4 * k**3 // 3, "fp64"),)
    # The matrix and the solver's copy.
    return launches, calls, 2 * square + gram.Cut(rows, k).workspace


def _subspace(n: int, d: int, dtype: torch.dtype) -> tuple[tuple[Launch, ...], tuple[Call, ...], int, int]:
    """A warm call without a jump, as products and factorisations of torch: one step of block subspace iteration."""
    q, k, size = min(TOP + OVERSAMPLE, n, d), min(TOP, n, d), 4

    def product(m: int, inner: int, columns: int) -> Launch:
        moved = size * (m * inner + inner * columns)
        return Launch("torch.mm", moved, size * m * columns, {"fp32": 2 * m * inner * columns})

    launches = (product(n, d, q), product(d, n, q), product(n, q, q), product(d, q, q), product(n, d, k))
    if dtype.itemsize != size:
        launches = (Launch("torch.float", n * d * dtype.itemsize, n * d * size), *launches)
    qr = [Call("qr", 2 * (2 * m * q * q - 2 * q**3 // 3), "fp32") for m in (n, d)]
    kept = size * (n + d) * q
    return launches, (*qr, Call("svd", 22 * q**3, "fp32")), kept, kept + size * n * (q + k)


@cache
def _ops(what: str, wide: bool = False, figures: tuple[str, ...] = ()) -> int:
    """Small operations of torch in one call of the watcher's own code, by running it on a tiny matrix on the CPU."""
    X = torch.eye(6, 9) if wide else torch.eye(9, 6)
    state = top_svd(X, 3)
    s = spectrum(X)
    calls = {
        "spectrum": lambda: spectrum(X),
        "figures": lambda: (rank_counts(s), [OF_SPECTRUM[name](s) for name in figures]),
        "top_svd": lambda: top_svd(X, 3, state),
        "alignment": lambda: alignment(state, state, 3),
    }
    with Operations() as counter:
        calls[what]()
    return counter.count


class Operations(TorchDispatchMode):
    """Counts what reaches a backend and computes, but for views, products, factorisations and our own kernels."""

    COUNTED_APART = ("mm", "linalg", "eigvalsh_", "gram_", "empty", "zeros", "new_zeros", "tril", "isfinite", "index")

    def __init__(self, apart: tuple[str, ...] = COUNTED_APART) -> None:
        super().__init__()
        self.apart = apart
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2]
        if not func.is_view and not name.startswith(self.apart):
            self.count += 1
        return func(*args, **(kwargs or {}))


@cache
def _measured_rates() -> dict[str, float]:
    """Flops a second of each factorisation here, on one thread as the watcher runs them, by one size of each."""
    A = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A, B = A + A.T, A[:, :27].float().repeat(4, 1)
    runs = {
        "eigvalsh": (lambda: torch.linalg.eigvalsh(A), 4 * 256**3 / 3),
        "qr": (lambda: torch.linalg.qr(B), 2 * (2 * 1024 * 27**2 - 2 * 27**3 / 3)),
        "svd": (lambda: torch.linalg.svd(B[:27]), 22 * 27**3),
    }
    with one_thread():
        return {name: flops / cost.best(run, 0.05) for name, (run, flops) in runs.items()}


def rates(device: Device) -> dict[str, float]:
    if device.name == "CPU":
        return _measured_rates()
    units = {"eigvalsh": "fp64", "qr": "fp32", "svd": "fp32"}
    return {name: LIBRARY_SHARE * device.flops[unit] for name, unit in units.items()}
