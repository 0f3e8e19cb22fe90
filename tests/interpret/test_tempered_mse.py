"""The Triton kernels of the tempered squared error in Triton's interpreter, a process of its own."""

import itertools
import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import tempered_mse_conformity as suite
import torch
from conformity import check
from fastrank.kernels.tempered_mse import tempered_mse
from torch.library import opcheck

inf, nan = float("inf"), float("nan")
# The interpreter computes with NumPy, which warns of the -inf in padding lanes that the kernels mask afterwards.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

#: One row for each tile of config.py, its edges, and a row of several tiles.
SHAPES = [(0, 10), (1, 1), (7, 2), (7, 10), (70, 16), (7, 17), (20, 94), (3, 1000), (3, 1025), (2, 9001)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("T", [1e-2, 100.0])
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_keeps_its_error_bound(dtype, T):
    for (n, c), strides in zip(SHAPES, itertools.cycle(("contiguous", "transposed", "padded", "sliced"))):
        check(suite.OP, "triton", suite.Case(n, c, dtype, T, strides))


@pytest.mark.parametrize("options", suite.OPTIONS)
def test_keeps_its_error_bound_with_every_option(options):
    for (n, c), dtype in zip(SHAPES[1::2], itertools.cycle(suite.DTYPES)):
        check(suite.OP, "triton", suite.Case(n, c, dtype, 2.0, "transposed" if n == 7 else "contiguous", **options))


def both(z, target, T, **options):
    """Loss and its gradients through Triton and through the reference."""
    results = []
    for impl in ("triton", "reference"):
        loss = tempered_mse(z, target, T, **options, impl=impl)
        inputs = [z, *([T] if isinstance(T, torch.Tensor) and T.requires_grad else [])]
        results.append((loss.detach(), *torch.autograd.grad(loss.sum() * 1.5, inputs)))
    return results


@pytest.mark.parametrize(
    ("shape", "reduction"),
    [
        ((10,), "mean"),
        ((5, 10), "mean"),
        ((5, 10), "sum"),
        ((0, 10), "mean"),
        ((3, 70, 2, 2), "none"),
        ((2, 2100), "sum"),
    ],
    ids=str,
)
def test_equals_the_reference(shape, reduction):
    samples = shape[:1] + shape[2:] if len(shape) > 1 else ()
    y, y2 = torch.randint(10, samples), torch.randint(10, samples)
    ignored = y.clone()
    if y.numel() > 1:
        ignored.view(-1)[1], y2.view(-1)[0] = -100, y.view(-1)[0]
    weight = torch.rand(shape[min(1, len(shape) - 1)], dtype=torch.float64)
    share = torch.rand(shape[0] if len(shape) > 1 else (), dtype=torch.float64)
    targets = (ignored, (y, y2, share), torch.rand(shape, dtype=torch.float64))
    temperatures = [2.5, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)]
    if len(shape) > 1:
        temperatures.append((torch.rand(shape[0], dtype=torch.float64) + 0.5).requires_grad_())
    options = [{}, {"weight": weight, "label_smoothing": 0.2, "scale_gradient": "T"}, {"scale_gradient": "T2"}]
    for target, (T, option) in itertools.product(targets, zip(temperatures, options, strict=False)):
        z = (3 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
        for got, expected in zip(*both(z, target, T, reduction=reduction, **option), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


def test_layouts_without_a_copy_and_with_one():
    z, y = torch.randn(3, 7, 4, 5, dtype=torch.float64), torch.randint(7, (3, 4, 5))
    for view in (z, z.contiguous(memory_format=torch.channels_last), z.transpose(2, 3).contiguous().transpose(2, 3)):
        for target in (y, view.softmax(1).transpose(2, 3).contiguous().transpose(2, 3)):
            view = view.detach().requires_grad_()
            for got, expected in zip(*both(view, target, 2.0), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)
            loss = tempered_mse(view, target, 2.0, impl="triton")
            assert torch.autograd.grad(loss, view)[0].stride() == torch.empty_like(view).stride()


@pytest.mark.parametrize("c", [5, 6000])
def test_rows_that_are_not_finite(c):
    """The last two rows begin with more than one whole tile of -inf, or are nothing else."""
    z = torch.randn(7, c)
    y = torch.tensor([0, 1, 2, 0, 1, c - 1, 0])
    z[1, 0], z[2, 2], z[3], z[5, : c - 2], z[6] = nan, inf, nan, -inf, -inf
    y[3] = -100
    z.requires_grad_()
    (loss, grad), (expected, expected_grad) = both(z, y, 2.0, reduction="none")
    torch.testing.assert_close(loss, expected, equal_nan=True)
    torch.testing.assert_close(grad, expected_grad, equal_nan=True)
    assert loss[3] == 0 and (grad[3] == 0).all()


@pytest.mark.parametrize("c", [6, 6000])
def test_equal_largest_logits(c):
    """Within a tile, and in two tiles."""
    z = torch.randn(3, c, dtype=torch.float64)
    z[0, :2], z[1, 0], z[1, c - 1], z[2] = 9.0, 30.0, 30.0, 1.5
    for got, expected in zip(*both(z.requires_grad_(), torch.tensor([0, c - 1, 3]), 0.7), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-14)


def test_bad_labels_shares_and_temperatures_make_their_rows_nan():
    z = torch.randn(5, 4, requires_grad=True)
    T = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    y = torch.tensor([0, 4, -1, 2, 3])
    mixed = (torch.tensor([0, 4, 1, 2, 3]), torch.tensor([1, 0, -1, 2, 0]), torch.tensor([0.5, 0.5, 0.5, 0.5, 1.5]))
    for target, bad in ((y, [False, True, True, True, False]), (mixed, [False, True, True, True, True])):
        rows = tempered_mse(z, target, T, reduction="none", impl="triton")
        assert rows.isnan().tolist() == bad
        grad = torch.autograd.grad(rows.sum(), z)[0]
        assert grad.isnan().all(1).tolist() == bad and grad.isnan().any(1).tolist() == bad


@pytest.mark.parametrize("label", [0, 1, 2])
def test_probabilities_near_zero_and_one_keep_relative_accuracy(label):
    z, y = torch.tensor([[20.7, 0.0, -1.0]]), torch.tensor([label])
    (loss, grad), _ = both(z.requires_grad_(), y, 1.0, reduction="none")
    _, (true_loss, true_grad) = both(z.detach().double().requires_grad_(), y, 1.0, reduction="none")
    bound = 3 * (4 * 21.7 + 20) * torch.finfo(torch.float32).eps  # x is exact to 2 eps * 21.7
    assert abs(loss.double() / true_loss - 1) < bound
    assert ((grad.double() / true_grad - 1).abs() < bound).all()


def test_a_mean_over_nothing_is_nan_and_moves_nothing():
    z, T = torch.randn(3, 4, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    loss = tempered_mse(z, torch.full((3,), -100), T, impl="triton")
    assert loss.isnan()
    assert all((g == 0).all() for g in torch.autograd.grad(loss, (z, T)))


def test_derivatives_and_opcheck():
    z, y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([2, -100, 0])
    T = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(z, T):
        return tempered_mse(z, y, T, label_smoothing=0.1, impl="triton")

    assert torch.autograd.gradcheck(loss, (z, T))
    assert torch.autograd.gradgradcheck(loss, (z, T))
    opcheck(
        torch.ops.fastrank.tempered_mse.default,
        (z, y, None, None, 1.0, T, None, -100, "mean", 0.1, 0, False, "triton"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
