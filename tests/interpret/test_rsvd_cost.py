"""kernels/rsvd/cost.py against the loads and stores that the kernels make, counted in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import torch
from fastrank.kernels.rsvd import cosines_triton, cost, orthonormal_triton, step_triton, triton
from interpret.test_tempered_ce_cost import held_to, traffic_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
CPU = torch.device("cpu")


@pytest.fixture
def traffic(monkeypatch):
    for module in (triton, step_triton, cost):
        monkeypatch.setattr(module, "SKETCH_ROWS", 48)
    monkeypatch.setattr(step_triton, "SWEEPS", 1)
    return traffic_of(monkeypatch, triton, step_triton, orthonormal_triton, cosines_triton, tables=True)


@pytest.mark.parametrize(("shape", "q", "dtype"), [((66, 50), 5, torch.float32), ((5, 40), 70, torch.float64)], ids=str)
def test_bytes_of_a_sketch(traffic, shape, q, dtype):
    triton.sketch(torch.randn(shape).to(dtype), q, 1, 0, "rademacher")
    held_to(traffic, cost.sketch(*shape, q, dtype, "rademacher"))


def test_bytes_of_a_test_matrix(traffic):
    triton.test_matrix(66, 5, 1, 0, "rademacher", torch.bfloat16, CPU)
    held_to(traffic, [cost.test_matrix(66, 5, torch.bfloat16, "rademacher")])


@pytest.mark.parametrize(("k", "dtype"), [(2, torch.bfloat16), (0, torch.float64)], ids=str)
def test_bytes_of_steps(traffic, k, dtype):
    """Two blocks of rows and of columns, two spans; fewer rows than columns are asked for; one that is not aligned."""
    shapes = [(66, 72), (4, 16), (6, 7)] if k else [(5, 6)]
    A = [torch.randn(shape).to(dtype) for shape in shapes]
    V = [torch.eye(a.shape[1], min(5, *a.shape), dtype=torch.float64 if dtype == torch.float64 else None) for a in A]
    step_triton.subspace_step_many(A, V, k)
    held_to(traffic, cost.steps(shapes, 5, k, dtype, sweeps=1))


def test_bytes_of_orthonormal_blocks(traffic):
    shapes = [(66, 5), (20, 3)]
    orthonormal_triton.orthonormal_many([torch.randn(shape) for shape in shapes])
    held_to(traffic, cost.orthonormal(shapes))


def test_bytes_of_cosines(traffic):
    shapes = [(15, 15, 70), (17, 3, 9), (1, 20, 64)]
    pairs = [[torch.randn(rows, d).T.contiguous().T for rows in (k, m)] for k, m, d in shapes]
    cosines_triton.cosines_many(*map(list, zip(*pairs, strict=True)))
    held_to(traffic, cost.cosines(shapes))
