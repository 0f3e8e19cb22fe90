"""The Triton kernels for small eigenproblems from their compiled sm_80 PTX, under every schedule; and mistakes."""

from __future__ import annotations

import importlib
from contextlib import contextmanager

import pytest
import torch
from emulate.mistakes import replaced
from emulate.ptx.run import SCHEDULES, KernelFailure, Run
from fastrank.kernels.small_eigh.config import JACOBI, TILES, Tile, budget

OUTPUTS = {
    "tridiagonal_kernel": frozenset({"work_ptr", "result_ptr"}),
    "bisect_kernel": frozenset({"values_ptr", "error_ptr"}),
    "count_kernel": frozenset({"count_ptr", "slack_ptr"}),
    "jacobi_kernel": frozenset({"work_ptr", "values_ptr", "vectors_ptr"}),
}
NAME = "fastrank.kernels.small_eigh.triton"
F64 = torch.float64
U = 2.0**-53


def matrices(*sizes: int) -> list[torch.Tensor]:
    """Grams whose eigenvalues fall by twelve powers of ten; only their lower triangles are there."""
    generator, found = torch.Generator().manual_seed(sum(sizes)), []
    for m in sizes:
        X = torch.randn(m + 3, m, dtype=F64, generator=generator) * torch.logspace(0, -6, m, dtype=F64)
        found.append(torch.tril(X.T @ X) + torch.triu(torch.full((m, m), float("nan"), dtype=F64), 1))
    return found


def kernels():
    return importlib.import_module(NAME)


def values(kernels, sizes=(1, 2, 7, 20)):
    """Eigenvalues within their own bound of LAPACK's, whose own error is far below it."""
    G = matrices(*sizes)
    yield G
    G[0].fill_(-3.0)
    found, error = kernels.eigvalsh_many(G)
    _, f = budget(kernels.TILES[0].size, kernels.TILES[0].columns)
    for matrix, own, bound in zip(G, found, error.tolist(), strict=True):
        rest = torch.tril(matrix)[1:, 1:]
        assert bound >= f * U * rest.norm()  # what the first step adds to it, at least
        assert (own - torch.linalg.eigvalsh(matrix)).abs().max() <= bound
        assert 0 < bound < 1e4 * len(matrix) * U * matrix.diagonal().abs().sum()
        assert own.tolist() == sorted(own.tolist())
    yield [*found, error]


def counts(kernels):
    G = matrices(3, 9, 12)
    G[1][4, 2] = float("nan")
    yield G
    truth = torch.linalg.eigvalsh(G[2])
    count, slack = kernels.inertia_many(G, torch.tensor([-1.0, 0.0, float((truth[5] + truth[6]) / 2)], dtype=F64))
    assert count.tolist() == [3, -1, 6] and slack[1] == float("inf")
    assert 0 < slack[2] < truth[6] - truth[5]
    yield [count, slack]


def vectors(kernels, sizes=(1, 5, 16)):
    """A = V diag V^T and V^T V = I to what sweeps of rotations may err by: a few u each, m - 1 to a row a sweep."""
    G = matrices(*sizes)
    yield G
    found, V = kernels.eigh_many(G)
    for matrix, own, columns in zip(G, found, V, strict=True):
        m = len(matrix)
        full, budget = torch.tril(matrix) + torch.tril(matrix, -1).T, 16 * 8 * m * U
        assert ((columns * own) @ columns.T - full).norm() <= budget * full.norm()
        assert (columns.T @ columns - torch.eye(m, dtype=F64)).norm() <= budget * m**0.5
        assert own.tolist() == sorted(own.tolist())
    yield [*found, *V]


#: Tiles that small matrices have several of, of few threads; and shipped ones, which smaller matrices have one of.
SMALL = {"TILES": (Tile(32, 8, 16, 2),)}
LARGER = {"JACOBI": JACOBI[-1:]}
SHIPPED = [(values, (17,), {"TILES": TILES[2:3]}), (vectors, (5,), LARGER)]


@contextmanager
def on_cpu(driver):
    """Launches run as PTX; uninitialised memory is NaN."""
    from emulate import tempered_mse_launches

    with tempered_mse_launches.triton_on_cpu(driver):
        yield


def run(call, driver, *arguments) -> list[torch.Tensor]:
    steps = call(kernels(), *arguments)
    driver.behind = next(steps)
    return next(steps)


@pytest.fixture(scope="module")
def driver(triton_emulator):
    from emulate import tempered_mse_launches  # noqa: F401  (records what is compiled, before a test changes tiles)
    from emulate.ptx.triton_driver import EmulatedDriver

    return EmulatedDriver(triton_emulator, OUTPUTS)


@pytest.mark.parametrize("call", [values, counts, vectors], ids=lambda f: f.__name__)
def test_the_same_bits_under_every_schedule(call, driver, monkeypatch):
    monkeypatch.setattr(kernels(), "TILES", SMALL["TILES"])
    first = None
    with on_cpu(driver):
        for number, schedule in enumerate(SCHEDULES):
            driver.run = Run(schedule, error_seed=number)
            got = run(call, driver)
            first = first or got
            for a, b in zip(got, first, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("call", "sizes", "tiles"), SHIPPED, ids=lambda x: getattr(x, "__name__", None))
def test_shipped_tiles(call, sizes, tiles, driver, monkeypatch):
    for name, value in tiles.items():
        monkeypatch.setattr(kernels(), name, value)
    with on_cpu(driver):
        driver.run = Run("random:1")
        run(call, driver, sizes)


# ---- mistakes ----

#: (name, text of kernels/small_eigh/triton.py, its replacement, the call that shows it).
SOURCE_MUTANTS = [
    ("v is read before it is written", "tl.store(next_ptr + lane, u)\n        tl.debug_barrier()",
     "tl.store(next_ptr + lane, u)", values),
    ("the update reaches the next step late", "tl.store(w_ptr + lane, p)\n        tl.debug_barrier()",
     "tl.store(w_ptr + lane, p)", values),
    ("the upper triangle is read", "row, column = tl.maximum(",
     "column, row = tl.maximum(", values),
    ("the reflector cancels", "tl.where(alpha < 0, norm, -norm)", "tl.where(alpha < 0, -norm, norm)", values),
    ("half the correction", "0.5 * _sum(p * u", "0.25 * _sum(p * u", values),
    ("a column is left out", "(j > k) & (j < m)", "(j > k + 1) & (j < m)", values),
    ("the bound leaves out the update", "c * norm + f * tl.sqrt(squares)", "c * norm * 2.0**-9", values),
    ("a halving too few lanes see", "> wanted\n", "> wanted + 1\n", values),
    ("shifts are not scaled", "other=0.0) * power\n", "other=0.0)\n", counts),
    ("NaN is counted", "tl.where(finite, count, -1)", "count", counts),
    ("a turn begins before the last one ends", "c_i * y, mask=plays[:, None])\n            tl.debug_barrier()",
     "c_i * y, mask=plays[:, None])", "several warps"),
    ("the row of whoever pauses", "p * N + p, mask=p_there", "p * N + p, mask=plays", vectors),
    ("the other root", "tl.where(theta < 0, -t, t)", "t", vectors),
    ("vectors turn the other way", "c_i * x - s_i * y, mask=plays", "c_i * x + s_i * y, mask=plays", vectors),
]  # fmt: skip


@pytest.mark.parametrize("mutant", SOURCE_MUTANTS, ids=lambda m: m[0])
def test_mistakes_are_caught(mutant, driver, tmp_path, monkeypatch):
    _, old, new, shown_by = mutant
    larger = shown_by == "several warps"
    call = vectors if larger else shown_by
    sizes = {values: ((7, 20),), vectors: ((5,),), counts: ()}[call]
    with replaced("small_eigh", old, new, tmp_path), on_cpu(driver):
        monkeypatch.setattr(kernels(), "TILES", SMALL["TILES"])
        if larger:
            monkeypatch.setattr(kernels(), "JACOBI", LARGER["JACOBI"])
        with pytest.raises((KernelFailure, AssertionError)):
            for schedule in ("warps", "warps-reverse+early", "random:1"):
                driver.run = Run(schedule)
                run(call, driver, *sizes)
