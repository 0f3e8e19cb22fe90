"""The Triton kernels of test matrices, sketches and subspace steps from their compiled sm_80 PTX."""

from __future__ import annotations

import pytest
import torch
from emulate.mistakes import replaced
from emulate.ptx.run import KernelFailure, Run
from fastrank.kernels.rsvd import KINDS, reference, steps
from fastrank.kernels.rsvd.config import SketchTile

OUTPUTS = {
    "test_matrix_kernel": {"out_ptr"},
    "sketch_kernel": {"part_ptr"},
    "add_spans_kernel": {"out_ptr"},
    "project_kernel": {"part_ptr", "square_ptr"},
    "rows_kernel": {"y_ptr", "gram_ptr", "largest_ptr"},
    "columns_kernel": {"z_ptr", "gram_ptr"},
    "small_kernel": {"gram_ptr", "t_ptr", "facts_ptr"},
    "jacobi_kernel": {"work_ptr", "values_ptr", "vectors_ptr"},
    "rotations_kernel": {"m_ptr", "x_ptr", "s_ptr", "theta_ptr"},
    "left_kernel": {"u_ptr"},
    "right_kernel": {"basis_ptr", "gram_ptr", "entering_ptr"},
    "basis_kernel": {"t_ptr", "lost_ptr"},
    "apply_kernel": {"new_ptr", "gram_ptr", "out_ptr"},
    "start_kernel": {"basis_ptr", "gram_ptr"},
    "cosines_kernel": {"out_ptr"},
    "residual_kernel": {"residual_ptr"},
    "finish_kernel": {"values_ptr", "entering_ptr", "norm_ptr", "residual_ptr"},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def driver(triton_emulator):
    from emulate import tempered_mse_launches  # noqa: F401  (records what is compiled, before a test changes tiles)
    from emulate.ptx.triton_driver import EmulatedDriver

    return EmulatedDriver(triton_emulator, {name: frozenset(names) for name, names in OUTPUTS.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_have_the_references_bits(kind, driver, monkeypatch):
    from emulate import tempered_mse_launches
    from fastrank.kernels.rsvd import triton as kernels

    # Of few numbers a thread: the code of 16 is long.
    monkeypatch.setattr(kernels, "TEST_TILE", SketchTile(16, 16, 0, 2))
    dtype = torch.float64 if kind == "rademacher" else torch.float32
    arguments = 9, 13, 2**64 - 3, 2**32 - 1, kind, dtype, CPU
    with tempered_mse_launches.triton_on_cpu(driver):
        for number, schedule in enumerate(("lockstep", "random:1")):
            driver.run = Run(schedule, error_seed=number)
            assert torch.equal(kernels.test_matrix(*arguments), reference.test_matrix(*arguments))


@pytest.mark.parametrize(("dtype", "q"), [(torch.float32, 5), (torch.float64, 3)], ids=str)
def test_sketch(dtype, q, driver, monkeypatch):
    """Three spans; sums of 16 products, then of the spans."""
    from emulate import tempered_mse_launches
    from fastrank.kernels.rsvd import triton as kernels

    monkeypatch.setattr(kernels, "SKETCH_ROWS", 16)
    A = torch.randn(5, 37, generator=torch.Generator().manual_seed(0), dtype=dtype)
    omega = reference.test_matrix(37, q, 5, 1, "gaussian", torch.float64)
    u = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    with tempered_mse_launches.triton_on_cpu(driver):
        for schedule in ("warps-reverse+early", "random:1"):
            driver.run = Run(schedule)
            found = kernels.sketch(A, q, 5, 1, "gaussian")
            assert ((found.double() - A.double() @ omega).abs() <= 20 * u * (A.double().abs() @ omega.abs())).all()


def test_a_step_gives_the_same_bits_under_every_schedule(driver, monkeypatch):
    """Two row blocks, two column blocks, two spans; a matrix of rank two, whose lost columns are filled."""
    from emulate import tempered_mse_launches
    from fastrank.kernels.rsvd import step_triton

    monkeypatch.setattr(step_triton, "SKETCH_ROWS", 48)
    generator = torch.Generator().manual_seed(0)
    A = [torch.randn(66, 67, generator=generator), torch.randn(6, 2, generator=generator) @ torch.randn(2, 7)]
    V = [torch.linalg.qr(torch.randn(a.shape[1], q, generator=generator))[0] for a, q in zip(A, (5, 3), strict=True)]
    driver.behind, first = [*A, *V], None
    truth = [steps.subspace_step(a.double(), v.double(), 2) for a, v in zip(A, V, strict=True)]
    u = 2.0**-24
    with tempered_mse_launches.triton_on_cpu(driver):
        for schedule in ("warps-reverse+early", "random:1"):
            driver.run = Run(schedule)
            got = step_triton.subspace_step_many(A, V, 2)
            first = first or got
            for a, v, found, true, before in zip(A, V, got, truth, first, strict=True):
                for x, y in zip(found, before, strict=True):
                    assert torch.equal(x, y)
                W, budget = found[2].double(), 500 * 2 * sum(a.shape) * u * float(a.norm())
                assert (W.T @ W - torch.eye(v.shape[1])).abs().max() <= 8 * v.shape[1] * u
                assert (found[1].double() - true[1]).abs().max() <= budget
                assert (a.double() @ W[:, :2] - found[0].double() * found[1][:2].double()).norm() <= (
                    2 * float(found[3].norm()) + budget
                )
    driver.behind = []


def orthonormal(schedule: str, driver) -> torch.Tensor:
    """A block of two blocks of rows, with a column that depends on others and one that is not finite."""
    from emulate import tempered_mse_launches
    from fastrank.kernels.rsvd import orthonormal_triton

    X = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    X[:, 2], X[3, 1] = 2 * X[:, 0], float("nan")
    driver.behind, driver.run = [X], Run(schedule)
    try:
        with tempered_mse_launches.triton_on_cpu(driver):
            (found,) = orthonormal_triton.orthonormal_many([X])
    finally:
        driver.behind = []
    assert (found - steps.orthonormal(X)).abs().max() <= 2.0**-22
    return found


def test_orthonormal_blocks_have_the_same_bits_under_every_schedule(driver):
    assert torch.equal(orthonormal("warps-reverse+early", driver), orthonormal("random:1", driver))


def test_cosines_have_the_same_bits_under_every_schedule(driver):
    from emulate import tempered_mse_launches
    from fastrank.kernels.rsvd import cosines_triton

    generator = torch.Generator().manual_seed(0)
    W = [torch.randn(70, 3, generator=generator).T, torch.randn(17, 5, generator=generator) / 5]
    A = [torch.randn(4, 70, generator=generator) / 70, torch.randn(2, 5, generator=generator)]
    driver.behind, first = [*W, *A], None
    with tempered_mse_launches.triton_on_cpu(driver):
        for schedule in ("lockstep", "warps-reverse+early", "random:1"):
            driver.run = Run(schedule)
            got = cosines_triton.cosines_many(W, A)
            first = first or got
            for w, a, found, before in zip(W, A, got, first, strict=True):
                exact, budget = w.double() @ a.double().T, 72 * 2.0**-24 * (w.double().abs() @ a.double().abs().T)
                assert torch.equal(found, before)
                assert ((found - exact.abs().clamp_max(1.0)).abs() <= budget).all()
    driver.behind = []


def test_a_missing_barrier_is_caught(driver, tmp_path):
    """What the interpreter, which has no threads, cannot show: rows of the Gram matrix are read by other threads than
    have written them."""
    line = "total = tl.zeros((Q, Q), tl.float64)\n    for at"
    barrier = "tl.debug_barrier()\n    " + line
    with replaced("rsvd", barrier, line, tmp_path), pytest.raises((KernelFailure, AssertionError)):
        for schedule in ("warps", "warps-reverse+early"):
            orthonormal(schedule, driver)
