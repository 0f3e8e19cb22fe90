"""Small eigenproblems on a device: the error bound at every size class, what is not finite, streams, a CUDA graph."""

import pytest
import torch
from device_calls import DEVICE, MISSING
from fastrank.kernels.small_eigh import eigh_many, eigvalsh_many, inertia_many

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

IMPL = "native" if DEVICE == "cpu" else "triton"
U = 2.0**-53


def gram(m: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(m)
    X = torch.randn(m + 2, m, dtype=torch.float64, generator=generator)
    return (X * torch.logspace(0, -6, m, dtype=torch.float64)).mT @ X


def grams(*sizes: int) -> list[torch.Tensor]:
    return [(gram(m) + gram(m).mT).to(DEVICE) for m in sizes]


@pytest.mark.parametrize("sizes", [(1, 2, 33, 64), (65, 128, 100), (129, 256), (7, 300, 512)], ids=str)
def test_eigenvalues_within_their_bound(sizes):
    G = grams(*sizes)
    for matrix, found, bound in zip(G, *eigvalsh_many(G, impl=IMPL), strict=True):
        truth = torch.linalg.eigvalsh(matrix.cpu())
        assert (found.cpu() - truth).abs().max() <= bound.cpu() + 50 * len(matrix) * U * truth.abs().max()
        assert bound.cpu() <= 1e-9 * truth.abs().max()


def test_counts_and_what_is_not_finite():
    G = grams(5, 70, 12)
    G[1][40, 3] = float("nan")
    count, slack = inertia_many(G, torch.full((3,), 1e-3, dtype=torch.float64, device=DEVICE), impl=IMPL)
    expected = [int((torch.linalg.eigvalsh(g.cpu()) > 1e-3).sum()) if g.isfinite().all() else -1 for g in G]
    assert count.tolist() == expected and slack[1] == float("inf")
    values, error = eigvalsh_many(G, impl=IMPL)
    assert values[1].isnan().all() and error.isnan().tolist() == [False, True, False]


def test_eigenvectors():
    G = grams(1, 5, 16, 17, 33, 64)
    for matrix, values, V in zip(G, *eigh_many(G, impl=IMPL), strict=True):
        m, eye = len(matrix), torch.eye(len(matrix), dtype=torch.float64, device=DEVICE)
        budget = 16 * 8 * m * U
        assert ((V * values) @ V.mT - matrix).norm() <= budget * matrix.norm()
        assert (V.mT @ V - eye).norm() <= budget * m**0.5


@pytest.mark.skipif(DEVICE == "cpu", reason="streams are a device's")
def test_on_a_side_stream_and_in_a_graph():
    G = grams(20, 100)
    expected = eigvalsh_many(G)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = eigvalsh_many(G)[0]
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = eigvalsh_many(G)[0]
    graph.replay()
    for a, b, c in zip(expected, again, captured, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
