"""kernels/small_eigh/cost.py against the loads and stores that the kernels make, counted in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import torch
from fastrank.kernels.small_eigh import cost
from fastrank.kernels.small_eigh import triton as kernels
from fastrank.kernels.small_eigh.config import Tile
from interpret.test_tempered_ce_cost import held_to, traffic_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def grams(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [(X := torch.randn(m + 2, m, dtype=torch.float64, generator=generator)).T @ X for m in sizes]


@pytest.fixture
def traffic(monkeypatch):
    for module in (kernels, cost):
        monkeypatch.setattr(module, "TILES", (Tile(8, 4, 4, 1), Tile(32, 8, 16, 1)))
        monkeypatch.setattr(module, "HALVINGS", 3)
        monkeypatch.setattr(module, "LANES", 8)
    monkeypatch.setattr(kernels, "SWEEPS", 3)
    return traffic_of(monkeypatch, kernels, tables=True)


def test_bytes_of_values(traffic):
    """Two tiles a side and one; orders of nothing, one, whole tiles, odd ones."""
    sizes = 20, 1, 7, 8, 0, 9
    kernels.eigvalsh_many(grams(*sizes))
    held_to(traffic, cost.eigvalsh(sizes))


def test_bytes_of_counts(traffic):
    sizes = 9, 20
    kernels.inertia_many(grams(*sizes), torch.zeros(2, dtype=torch.float64))
    held_to(traffic, cost.inertia(sizes))


def test_bytes_of_vectors(traffic):
    """Three sweeps, after which none of these has converged."""
    sizes = 7, 12, 20
    kernels.eigh_many(grams(*sizes))
    held_to(traffic, cost.eigh(sizes, sweeps=3))
