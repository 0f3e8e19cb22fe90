"""The Triton kernels of test matrices, sketches and subspace steps in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import torch
from fastrank.kernels.rsvd import KINDS, cosines_many, orthonormal_many, sketch, step_triton, subspace_step_many, triton
from fastrank.kernels.rsvd import test_matrix as random_matrix

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
#: Of a span, so that short rows have several.
SKETCH_ROWS = 48
EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_the_references_bit_by_bit(kind):
    """Odd edges, fewer columns than blocks, the ends of seed and stream."""
    for rows, columns, seed, stream in ((70, 37, 12345678901234567, 3), (5, 6, 2**64 - 1, 2**32 - 1), (3, 9, 0, 0)):
        for dtype in (torch.float32, torch.float64):  # the interpreter cuts bfloat16 off
            arguments = rows, columns, seed, stream, kind, dtype
            assert torch.equal(random_matrix(*arguments, impl="triton"), random_matrix(*arguments, impl="reference"))


@pytest.mark.parametrize(("dtype", "q", "kind"), [(torch.float32, 19, "gaussian"), (torch.float64, 5, "sparse_sign"),
                                                  (torch.bfloat16, 33, "rademacher")], ids=str)  # fmt: skip
def test_sketch(dtype, q, kind, monkeypatch):
    """Sums of SKETCH_ROWS products and of as many as there are spans: gamma of their number, whatever their order."""
    monkeypatch.setattr(triton, "SKETCH_ROWS", SKETCH_ROWS)
    d = SKETCH_ROWS + 37
    A = torch.randn(d, 66 if q == 5 else 20, generator=torch.Generator().manual_seed(0)).to(dtype).T
    omega = random_matrix(d, q, 5, 1, kind, torch.float64)
    found = sketch(A, q, 5, 1, kind, impl="triton")
    u = EPS[found.dtype]
    budget = (SKETCH_ROWS + 2) * u * (A.double().abs() @ omega.abs())
    assert ((found.double() - A.double() @ omega).abs() <= budget).all()


def problem(n, d, q, dtype=torch.float32, rank=None):
    generator = torch.Generator().manual_seed(n + d)
    r = rank or min(n, d)
    left, right = torch.randn(n, r, generator=generator), torch.randn(r, d, generator=generator)
    V = torch.linalg.qr(torch.randn(d, q, generator=generator, dtype=torch.float64))[0]
    A = (left * torch.logspace(0, -2, r)) @ right / (n * d) ** 0.5
    return A.to(dtype), V.to(torch.float64 if dtype == torch.float64 else torch.float32)


def test_steps_of_many_matrices(monkeypatch):
    """In one call: several blocks and spans, odd sizes, a transpose, a full rank of columns, 16-bit numbers, float64, a
    deficient rank, zeros, a NaN. Against the reference in float64; every V orthonormal."""
    monkeypatch.setattr(step_triton, "SKETCH_ROWS", SKETCH_ROWS)
    cases = [problem(66, SKETCH_ROWS + 24, 6), problem(33, 17, 17), problem(30, 41, 5, torch.float64),
             problem(20, 24, 4, torch.bfloat16), problem(20, 24, 5, rank=3), problem(10, 24, 3),
             problem(12, 16, 5)]  # fmt: skip
    cases[1] = cases[1][0].T.contiguous().T, cases[1][1]
    cases[5][0].zero_()
    cases[6][0][3, 4] = float("nan")
    A, V = map(list, zip(*cases, strict=True))
    k = 4
    found = subspace_step_many(A, V, k, impl="triton")
    truth = subspace_step_many([a.double() for a in A], [v.double() for v in V], k, impl="reference")
    for a, v, got, true in zip(A, V, found, truth, strict=True):
        (n, d), q, u = a.shape, v.shape[1], EPS[v.dtype]
        assert (got.V.double().T @ got.V.double() - torch.eye(q)).abs().max() <= 8 * q * u
        if a.isnan().any():
            assert torch.equal(got.V, v)
            for x in (got.U, got.S, got.residual, got.entering, got.norm):
                assert x.isnan().all()
            continue
        # A V and A^T Y err by gamma_d and gamma_n of Frobenius norms; the second is over S, at least what counts.
        scale = float(a.double().norm())
        assert abs(got.norm - true.norm) <= (2 * u + n * d * EPS[torch.float64]) * scale
        budget = 2 * (n + d) * u * scale
        kept = true.S[:k] > 2e-3 * true.S[0]
        assert ((got.S.double() - true.S)[2e-3 * true.S[0] < true.S].abs() <= 500 * budget).all()
        errors = a.double() @ got.V[:, :k].double() - got.U.double() * got.S[:k].double()
        assert ((errors.norm(dim=0) - got.residual.double()).abs() <= budget + 2 * u * scale).all()
        back = a.double().T @ got.U.double() - got.V[:, :k].double() * got.S[:k].double()
        assert (back.norm(dim=0)[kept] <= 500 * budget).all()
        top = true.entering[: len(kept)][kept]
        assert ((got.entering[: len(kept)].double()[kept] - top).abs() <= 500 * budget).all()


def test_without_pairs():
    A, V = problem(20, 24, 6)
    step, other = (subspace_step_many([A], [V], k, impl="triton")[0] for k in (0, 3))
    assert step.U.shape == (20, 0) and step.residual.shape == (0,)
    assert torch.equal(step.S, other.S) and torch.equal(step.V, other.V) and torch.equal(step.entering, other.entering)


def test_blocks_that_are_too_wide_go_to_torch():
    A, V = problem(66, 70, 65)
    assert torch.equal(
        subspace_step_many([A], [V], 2, impl="triton")[0].S, subspace_step_many([A], [V], 2, impl="reference")[0].S
    )


def test_orthonormal_blocks():
    """Several blocks of rows and widths, float64, a transpose; NaN and Inf, dependent columns and zeros, as in the
    reference."""
    generator = torch.Generator().manual_seed(0)
    X = [torch.randn(shape, generator=generator) for shape in ((130, 7), (40, 20), (30, 5), (6, 70), (9, 9), (70, 65))]
    X[0][100, 3], X[1][2, 7], X[4] = float("nan"), -float("inf"), torch.zeros(9, 9)
    X[0][:, 5], X[2], X[3] = 2 * X[0][:, 4], X[2].double(), 1e-20 * X[3].T
    for got, true in zip(orthonormal_many(X, "triton"), orthonormal_many(X, "reference"), strict=True):
        assert got.dtype == true.dtype
        # Both are orthonormal to a few roundings, from Gram matrices in float64.
        assert (got.double() - true.double()).abs().max() <= 4 * EPS[got.dtype]


def test_cosines():
    """Tiles that are not full, in one call: strides, no rows, a row of zeros, one of NaN, float64, values beyond 1."""
    generator = torch.Generator().manual_seed(0)
    pairs = [((15, 70), (15, 70)), ((17, 9), (3, 9)), ((1, 5), (0, 5)), ((2, 300), (20, 300))]
    pairs = [[torch.randn(s, generator=generator) / s[1] ** 0.5 for s in pair] for pair in pairs]
    W, A = map(list, zip(*pairs, strict=True))
    W[0], W[3], A[3] = W[0].T.contiguous().T, W[3].double(), A[3].double()
    W[0][2], A[0][4] = 0, float("nan")
    for w, a, found in zip(W, A, cosines_many(W, A, "triton"), strict=True):
        w, a = w.double(), a.double()
        budget = (w.shape[1] + 1) * EPS[found.dtype] * (w.abs() @ a.abs().T)
        expected = (w @ a.T).abs().clamp_max(1.0)
        assert torch.equal(found.isnan(), expected.isnan()) and found.shape == expected.shape
        assert ((found.double() - expected).abs() <= budget).logical_or(expected.isnan()).all()
