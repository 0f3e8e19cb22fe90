"""The Triton kernels in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/interpret (a process of its own)."""

import itertools
import os
from functools import partial

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import tempered_ce_conformity as suite
import tempered_ce_random as random_problems
import torch
from conformity import check
from fastrank.kernels.tempered_ce import RowStats, tempered_cross_entropy
from hypothesis import HealthCheck, given, reject, settings
from tempered_ce_failures import FAILURES
from torch.library import opcheck

inf, nan = float("inf"), float("nan")
# The interpreter computes with NumPy, which warns of the -inf in padding lanes that the kernels mask afterwards.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

#: One row for each tile of config.py, its edges, and a row of several tiles.
SHAPES = [(0, 10), (1, 1), (7, 2), (7, 10), (70, 16), (7, 17), (20, 94), (3, 1000), (3, 1025), (2, 9001)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("T", [1e-2, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_keeps_its_error_bound(dtype, T):
    for (n, c), strides in zip(SHAPES, itertools.cycle(("contiguous", "transposed", "padded", "sliced"))):
        check(suite.OP, "triton", suite.Case(n, c, dtype, T, strides))


@pytest.mark.parametrize("options", [o for o in suite.OPTIONS if "target" not in o])
def test_keeps_its_error_bound_with_weight_and_smoothing(options):
    for (n, c), dtype in zip(SHAPES, itertools.cycle(suite.DTYPES)):
        check(suite.OP, "triton", suite.Case(n, c, dtype, 2.0, **options))


def both(z, y, T, **options):
    """Loss, its gradients and statistics through Triton and through the reference."""
    results = []
    for impl in ("triton", "reference"):
        loss, stats = tempered_cross_entropy(z, y, T, **options, return_stats=True, impl=impl)
        inputs = [z, *([T] if isinstance(T, torch.Tensor) and T.requires_grad else [])]
        results.append((loss.detach(), *torch.autograd.grad(loss.sum() * 1.5, inputs), *stats))
    return results


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(10,), (5, 10), (0, 10), (3, 70, 2, 2), (2, 1500)], ids=str)
def test_equals_the_reference(shape, reduction):
    y = torch.randint(10, shape[:1] + shape[2:] if len(shape) > 1 else ())
    if y.numel() > 1:
        y.view(-1)[1] = -100
    weight = torch.rand(shape[min(1, len(shape) - 1)], dtype=torch.float64)
    temperatures = [2.5, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)]
    if len(shape) > 1:
        temperatures.append((torch.rand(shape[0], dtype=torch.float64) + 0.5).requires_grad_())
    for T, options in itertools.product(temperatures, ({}, {"weight": weight, "label_smoothing": 0.2})):
        z = (3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
        for got, expected in zip(*both(z, y, T, reduction=reduction, **options), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_layouts_without_a_copy_and_with_one():
    z, y = torch.randn(3, 7, 4, 5, dtype=torch.float64), torch.randint(7, (3, 4, 5))
    for view in (z, z.contiguous(memory_format=torch.channels_last), z.transpose(2, 3).contiguous().transpose(2, 3)):
        view = view.detach().requires_grad_()
        for got, expected in zip(*both(view, y, 2.0), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
        loss = tempered_cross_entropy(view, y, 2.0, impl="triton")
        assert torch.autograd.grad(loss, view)[0].stride() == torch.empty_like(view).stride()


@pytest.mark.parametrize("c", [5, 6000])
def test_rows_that_are_not_finite(c):
    """The last two rows begin with more than one whole tile of -inf, or are nothing else."""
    z = torch.randn(7, c)
    y = torch.tensor([0, 1, 2, 0, 1, c - 1, 0])
    z[1, 0], z[2, 2], z[3], z[5, : c - 2], z[6] = nan, inf, nan, -inf, -inf
    y[3] = -100
    z.requires_grad_()
    (loss, grad, *stats), (expected, expected_grad, *expected_stats) = both(z, y, 2.0, reduction="none")
    torch.testing.assert_close(loss, expected, equal_nan=True)
    torch.testing.assert_close(grad, expected_grad, equal_nan=True)
    assert loss[3] == 0 and (grad[3] == 0).all()
    for name, got, want in zip(RowStats._fields, stats, expected_stats, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_bad_labels_and_temperatures_make_their_rows_nan():
    z = torch.randn(4, 5, requires_grad=True)
    y, T = torch.tensor([0, 5, -1, 2]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    rows = tempered_cross_entropy(z, y, T, reduction="none", impl="triton")
    assert rows.isnan().tolist() == [False, True, True, True]
    grad = torch.autograd.grad(rows.sum(), z)[0]
    assert grad[0].isfinite().all() and grad[1:].isnan().all()


@pytest.mark.parametrize("correct", [True, False])
def test_probabilities_near_zero_and_one_keep_relative_accuracy(correct):
    z, y = torch.tensor([[20.7, 0.0, -1.0]]), torch.tensor([0 if correct else 1])
    (loss, grad, *_), _ = both(z.requires_grad_(), y, 1.0)
    _, (true_loss, true_grad, *_) = both(z.detach().double().requires_grad_(), y, 1.0)
    bound = 60 * torch.finfo(torch.float32).eps  # x is exact to 2 eps * 21.7
    assert abs(loss.double() / true_loss - 1) < bound
    assert ((grad.double() / true_grad - 1).abs() < bound).all()


def test_derivatives_and_opcheck():
    z, y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([2, -100, 0])
    T = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(z, T):
        return tempered_cross_entropy(z, y, T, label_smoothing=0.1, impl="triton")

    assert torch.autograd.gradcheck(loss, (z, T))
    assert torch.autograd.gradgradcheck(loss, (z, T))
    opcheck(
        torch.ops.fastrank.tempered_ce.default,
        (z, y, None, None, 1.0, T, None, -100, "mean", 0.1, 0, True, False, "triton"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_of_other_kernels(name):
    """See tests/kernels/test_tempered_ce_failures.py; "the host" is then the kernel's wrapper."""
    loss = partial(tempered_cross_entropy, impl="triton")
    options = {"device": "cpu"} if name == "the_host_reads_no_tensor" else {}
    try:
        FAILURES[name].check(loss, **options)
    except RuntimeError as error:
        if "has no kernel for" not in str(error):
            raise
        pytest.skip(str(error))


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(random_problems.problems())
def test_keeps_its_bound_for_any_problem(problem):
    try:
        random_problems.check(problem, "triton")
    except RuntimeError as error:
        if "has no kernel for" not in str(error):
            raise
        reject()
