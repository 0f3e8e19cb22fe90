"""The Triton kernels in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/interpret (a process of its own)."""

import itertools
import os
from contextlib import nullcontext
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
from fastrank.kernels.tempered_ce import RowStats, config, tempered_cross_entropy
from fastrank.kernels.tempered_ce import triton as kernels
from fastrank.kernels.tempered_loss.tiles import tile
from hypothesis import HealthCheck, given, settings
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


@pytest.mark.parametrize("options", suite.OPTIONS, ids=str)
def test_keeps_its_error_bound_with_every_option(options):
    strides = itertools.cycle(("contiguous", "transposed", "padded", "sliced", "contiguous"))
    for (n, c), dtype, layout in zip(SHAPES, itertools.cycle(suite.DTYPES), strides):
        check(suite.OP, "triton", suite.Case(n, c, dtype, 2.0, layout, **options))


FEW = 7 * 2048  # most classes of a row that stays whole


def test_which_rows_are_split():
    """By rows, length and device; every tile of a row in one part, none empty."""
    assert config.splits(1, FEW, 132) == (1, 7) and config.splits(1, FEW + 1, 132) == (8, 1)
    assert config.splits(4, 128256, 132) == (63, 1)
    assert config.splits(64, 128256, 132) == (8, 8)
    assert config.splits(264, 128256, 132) == (2, 32) and config.splits(265, 128256, 132) == (1, 63)
    assert config.splits(1, 300_000, 132) == (147, 1) and config.splits(1, 2_000_000, 132) == (245, 4)
    for programs, classes, sms in itertools.product((1, 3, 50, 1000), (1000, 20_000, 1_000_001), (1, 20, 132)):
        parts, span = config.splits(programs, classes, sms)
        tiles = -(-classes // tile(classes).classes)
        assert 1 <= parts <= config.MAX_PARTS and (parts - 1) * span < tiles <= parts * span


@pytest.mark.parametrize("options", [{}, *suite.OPTIONS], ids=str)
def test_split_rows_keep_the_error_bound(options, monkeypatch):
    """Of one class more than stays whole; of parts of several tiles; of a last part shorter than the others."""
    for (n, c), sms, dtype in zip(
        [(1, FEW + 1), (2, FEW + 1), (1, 9 * 2048 - 5)], (132, 1, 1), suite.DTYPES, strict=False
    ):
        monkeypatch.setattr(kernels, "_multiprocessors", lambda device, sms=sms: sms)
        assert config.splits(n, c, sms)[0] > 1
        check(suite.OP, "triton", suite.Case(n, c, dtype, 2.0, **options))


def test_split_rows_equal_the_reference():
    """Reductions and statistics; labels and maxima on either side of where parts meet; an ignored row."""
    c, n = 300, 7
    y = torch.tensor([0, 127, 128, 255, 256, c - 1, -100])
    second = torch.tensor([128, 128, 127, 0, c - 1, 256, 0])
    share = torch.tensor([0.3, 1.0, 0.0, 0.5, 0.7, 0.2, 0.9], dtype=torch.float64)
    weight = torch.rand(c, dtype=torch.float64)
    z = (3 * torch.randn(n, c, dtype=torch.float64)).requires_grad_()
    with torch.no_grad():
        z[torch.arange(n), second] += 20
    options = {"weight": weight, "label_smoothing": 0.2, "scale_gradient": "T"}
    for target, reduction in itertools.product((y, (y.clamp(min=0), second, share)), ("none", "mean", "sum")):
        with suite.split_rows():
            results = both(z, target, 1.7, reduction=reduction, **options)
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_programs_too_many_for_one_to_sum(reduction, monkeypatch):
    monkeypatch.setattr(kernels, "ALONE", 1)
    z, y = torch.randn(130, 5, dtype=torch.float64, requires_grad=True), torch.randint(5, (130,))
    weight = torch.rand(5, dtype=torch.float64)
    for target, weights in (
        (y, None),
        (y.index_fill(0, torch.tensor([3]), -100), weight),
        ((y, y.flip(0), 0.3), weight),
    ):
        for got, expected in zip(*both(z, target, 2.0, reduction=reduction, weight=weights), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_denominator_counts_programs_only_meanwhile(reduction, dtype):
    """Its memory counts the programs: what is left must be exactly what a mean divides by, or 1."""
    z, y = torch.randn(130, 5, dtype=dtype), torch.randint(5, (130,))
    for rows in (slice(None), slice(0, 5)):
        with suite.split_rows() if rows.stop else nullcontext():
            arguments = (z[rows], y[rows], None, None, 1.0, None, None, -100, reduction, 0.0, 0, False, False)
            *_, denominator, _ = kernels.forward(*arguments)
        assert denominator == (y[rows].numel() if reduction == "mean" else 1)


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
    q = torch.rand(shape)
    share = torch.rand(shape[:1] if len(shape) > 1 else ())
    targets = (y, (y.clamp(min=0).flip(0) if y.dim() else y, y.clamp(min=0), share), q)
    everything = {"weight": weight, "label_smoothing": 0.2, "scale_gradient": "T2"}
    for T, options, target in itertools.product(temperatures, ({}, everything), targets):
        z = (3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
        for got, expected in zip(*both(z, target, T, reduction=reduction, **options), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_layouts_without_a_copy_and_with_one():
    z, y = torch.randn(3, 7, 4, 5, dtype=torch.float64), torch.randint(7, (3, 4, 5))
    mixed, q = (y.transpose(1, 2).contiguous().transpose(1, 2), y.flip(0), 0.3), torch.rand(3, 7, 4, 5)
    for view in (z, z.contiguous(memory_format=torch.channels_last), z.transpose(2, 3).contiguous().transpose(2, 3)):
        view = view.detach().requires_grad_()
        for target in (y, mixed, q, q.transpose(2, 3).contiguous().transpose(2, 3)):
            for got, expected in zip(*both(view, target, 2.0), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
        loss = tempered_cross_entropy(view, y, 2.0, impl="triton")
        assert torch.autograd.grad(loss, view)[0].stride() == torch.empty_like(view).stride()


@pytest.mark.parametrize("c", [5, 6000, FEW + 1])
def test_rows_that_are_not_finite(c):
    """The last two rows begin with more than one whole tile (or part) of -inf, or are nothing else."""
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


@pytest.mark.parametrize("target", ["mixed", "probabilities"])
def test_other_targets_of_rows_that_are_not_finite(target):
    """As in the reference: a logit of -inf beside weight 0 is NaN, as torch's own loss is."""
    z = torch.randn(5, 6)
    z[1, 0], z[2, 2], z[3, :3], z[4] = nan, inf, -inf, -inf
    y = (torch.tensor([0, 1, 2, 4, 0]), torch.tensor([1, 1, 0, 5, 1]), torch.tensor([1.0, 0.5, 0.2, 0.0, 0.3]))
    if target == "probabilities":
        y = torch.rand(5, 6)
        y[3, 0] = 0
    results = both(z.requires_grad_(), y, 2.0, reduction="none")
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


def test_bad_shares_and_labels_of_mixed_targets_make_their_rows_nan():
    z = torch.randn(5, 5, requires_grad=True)
    labels = torch.tensor([0, 5, 1, 2, 3]), torch.tensor([1, 0, -1, 0, 3])
    rows = tempered_cross_entropy(z, (*labels, torch.tensor([0.5, 0.5, 0.5, 1.5, nan])), 1.0, reduction="none",
                                  impl="triton")  # fmt: skip
    assert rows.isnan().tolist() == [False, True, True, True, True]
    grad = torch.autograd.grad(rows.sum(), z)[0]
    assert grad[0].isfinite().all() and grad[1:].isnan().all()


def test_smoothing_and_temperature_keep_float64():
    """A float that a kernel gets as float32 would show at 1e-9."""
    z, y = torch.randn(3, 9, dtype=torch.float64), torch.tensor([1, 2, 3])
    got = tempered_cross_entropy(z, y, 0.7, label_smoothing=0.1, impl="triton")
    expected = torch.nn.functional.cross_entropy(z / 0.7, y, label_smoothing=0.1)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)


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


@pytest.mark.parametrize("largest", [0, 1])
def test_either_label_of_a_mixed_target_keeps_relative_accuracy_near_one(largest):
    """The other label has no share, so that nothing else hides the loss of the label that is nearly certain."""
    z, y = torch.tensor([[20.7, 0.0, -1.0]]), (torch.tensor([largest]), torch.tensor([1 - largest]))
    y = (*y, torch.tensor([1.0 - largest]))
    (loss, grad, *_), _ = both(z.requires_grad_(), y, 1.0)
    _, (true_loss, true_grad, *_) = both(z.detach().double().requires_grad_(), y, 1.0)
    bound = 60 * torch.finfo(torch.float32).eps
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


@pytest.mark.parametrize("target", ["mixed", "probabilities"])
def test_derivatives_of_other_targets(target):
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = (torch.tensor([2, 1, 0]), torch.tensor([2, 3, 1]), torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64))
    y = torch.rand(3, 4, dtype=torch.float64) if target == "probabilities" else y
    T = torch.tensor([0.7, 2.0, 1.0], dtype=torch.float64, requires_grad=True)

    def loss(z, T):
        return tempered_cross_entropy(z, y, T, label_smoothing=0.1, impl="triton")

    assert torch.autograd.gradcheck(loss, (z, T))
    assert torch.autograd.gradgradcheck(loss, (z, T))


@pytest.mark.parametrize("name", FAILURES)
def test_no_failure_of_other_kernels(name):
    """See tests/kernels/test_tempered_ce_failures.py; "the host" is then the kernel's wrapper."""
    options = {"device": "cpu"} if name == "the_host_reads_no_tensor" else {}
    FAILURES[name].check(partial(tempered_cross_entropy, impl="triton"), **options)


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(random_problems.problems())
def test_keeps_its_bound_for_any_problem(problem):
    random_problems.check(problem, "triton")
