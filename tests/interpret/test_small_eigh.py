"""The Triton kernels for small eigenproblems in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import torch
from fastrank.kernels.small_eigh import eigh_many, eigvalsh_many, inertia_many
from fastrank.kernels.small_eigh import triton as kernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
F64, U = torch.float64, 2.0**-53
inf, nan = float("inf"), float("nan")


def gram(m: int, decades: float = 6.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(m)
    X = torch.randn(m + 2, m, dtype=F64, generator=generator) * torch.logspace(0, -decades, m, dtype=F64)
    return X.T @ X


def test_eigenvalues_within_their_bound(monkeypatch):
    """Beside Grams: nothing, zeros, equal values, both ends of float64's range, an infinity; strides."""
    monkeypatch.setattr(kernels, "HALVINGS", 30)
    monkeypatch.setattr(
        kernels, "TILES", (kernels.Tile(16, 16, 16, 1),)
    )  # a looser bound, in half the interpreter's time
    bad = gram(4)
    bad[2, 1] = inf
    G = [gram(1), gram(2).T, gram(9), gram(20)[::2, ::2], torch.empty(0, 0, dtype=F64), torch.zeros(3, 3, dtype=F64),
         torch.eye(5, dtype=F64), -1e300 * torch.eye(3, dtype=F64), gram(4) * 1e-310, bad]  # fmt: skip
    values, error = eigvalsh_many(G, impl="triton")
    for matrix, found, bound in zip(G, values, error.tolist(), strict=True):
        assert found.shape == (len(matrix),)
        if not matrix.isfinite().all():
            assert found.isnan().all() and bound != bound
            continue
        # LAPACK's own error, of a matrix scaled to about 1.
        size = float(matrix.abs().max()) if len(matrix) else 0.0
        scale = size or 1.0
        truth = torch.linalg.eigvalsh(matrix / scale)
        assert ((found / scale - truth).abs() <= bound / scale + 50 * len(matrix) * U).all()
        assert bound <= 2.0**-28 * max(size, 1e-307) * max(len(matrix), 1)


def test_a_long_sturm_sequence(monkeypatch):
    """Minors of 120 rows would leave float64's range; shifts inside the spectrum and far outside of it."""
    monkeypatch.setattr(kernels, "TILES", (kernels.Tile(128, 128, 128, 4),))
    matrix = gram(120, 0.0)
    truth = torch.linalg.eigvalsh(matrix)
    shift = torch.tensor([float(truth[70:72].mean()), 1e9, nan], dtype=F64)
    count, slack = inertia_many([matrix] * 3, shift, impl="triton")
    assert count.tolist() == [120 - 71, 0, -1]
    assert 0 < slack[0] < (truth[71] - truth[70]) / 2 and slack[2] == inf


def test_eigenvectors():
    bad = gram(4)
    bad[2, 1] = nan
    G = [gram(1), gram(5).T, gram(17), torch.zeros(4, 4, dtype=F64), torch.empty(0, 0, dtype=F64), bad,
         torch.diag(torch.tensor([3.0, -1.0, 2.0, 2.0], dtype=F64))]  # fmt: skip
    values, vectors = eigh_many(G, impl="triton")
    for matrix, found, V in zip(G, values, vectors, strict=True):
        m = len(matrix)
        if not matrix.isfinite().all():
            assert found.isnan().all() and V.isnan().all()
            continue
        # Rotations of at most 16 sweeps, m - 1 to a row in each, of a few u.
        budget = 16 * 8 * m * U
        assert ((V * found) @ V.T - matrix).norm() <= budget * matrix.norm()
        assert (V.T @ V - torch.eye(m, dtype=F64)).norm() <= budget * m**0.5
        assert found.tolist() == sorted(found.tolist())


def test_company_changes_nothing():
    """Nor does the order: matrices of several size classes, together and alone."""
    G = [gram(3), gram(17), gram(7)]
    together, backwards = eigh_many(G, impl="triton"), eigh_many(G[::-1], impl="triton")
    alone = eigh_many(G[:1], impl="triton")
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert torch.equal(a[0], b[0])
        assert all(torch.equal(x, y) for x, y in zip(a, c[::-1], strict=True))
