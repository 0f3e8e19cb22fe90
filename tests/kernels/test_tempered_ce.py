import itertools

import pytest
import tempered_ce_conformity as suite
import torch
import torch.nn.functional as F
from conformity import check
from fastrank.kernels.tempered_ce import RowStats, native, tempered_cross_entropy
from torch.library import opcheck

IMPLS = ("reference", "native")
inf, nan = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def batch(n=6, c=10, dtype=torch.float64, scale=3.0):
    return (scale * torch.randn(n, c)).to(dtype).requires_grad_(), torch.randint(c, (n,))


def grad_of(loss, *inputs, **options):
    return torch.autograd.grad(loss, inputs, **options)


# ---- against the float64 truth ----


@pytest.mark.parametrize("T", [1e-2, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("strides", ["contiguous", "transposed", "padded", "sliced"])
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_native_keeps_its_error_bound(dtype, strides, T):
    for n, c in suite.SHAPES:
        check(suite.OP, "native", suite.Case(n, c, dtype, T, strides))


@pytest.mark.parametrize("options", suite.OPTIONS)
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_native_keeps_its_error_bound_with_weight_and_smoothing(dtype, options):
    for (n, c), (strides, T) in itertools.product(suite.SHAPES, (("contiguous", 1.0), ("transposed", 30.0))):
        check(suite.OP, "native", suite.Case(n, c, dtype, T, strides, **options))


def test_native_keeps_its_error_bound_with_smoothing_at_every_shape():
    for dtype, (n, c), strides in itertools.product(suite.DTYPES, suite.SHAPES, ("contiguous", "transposed")):
        check(suite.OP, "native", suite.Case(n, c, dtype, 2.0, strides, label_smoothing=0.1))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("correct", [True, False])
def test_probabilities_near_zero_and_one_keep_relative_accuracy(impl, correct):
    """A target probability of 1 - 1e-9 (or 1e-9): `p - 1` and `lse - x` would have no digit left in float32."""
    z = torch.tensor([[20.7, 0.0, -1.0]])
    y = torch.tensor([0 if correct else 1])

    def both(z):
        z = z.requires_grad_()
        loss = tempered_cross_entropy(z, y, impl=impl)
        return loss.detach().double(), grad_of(loss, z)[0].double()

    (loss, grad), (true_loss, true_grad) = both(z), both(z.double())
    # x is exact to 2 eps * 21.7, which is the relative error of exp(x); a few roundings follow.
    bound = 60 * torch.finfo(torch.float32).eps
    assert abs(loss / true_loss - 1) < bound
    assert ((grad / true_grad - 1).abs() < bound).all()


# ---- a drop-in for torch ----


@pytest.mark.parametrize("impl", IMPLS)
def test_a_mean_over_nothing_is_nan_and_moves_no_logit(impl):
    z, _ = batch(3)
    T = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = tempered_cross_entropy(z, torch.full((3,), -100), T, impl=impl)
    assert loss.isnan()
    assert torch.equal(grad_of(loss, z)[0], torch.zeros_like(z))


# ---- the temperature ----


@pytest.mark.parametrize("impl", IMPLS)
def test_temperature_forms_agree(impl):
    z, y = batch()
    loss = tempered_cross_entropy(z, y, 2.5, reduction="none", impl=impl)
    for T in (torch.tensor(2.5), torch.full((6,), 2.5), torch.tensor([2.5]).expand(6), torch.full((12,), 2.5)[::2]):
        assert torch.equal(tempered_cross_entropy(z, y, T, reduction="none", impl=impl), loss)
    each = torch.rand(6, dtype=torch.float64) + 0.5
    rows = tempered_cross_entropy(z, y, each, reduction="none", impl=impl)
    expected = torch.stack([F.cross_entropy(z[i] / each[i], y[i]) for i in range(6)])
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_per_sample_temperature_of_images(impl):
    z = torch.randn(3, 5, 2, 4, dtype=torch.float64).requires_grad_()
    y, T = torch.randint(5, (3, 2, 4)), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    ours = tempered_cross_entropy(z, y, T, impl=impl)
    theirs = F.cross_entropy(z / T[:, None, None, None], y)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for got, expected in zip(grad_of(ours, z, T), grad_of(theirs, z, T), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_masked_classes_leave_the_temperature_gradient_finite(impl):
    z = torch.tensor([[1.0, -inf, 0.0, -inf], [-inf, -inf, 2.0, 3.0]], dtype=torch.float64).requires_grad_()
    y, T = torch.tensor([0, 3]), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    grad, grad_T = grad_of(tempered_cross_entropy(z, y, T, impl=impl), z, T)
    small = torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.float64).requires_grad_()
    expected = grad_of(F.cross_entropy(small / T, torch.tensor([0, 0])), small, T)
    torch.testing.assert_close(grad_T, expected[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(grad[z.isfinite()], torch.stack([*expected[0][0], *expected[0][1].flip(0)]))
    assert (grad[z.isinf()] == 0).all()


# ---- gradients ----


def test_derivatives_of_probability_targets_and_weight():
    z, q = (torch.randn(3, 4, dtype=torch.float64).abs().requires_grad_() for _ in range(2))
    w, T = torch.rand(4, dtype=torch.float64, requires_grad=True), torch.tensor(0.7).double().requires_grad_()

    def soft(z, q, T, w):
        return tempered_cross_entropy(z, q, T, w, label_smoothing=0.1)

    def hard(z, T, w):
        return tempered_cross_entropy(z, torch.tensor([2, 0, 1]), T, w, label_smoothing=0.1)

    for loss, inputs in ((soft, (z, q, T, w)), (hard, (z, T, w))):
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)


def test_third_derivative_is_that_of_the_reference():
    y = torch.tensor([1, 0])
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 3, dtype=torch.float64)
    results = []
    for impl in IMPLS:
        first = grad_of(tempered_cross_entropy(z, y, 0.8, impl=impl) ** 2, z, create_graph=True)[0]
        second = grad_of((first * v).sum(), z, create_graph=True)[0]
        results.append(grad_of((second * v).sum(), z)[0])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("c", [5, 24, 25, 300, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_may_take_the_place_of_the_logits(c, dtype):
    """As the linear loss has it: its logits are its own."""
    z, y = batch(37, c, dtype)
    z, q = z.detach(), torch.rand(37, c)
    for target, second, share in ((y, None, None), (y, y.flip(0), torch.tensor(0.3)), (q, None, None)):
        rest = (second, share, 3.0, None, None, -100, "sum", 0.1, 0, False)
        loss, _, _, grad = native.forward(z, target, *rest, True)
        own = z.clone()
        again, _, _, moved = native.forward(own, target, *rest, True, in_place=True)
        assert moved is own
        assert torch.equal(loss, again) and torch.equal(grad, own)


# ---- rows that are not finite ----


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("c", [5, 70])
def test_minus_infinity_is_a_class_without_probability(impl, c):
    z = torch.full((3, c), -inf)
    z[0, 1], z[1, -2:], z[2, 2] = 3.0, torch.tensor([1.0, 2.0]), 1.0
    y = torch.tensor([1, c - 1, 0])
    z.requires_grad_()
    ours = tempered_cross_entropy(z, y, reduction="none", impl=impl)
    theirs = F.cross_entropy(z, y, reduction="none")
    torch.testing.assert_close(ours, theirs)
    assert ours[0] == 0 and ours[2] == inf
    torch.testing.assert_close(grad_of(ours[:2].sum(), z), grad_of(theirs[:2].sum(), z))


# ---- statistics ----


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(7,), (9, 100), (3, 10, 2, 2)], ids=str)
def test_stats(impl, shape):
    T = 2.5
    z = (3 * torch.randn(shape)).double().requires_grad_()
    y = torch.randint(7, shape[:1] + shape[2:] if len(shape) > 1 else ())
    if y.dim():
        y.view(-1)[1] = -100
    loss, stats = tempered_cross_entropy(z, y, T, return_stats=True, impl=impl)
    assert torch.equal(loss, tempered_cross_entropy(z, y, T, impl=impl))
    rows = z.detach().movedim(1, -1) if z.dim() > 1 else z.detach()
    p = (rows / T).softmax(-1)
    expected = RowStats(
        logsumexp=(rows / T).logsumexp(-1),
        max_prob=p.amax(-1),
        entropy=torch.special.entr(p).sum(-1),
        sum_z=rows.sum(-1),
        sum_z2=rows.square().sum(-1),
        target_rank=torch.where(y < 0, -1, (rows > rows.gather(-1, y.clamp(min=0)[..., None])).sum(-1)),
    )
    for name, got, want in zip(RowStats._fields, stats, expected, strict=True):
        assert not got.requires_grad, name
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    if z.dim() == 2:
        top = rows.topk(5, dim=1).indices
        assert torch.equal((stats.target_rank < 5)[y >= 0], (top == y[:, None]).any(1)[y >= 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_stats_with_masked_classes_and_nan(impl):
    z = torch.tensor([[1.0, -inf, 2.0], [nan, 0.0, 1.0]])
    _, stats = tempered_cross_entropy(z, torch.tensor([0, 1]), 2.0, return_stats=True, impl=impl)
    p = torch.tensor([1.0, 2.0]).div(2).softmax(0)
    torch.testing.assert_close(stats.entropy[0], torch.special.entr(p).sum())
    assert stats.target_rank[0] == 1
    assert stats.entropy[1].isnan() and stats.logsumexp[1].isnan() and stats.max_prob[1].isnan()


def test_stats_of_probability_targets_rank_the_most_probable_class():
    z, q = torch.randn(4, 6), torch.rand(4, 6)
    _, stats = tempered_cross_entropy(z, q, return_stats=True)
    _, hard = tempered_cross_entropy(z, q.argmax(1), return_stats=True)
    assert torch.equal(stats.target_rank, hard.target_rank)


# ---- bad input ----

Z, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_label_out_of_range_is_named_with_its_position(impl):
    expected = r"target: expected labels in \[0, 3\) or ignore_index=-100, got 3 at position 2"
    with pytest.raises(IndexError, match=expected):
        tempered_cross_entropy(Z, torch.tensor([0, 1, 3, -1]), impl=impl)
    with pytest.raises(IndexError, match=r"got -1 at position \(1, 1\)"):
        tempered_cross_entropy(torch.randn(2, 3, 2), torch.tensor([[0, 1], [-100, -1]]), impl=impl)
    with pytest.raises(IndexError, match=r"got 2\d{9}$"):
        tempered_cross_entropy(Z[0], torch.tensor(2**31 + 1), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [0.0, -1.0, nan, inf])
def test_a_bad_temperature_is_named(impl, bad):
    with pytest.raises(ValueError, match="T: expected a finite temperature > 0, got"):
        tempered_cross_entropy(Z, Y, bad, impl=impl)
    with pytest.raises(ValueError, match="T: expected finite temperatures > 0, got"):
        tempered_cross_entropy(Z, Y, torch.tensor(bad), impl=impl)
    with pytest.raises(ValueError, match="for sample 2"):
        tempered_cross_entropy(Z, Y, torch.tensor([1.0, 1.0, bad, 1.0]), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [5e-324, 1e-45, 1e-40, 1e-31, 1e31, 1e39, 1e308])
def test_a_temperature_that_float32_cannot_divide_by_is_named(impl, bad):
    """1 / T, or T in float32, would be infinite or 0, and the loss NaN or that of another temperature."""
    for dtype in (torch.float64, torch.float32):
        with pytest.raises(ValueError, match=r"T: expected a temperature in \[1e-30, 1e30\], got"):
            tempered_cross_entropy(Z.to(dtype), Y, bad, impl=impl)
        each = torch.tensor([1.0, 1e-30, 1e30, bad], dtype=torch.float64)
        with pytest.raises(ValueError, match=r"T: expected temperatures in \[1e-30, 1e30\], got .* for sample 3"):
            tempered_cross_entropy(Z.to(dtype), Y, each, impl=impl)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Z.long(), Y), TypeError, "input: expected logits in float64"),
        ((Z[0, 0], Y[0]), ValueError, "input: expected logits .* got a 0-d tensor"),
        ((Z[:, :0], Y), ValueError, "input: expected at least one class"),
        ((Z, Y[:3]), ValueError, r"target: expected class indices of shape \[4\].* got \[3\]"),
        ((Z, Y.bool()), TypeError, "target: expected integer class indices"),
        ((Z, Y.float()), ValueError, "target: expected class probabilities shaped like input"),
        ((Z, [0, 1, 2, 0]), TypeError, "target: expected a tensor, or a tuple .*, got list"),
        ((Z, (Y, Y)), ValueError, "target: expected .* got 2 values"),
        ((Z, (Y, Y.float(), 0.5)), TypeError, r"target\[1\]: expected integer class indices, got torch.float32"),
        ((Z, (Y[:3], Y, 0.5)), ValueError, r"target\[0\]: expected class indices of shape \[4\]"),
        ((Z, (Y, Y, 1.5)), ValueError, r"target\[2\]: expected the first label's share in \[0, 1\], got 1.5"),
        ((Z, (Y, Y, "half")), TypeError, r"target\[2\]: expected a number or a tensor, got str"),
        ((Z, (Y, Y, torch.ones(3))), ValueError, r"target\[2\]: .* one per sample \[4\]"),
        ((Z, (Y, Y, torch.tensor([0.5, 0, 2, 1]))), ValueError, r"target\[2\]: .* got 2.0 for sample 2"),
        ((Z, (Y, Y + 3, 0.5)), IndexError, r"target\[1\]: expected labels in \[0, 3\), got"),
        ((Z, (Y, Y, 0.5), 1.0, None, 1), ValueError, "ignore_index: expected none with mixed targets"),
        ((Z, Y, "1"), TypeError, "T: expected a float or a tensor, got str"),
        ((Z, Y, torch.tensor(1)), TypeError, "T: expected a floating-point tensor"),
        ((Z, Y, torch.ones(3)), ValueError, r"T: .* one value per sample \[4\], got shape \[3\]"),
        ((Z, Y, torch.ones(4, 3)), ValueError, "T: expected a float"),
        ((Z[0], Y[0], torch.ones(1)), ValueError, "T: .* unbatched"),
        ((Z, Y, 1.0, torch.ones(4)), ValueError, r"weight: expected one value per class \[3\]"),
        ((Z, Y, 1.0, torch.ones(3).long()), TypeError, "weight: expected a floating-point tensor"),
        ((Z, Y, 1.0, None, -100, "avg"), ValueError, "reduction: expected one of none, mean, sum"),
        ((Z, Y, 1.0, None, -100, "mean", 1.5), ValueError, r"label_smoothing: expected a number in \[0, 1\]"),
        ((Z, Y, 1.0, None, -100, "mean", "0.1"), TypeError, r"label_smoothing: expected a number in \[0, 1\], got str"),
        ((Z, Y, 1.0, None, 1.0), TypeError, "ignore_index: expected an int, got float"),
        ((Z, Y, 1.0, None, 2**63), ValueError, "ignore_index: expected an int of 64 bits, got 9223372036854775808"),
        ((Z, Y, 10**400), ValueError, r"T: expected a temperature in \[1e-30, 1e30\], got 1000"),
        ((Z, Y, 1.0, None, None), TypeError, "ignore_index: expected an int, got NoneType"),
        ((Z, Z.softmax(1), 1.0, None, 1), ValueError, "ignore_index: expected none with class-probability"),
        ((Z, Y.to("meta")), ValueError, "target: expected a tensor on cpu"),
    ],
    ids=lambda x: "",
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        tempered_cross_entropy(*arguments)


def test_impl_is_never_replaced_silently():
    with pytest.raises(RuntimeError, match="impl='native'"):
        tempered_cross_entropy(Z, Z.softmax(1).requires_grad_(), impl="native")
    with pytest.raises(RuntimeError, match="impl='triton' cannot run tempered_ce"):
        tempered_cross_entropy(Z, Y, impl="triton")
    with pytest.raises(ValueError, match="impl: expected one of"):
        tempered_cross_entropy(Z, Y, impl="cuda")


# ---- torch's machinery ----


def test_opcheck():
    z, y = batch(4, 5, torch.float32)
    T = torch.tensor(0.7, requires_grad=True)
    y[1] = -100
    for reduction, temperature, stats, smoothing in (
        ("mean", T, False, 0.0), ("none", torch.rand(4) + 1, True, 0.1), ("sum", None, False, 0.0)
    ):  # fmt: skip
        with_grad = reduction != "none"
        arguments = (
            z, y, None, None, 1.5, temperature, torch.rand(5), -100, reduction, smoothing, 0, stats, with_grad,
            "native",
        )  # fmt: skip
        opcheck(torch.ops.fastrank.tempered_ce.default, arguments)
        loss, rows, denominator, _ = torch.ops.fastrank.tempered_ce(*arguments)
        grad_loss = torch.randn_like(loss).requires_grad_()
        opcheck(
            torch.ops.fastrank.tempered_ce_backward.default,
            (grad_loss, z, y, None, None, rows, denominator, 1.5, temperature, arguments[6], -100, reduction, smoothing,
             0, "native"),
        )  # fmt: skip


def test_bounded_number_of_torch_operations():
    """A training step's loss is two operators of ours plus a fixed handful of torch's, whatever the batch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    tempered_cross_entropy(*batch())  # which backend to use is decided once
    counts = []
    for n, c in ((2, 3), (300, 1000)):
        z, y = batch(n, c, torch.float32)
        with Count() as count:
            tempered_cross_entropy(z, y, 2.0).backward()
        counts.append(count.calls)
    assert counts[0] == counts[1] <= 5
