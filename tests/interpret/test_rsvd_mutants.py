"""Mistakes planted in the Triton kernels of rsvd, each caught against the reference in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import torch
from emulate.mistakes import replaced
from fastrank.kernels import rsvd
from fastrank.kernels.rsvd import cosines_many, orthonormal_many, step_triton

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def step():
    """Two spans; numbers whose powers of two matter; three steps of the block's own figures."""
    generator = torch.Generator().manual_seed(0)
    A = 50 * torch.randn(9, 20, generator=generator)
    V = torch.linalg.qr(torch.randn(20, 3, generator=generator))[0]
    (got,), (true,) = (
        rsvd.subspace_step_many([a], [v], 2, impl)
        for a, v, impl in ((A, V, "triton"), (A.double(), V.double(), "reference"))
    )
    size = float(A.norm()) * 1e-4  # of roundings, far below any figure
    for name in ("S", "residual", "entering", "norm"):
        assert (getattr(got, name) - getattr(true, name)).abs().max() <= size, name
    for name in ("U", "V"):
        assert ((getattr(got, name).double() * getattr(true, name)).sum(0).abs() - 1).abs().max() <= 1e-3, name


def orthonormal():
    X = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
    X[:, 2], X[3, 1] = X[:, 0] - X[:, 4], float("inf")
    got, true = (orthonormal_many([X], impl)[0] for impl in ("triton", "reference"))
    assert (got - true).abs().max() <= 2.0**-22


def cosines():
    W, A = torch.full((3, 40), 0.5), torch.randn(17, 40, generator=torch.Generator().manual_seed(0))
    W = W.T.contiguous().T
    got, true = (cosines_many([W], [A], impl)[0] for impl in ("triton", "reference"))
    assert (got - true).abs().max() <= 1e-5


#: (name, text of the kernels' source, its replacement, the call that shows it).
MUTANTS = [
    ("spans on top of each other", "tl.load(t + fields.PART) + span * n, i, j, Q)\n    if FIRST:",
     "tl.load(t + fields.PART), i, j, Q)\n    if FIRST:", step),
    ("S in Z's units", "s = tl.sqrt(s2) / tl.load(facts_ptr + 2 * b)", "s = tl.sqrt(s2)", step),
    ("entering in Z's units", "x_ptr + there, j, ROWS, Q) / power - change",
     "x_ptr + there, j, ROWS, Q) - change", step),
    ("the smallest first", "values_ptr + b * Q + q - 1 - j", "values_ptr + b * Q + j", step),
    ("Y transformed by the transpose", "M = times(t_ptr + there, Q, 1,", "M = times(t_ptr + there, 1, Q,", step),
    ("residuals with the wrong sign", "av - u * tl.load", "av + u * tl.load", step),
    ("columns filled in their own place", "tl.sum(kept, 0) + tl.cumsum(late, 0) - late",
     "tl.cumsum(kept, 0) + tl.cumsum(late, 0) - late", orthonormal),
    ("nothing filled", "& 1) != 0) & (j < q)", "& 1) != 0) & (j < 0)", orthonormal),
    ("what is not finite kept as zeros", "tl.float64), mask=broken)", "tl.float64), mask=broken & (j < 0))",
     orthonormal),
    ("cosines above 1", "tl.where(found > 1.0, 1.0, found)", "found", cosines),
    ("A at W's stride", "j[None, :] * a_row\n", "j[None, :] * w_row\n", cosines),
    ("the last numbers left out", "range(0, d, DEPTH)", "range(0, d - DEPTH, DEPTH)", cosines),
]  # fmt: skip


@pytest.mark.parametrize("call", [step, orthonormal, cosines], ids=lambda f: f.__name__)
def test_without_a_mutant_all_is_well(call, monkeypatch):
    monkeypatch.setattr(step_triton, "SKETCH_ROWS", 16)
    call()


@pytest.mark.parametrize(("name", "old", "new", "call"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mistakes_are_caught(name, old, new, call, tmp_path, monkeypatch):
    with replaced("rsvd", old, new, tmp_path):
        monkeypatch.setattr(rsvd.step_triton, "SKETCH_ROWS", 16)  # the one that is in its place now
        with pytest.raises(AssertionError):
            call()
