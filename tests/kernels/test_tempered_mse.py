import itertools
from functools import partial

import pytest
import tempered_mse_conformity as suite
import torch
import torch.nn.functional as F
from conformity import check
from fastrank.kernels.tempered_mse import tempered_mse

IMPLS = ("reference", "native")
inf, nan = float("inf"), float("nan")
TEMPERATURES = (1e-2, 0.5, 1.0, 10.0, 100.0, 1000.0)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def batch(n=6, c=10, dtype=torch.float64, scale=3.0):
    return (scale * torch.randn(n, c)).to(dtype).requires_grad_(), torch.randint(c, (n,))


def grad_of(loss, *inputs, **options):
    return torch.autograd.grad(loss, inputs, **options)


def naive(z, target, T=1.0, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0, scale_gradient=None):
    """The definition as a user would write it."""
    classes = z.shape[min(1, z.dim() - 1)]
    last = lambda x: x if x.dim() == 1 else x.movedim(1, -1)  # noqa: E731
    one_hot = lambda y: F.one_hot(torch.where(y == ignore_index, 0, y), classes).to(z.dtype)  # noqa: E731
    T = T.reshape(-1, *(1,) * (z.dim() - 1)) if isinstance(T, torch.Tensor) and T.dim() else T
    p, used = last((z / T).softmax(min(1, z.dim() - 1))), 1.0
    if isinstance(target, tuple):
        first, second, share = target
        if isinstance(share, torch.Tensor) and share.dim():
            share = share.reshape(-1, *(1,) * first.dim())
        hard = share * one_hot(first) + (1 - share) * one_hot(second)
    elif target.is_floating_point():
        hard = last(target)
    else:
        hard, used = one_hot(target), (target != ignore_index).to(z.dtype)
    w = used * (hard.new_ones(hard.shape[:-1]) if weight is None else hard @ weight)
    rows = w * (p - (1 - label_smoothing) * hard - label_smoothing / classes).square().sum(-1)
    if reduction == "none":
        return rows
    soft = isinstance(target, tuple) or target.is_floating_point()
    return rows.sum() / (1 if reduction == "sum" else classes * (rows.numel() if soft else w.sum()))


# ---- against the float64 truth ----


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_native_keeps_its_error_bound(dtype, T):
    for (n, c), strides in zip(suite.SHAPES, itertools.cycle(("contiguous", "transposed", "padded", "sliced"))):
        check(suite.OP, "native", suite.Case(n, c, dtype, T, strides))
        check(suite.OP, "native", suite.Case(n, c, dtype, T))


@pytest.mark.parametrize("options", suite.OPTIONS)
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_native_keeps_its_error_bound_with_every_option(dtype, options):
    for (n, c), (strides, T) in itertools.product(suite.SHAPES[1:], (("contiguous", 1.0), ("transposed", 30.0))):
        if c < 10_000 or strides == "contiguous":
            check(suite.OP, "native", suite.Case(n, c, dtype, T, strides, **options))


def test_native_keeps_its_error_bound_with_smoothing_at_every_shape():
    for dtype, (n, c) in itertools.product(suite.DTYPES, suite.SHAPES[:-1]):
        for strides in ("contiguous", "transposed") if c > 64 else ("contiguous",):
            check(suite.OP, "native", suite.Case(n, c, dtype, 2.0, strides, label_smoothing=0.1))


def test_the_bound_is_out_of_reach_for_differences_of_numbers_near_one(monkeypatch):
    """What it is there for: softmax minus one-hot breaks it where a probability is near 1."""
    outputs = suite.ce._outputs
    monkeypatch.setattr(suite, "run", lambda impl, *inputs: outputs(naive, *inputs))
    op = suite.OP.__class__(**{**vars(suite.OP), "run": suite.run})
    check(op, "naive", suite.Case(7, 10, T=1000.0, ignored=False))
    with pytest.raises(AssertionError, match="above its budget"):
        check(op, "naive", suite.Case(7, 10, T=0.1, ignored=False))


#: The target's logit, the largest other one: the target is certain to 1e-9, or another class is.
NEAR_ONE_HOT = [
    ([20.7, 0.0, -1.0], 0), ([20.7, 0.0, -1.0], 1), ([20.7, 0.0, -1.0], 2),
    ([17.0] + [0.0] * 99, 0), ([17.0] + [0.0] * 99, 50),
]  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("logits", "label"), NEAR_ONE_HOT, ids=lambda x: str(x)[:18])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_probabilities_near_zero_and_one_keep_relative_accuracy(impl, logits, label, offset):
    """Each class's gradient, the largest one's too: `p - 1`, or (p - t) - sum p (p - t), would have no digit left."""
    z, y = torch.tensor([logits]) + offset, torch.tensor([label])

    def all_of(z, T):
        z, T = z.requires_grad_(), T.requires_grad_()
        loss = tempered_mse(z, y, T, impl=impl, reduction="none")
        return loss.detach().double(), *(g.double() for g in grad_of(loss, z, T))

    # x is exact to 2 eps * 21.7 (the offset leaves the logits' differences whole to 2^-10 only: those are the input).
    bound = 3 * (4 * 21.7 + 20) * torch.finfo(torch.float32).eps
    for got, true in zip(all_of(z, torch.tensor(1.0)), all_of(z.double(), torch.tensor(1.0).double()), strict=True):
        assert ((got / true - 1).abs() < bound).all()


def test_the_truth_itself_agrees_with_multiple_precision():
    """The float64 reference, the gate of all others, against 60 digits: both ends of the scale."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    for logits, label in NEAR_ONE_HOT:
        z = torch.tensor([logits], dtype=torch.float64).requires_grad_()
        loss = tempered_mse(z, torch.tensor([label]), 1.0, reduction="none", impl="reference")
        grad = grad_of(loss, z)[0][0]
        e = [mpmath.exp(mpmath.mpf(v)) for v in logits]
        p = [v / sum(e) for v in e]
        d = [p_j - (j == label) for j, p_j in enumerate(p)]
        D = sum(a * b for a, b in zip(p, d, strict=True))
        true = [2 * a * (b - D) for a, b in zip(p, d, strict=True)]
        assert abs(loss.item() / sum(v * v for v in d) - 1) < 1e-13
        assert max(abs(g / t - 1) for g, t in zip(grad.tolist(), true, strict=True)) < 1e-13


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("c", [6, 80])
def test_equal_largest_logits(impl, c):
    """No class is the one above 1/2; and with two that share the maximum, or all, none may be taken for it."""
    z = torch.randn(4, c, dtype=torch.float64)
    z[0, :2], z[1, c - 2 :], z[2] = 9.0, 30.0, 1.5
    z.requires_grad_()
    y = torch.tensor([0, c - 1, 3, 2])
    ours, theirs = tempered_mse(z, y, 0.7, impl=impl), naive(z, y, 0.7)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    torch.testing.assert_close(grad_of(ours, z), grad_of(theirs, z), rtol=1e-11, atol=1e-14)


# ---- the definition ----


@pytest.mark.parametrize("impl", IMPLS)
def test_is_the_mean_squared_error_of_softmax_and_one_hot(impl):
    z, y = batch()
    expected = torch.nn.MSELoss()((z / 20).softmax(1), F.one_hot(y, 10).double())
    torch.testing.assert_close(tempered_mse(z, y, 20.0, impl=impl), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (4, 7, 3), (2, 7, 3, 2), (0, 7), (3, 90)], ids=str)
@pytest.mark.parametrize("kind", ["index", "mixed", "probabilities"])
def test_equals_the_definition_for_every_option(impl, shape, kind):
    classes = shape[min(1, len(shape) - 1)]
    samples = shape[:1] + shape[2:] if len(shape) > 1 else ()
    for reduction, weighted, smoothing, ignore, T in itertools.product(
        ("none", "mean", "sum"), (False, True), (0.0, 0.2, 1.0), (-100, 3), (1.0, 2.5)
    ):
        z = torch.randn(shape, dtype=torch.float64).requires_grad_()
        weight = torch.rand(classes, dtype=torch.float64) if weighted else None
        target = torch.randint(7, samples)
        if kind == "probabilities":
            target, ignore = torch.rand(shape, dtype=torch.float64), -100  # rows need not sum to 1
        elif kind == "mixed":
            share = torch.rand(shape[0] if len(shape) > 1 else (), dtype=torch.float64)
            target, ignore = (target, torch.randint(7, samples), share), -100
        options = {"weight": weight, "ignore_index": ignore, "reduction": reduction, "label_smoothing": smoothing}
        ours, theirs = tempered_mse(z, target, T, **options, impl=impl), naive(z, target, T, **options)
        close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-13, equal_nan=True)
        close(ours, theirs, msg=lambda m, o=options: f"{o} {m}")
        if not theirs.isnan().any():
            g = torch.randn_like(ours)
            close(grad_of(ours, z, grad_outputs=g)[0], grad_of(theirs, z, grad_outputs=g)[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_mixed_targets_are_the_probabilities_they_mean(impl):
    z, first = batch()
    second, share = first.roll(1), torch.rand(6, dtype=torch.float64)
    second[2] = first[2]
    of_first, of_second = F.one_hot(first, 10).double(), F.one_hot(second, 10).double()
    q = share[:, None] * of_first + (1 - share)[:, None] * of_second
    weight = torch.rand(10, dtype=torch.float64) + 0.5
    for s, at, w in ((share, q, None), (0.3, 0.3 * of_first + 0.7 * of_second, None), (share, q, weight)):
        mixed = tempered_mse(z, (first, second, s), 2.0, w, label_smoothing=0.1, impl=impl)
        soft = tempered_mse(z, at, 2.0, w, label_smoothing=0.1, impl=impl)
        torch.testing.assert_close(mixed, soft, rtol=1e-12, atol=0)
        torch.testing.assert_close(grad_of(mixed, z), grad_of(soft, z), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_mean_over_nothing_is_nan_and_moves_nothing(impl):
    z, _ = batch(3)
    T = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = tempered_mse(z, torch.full((3,), -100), T, impl=impl)
    assert loss.isnan()
    assert torch.equal(grad_of(loss, z)[0], torch.zeros_like(z))
    assert tempered_mse(z, torch.full((3,), -100), T, reduction="sum", impl=impl) == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_integer_labels_of_any_width(impl):
    z, y = batch()
    expected = tempered_mse(z, y, impl=impl)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(tempered_mse(z, y.to(dtype), impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_leaves_precision_alone(impl):
    z, y = batch(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = tempered_mse(z, y, 3.0, impl=impl)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, tempered_mse(z, y, 3.0, impl=impl))


# ---- the temperature ----


@pytest.mark.parametrize("impl", IMPLS)
def test_temperature_forms_agree(impl):
    z, y = batch()
    loss = tempered_mse(z, y, 2.5, reduction="none", impl=impl)
    for T in (torch.tensor(2.5), torch.full((6,), 2.5), torch.tensor([2.5]).expand(6), torch.full((12,), 2.5)[::2]):
        assert torch.equal(tempered_mse(z, y, T, reduction="none", impl=impl), loss)


@pytest.mark.parametrize("impl", IMPLS)
def test_per_sample_temperature_of_images(impl):
    z = torch.randn(3, 5, 2, 4, dtype=torch.float64).requires_grad_()
    y, T = torch.randint(5, (3, 2, 4)), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    ours, theirs = tempered_mse(z, y, T, impl=impl), naive(z, y, T)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for got, expected in zip(grad_of(ours, z, T), grad_of(theirs, z, T), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("scale_gradient", "power"), [("T", 1), ("T2", 2)])
def test_a_scaled_gradient_is_that_of_the_logits_alone(impl, scale_gradient, power):
    z, y = batch()
    T = (torch.rand(6, dtype=torch.float64) + 0.5).requires_grad_()
    plain = grad_of(tempered_mse(z, y, T, impl=impl), z, T)
    scaled = grad_of(tempered_mse(z, y, T, scale_gradient=scale_gradient, impl=impl), z, T)
    torch.testing.assert_close(scaled[0], plain[0] * T.detach()[:, None] ** power)
    torch.testing.assert_close(scaled[1], plain[1])


# ---- gradients ----


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", ["mixed", "probabilities"])
def test_first_and_second_derivatives_for_soft_targets(impl, kind):
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    T = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    target = (torch.tensor([2, 1, 0]), torch.tensor([3, 1, 1]), torch.rand(3).double())
    target = target if kind == "mixed" else torch.rand(3, 4).double()
    loss = lambda z, T: tempered_mse(z, target, T, impl=impl)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (z, T))
    assert torch.autograd.gradgradcheck(loss, (z, T))


def test_derivatives_of_probability_targets_shares_and_weight():
    z, q = (torch.randn(3, 4, dtype=torch.float64).abs().requires_grad_() for _ in range(2))
    w, T = torch.rand(4, dtype=torch.float64, requires_grad=True), torch.tensor(0.7).double().requires_grad_()
    share, y = torch.rand(3, dtype=torch.float64, requires_grad=True), torch.tensor([2, 0, 1])
    soft = lambda z, q, T, w: tempered_mse(z, q, T, w, label_smoothing=0.1)  # noqa: E731
    hard = lambda z, T, w: tempered_mse(z, y, T, w, label_smoothing=0.1)  # noqa: E731
    mixed = lambda z, share, w: tempered_mse(z, (y, y.roll(1), share), 0.7, w)  # noqa: E731
    for loss, inputs in ((soft, (z, q, T, w)), (hard, (z, T, w)), (mixed, (z, share, w))):
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("impl", IMPLS)
def test_grad_loss_of_any_value_and_stride(impl):
    z, y = batch()
    rows = tempered_mse(z, y, 2.0, reduction="none", impl=impl)
    unit = grad_of(tempered_mse(z, y, 2.0, reduction="sum", impl=impl), z)[0]
    wide = torch.randn(12, dtype=torch.float64)
    for g in (wide[:6], wide[::2], wide[:1].expand(6), torch.zeros(6).double()):
        torch.testing.assert_close(grad_of(rows, z, grad_outputs=g, retain_graph=True)[0], unit * g[:, None])
    mean = tempered_mse(z, y, 2.0, impl=impl)
    torch.testing.assert_close(grad_of(mean * -65536.0, z)[0], unit * -65536 / 60)


@pytest.mark.parametrize("impl", IMPLS)
def test_logits_survive_and_a_second_backward_repeats_the_first(impl):
    z, y = batch()
    before = z.detach().clone()
    loss = tempered_mse(z, y, 2.0, impl=impl)
    first = grad_of(loss, z, retain_graph=True)[0].clone()
    assert torch.equal(grad_of(loss, z)[0], first)
    assert torch.equal(z.detach(), before)


# ---- memory layouts ----


def test_expanded_logits():
    z, y = torch.randn(1, 9, dtype=torch.float64).requires_grad_(), torch.randint(9, (5,))
    ours, theirs = (f(z.expand(5, 9), y) for f in (tempered_mse, naive))
    torch.testing.assert_close(grad_of(ours, z), grad_of(theirs, z))


@pytest.mark.parametrize("c", [8, 96])
def test_offsets_beyond_32_bits(c):
    stride = 2**31 + 64
    store = torch.empty(stride + c, dtype=torch.bfloat16)  # 4 GiB of addresses, of which two pages are touched
    z = store.as_strided((2, c), (stride, 1))
    z.copy_(torch.randn(2, c))
    y = torch.tensor([3, 5])
    for view in (z, z.unsqueeze(0).transpose(1, 2)):  # the row stride as a stride of N, and of D
        target = y if view.dim() == 2 else y[None]
        view = view.detach().requires_grad_()
        compact = view.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        far, near = (tempered_mse(v, target, impl="native", reduction="none") for v in (view, compact))
        torch.testing.assert_close(far, near, rtol=1e-6, atol=0)
        torch.testing.assert_close(grad_of(far.sum(), view)[0], grad_of(near.sum(), compact)[0])


# ---- rows that are not finite ----


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("c", [5, 70])
def test_minus_infinity_is_a_class_without_probability(impl, c):
    z = torch.full((3, c), -inf, dtype=torch.float64)
    z[0, 1], z[1, -2:], z[2, 2] = 3.0, torch.tensor([1.0, 2.0]).double(), 1.0
    y, T = torch.tensor([1, c - 1, 0]), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    z.requires_grad_()
    rows = tempered_mse(z, y, T, reduction="none", impl=impl)
    two = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    expected = naive(two, torch.tensor([1]), T, reduction="none")
    torch.testing.assert_close(rows, torch.stack([torch.zeros(()).double(), expected[0], torch.tensor(2.0).double()]))
    grad, grad_T = grad_of(rows.sum(), z, T)
    expected_grad, expected_T = grad_of(expected.sum(), two, T)
    torch.testing.assert_close(grad[1, -2:], expected_grad[0])
    torch.testing.assert_close(grad_T, expected_T)
    assert (grad[z.isinf()] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_one_class(impl):
    z, y = torch.randn(4, 1, requires_grad=True), torch.zeros(4, dtype=torch.long)
    for smoothing in (0.0, 0.3):
        loss = tempered_mse(z, y, 1e-2, label_smoothing=smoothing, impl=impl)
        assert loss == 0 and (grad_of(loss, z)[0] == 0).all()


# ---- bad input ----

Z, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_label_out_of_range_is_named_with_its_position(impl):
    with pytest.raises(
        IndexError, match=r"target: expected labels in \[0, 3\) or ignore_index=-100, got 3 at position 2"
    ):
        tempered_mse(Z, torch.tensor([0, 1, 3, -1]), impl=impl)
    with pytest.raises(IndexError, match=r"target\[1\]: expected labels in \[0, 3\), got 4 at position 1"):
        tempered_mse(Z, (Y, torch.tensor([0, 4, 0, 0]), 0.5), impl=impl)
    with pytest.raises(IndexError, match=r"got 2\d{9}$"):
        tempered_mse(Z[0], torch.tensor(2**31 + 1), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_range_of_temperatures(impl):
    assert tempered_mse(Z, Y, torch.tensor([1e-30, 1e30, 1.0, 1.0]), impl=impl).isfinite()
    for bad in (1e-31, 1e31):
        with pytest.raises(ValueError, match=r"T: expected temperatures in \[1e-30, 1e30\]"):
            tempered_mse(Z, Y, torch.tensor(bad), impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bad", [0.0, -1.0, nan, inf])
def test_a_bad_temperature_is_named(impl, bad):
    with pytest.raises(ValueError, match="T: expected a finite temperature > 0, got"):
        tempered_mse(Z, Y, bad, impl=impl)
    with pytest.raises(ValueError, match="for sample 2"):
        tempered_mse(Z, Y, torch.tensor([1.0, 1.0, bad, 1.0]), impl=impl)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Z.long(), Y), TypeError, "input: expected logits in float64"),
        ((Z, Y[:3]), ValueError, r"target: expected class indices of shape \[4\].* got \[3\]"),
        ((Z, (Y, Y, torch.tensor([0.5, 0, 2, 1]))), ValueError, r"target\[2\]: .* got 2.0 for sample 2"),
        ((Z, Y, 1.0, torch.ones(4)), ValueError, r"weight: expected one value per class \[3\]"),
        ((Z, Y, 1.0, None, -100, "avg"), ValueError, "reduction: expected one of none, mean, sum"),
        ((Z, Z.softmax(1), 1.0, None, 1), ValueError, "ignore_index: expected none with class-probability"),
    ],
    ids=lambda x: "",
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        tempered_mse(*arguments)


def test_impl_is_never_replaced_silently():
    with pytest.raises(RuntimeError, match="impl='native' has no gradient for weight, class probabilities"):
        tempered_mse(Z, Z.softmax(1).requires_grad_(), impl="native")
    with pytest.raises(RuntimeError, match="impl='triton' cannot run tempered_mse"):
        tempered_mse(Z, Y, impl="triton")
