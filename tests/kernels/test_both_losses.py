"""What holds of both tempered losses, to the letter."""

from __future__ import annotations

import pytest
import torch
from fastrank.kernels import backend
from fastrank.kernels.tempered_ce import tempered_cross_entropy
from fastrank.kernels.tempered_loss.layout import as_ncd
from fastrank.kernels.tempered_mse import tempered_mse
from tempered_ce_conformity import DTYPES

IMPLS = ("reference", "native")
LOSSES = pytest.mark.parametrize("op", [tempered_cross_entropy, tempered_mse], ids=lambda f: f.__name__)
inf, nan = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def batch(n=6, c=10, dtype=torch.float64, scale=3.0):
    return (scale * torch.randn(n, c)).to(dtype).requires_grad_(), torch.randint(c, (n,))


def grad_of(loss, *inputs, **options):
    return torch.autograd.grad(loss, inputs, **options)


def layouts(z):
    """Images [N, C, H, W] in four memory layouts; in the third H and W do not merge into one dimension."""
    yield z.contiguous().clone()
    yield z.contiguous(memory_format=torch.channels_last)
    yield z.permute(2, 1, 3, 0).contiguous().permute(3, 1, 0, 2)
    yield torch.stack([z, z], -1)[..., 0]


@LOSSES
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("T", [0.5, 1.0, 64.0])
def test_an_offset_changes_nothing(op, impl, T):
    z = (torch.randn(5, 50) * 64).round() / 64  # z and z + 10000 are both exact in float32
    y = torch.randint(50, (5,))
    shifted = (z + 10000).requires_grad_()
    z = z.requires_grad_()
    loss, moved = (op(v, y, T, impl=impl) for v in (z, shifted))
    assert torch.equal(loss, moved)
    assert torch.equal(*grad_of(loss, z), *grad_of(moved, shifted))


@LOSSES
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(op, threads):
    z, y = batch(300, 1000, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            loss = op(z, y, 3.0, impl="native")
            results.append((loss.detach(), *grad_of(loss, z)))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert torch.equal(one, many)


@LOSSES
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(op, impl, dtype):
    z, y = batch(dtype=dtype)
    T = torch.tensor(2.0, dtype=torch.bfloat16, requires_grad=True)
    loss = op(z, y, T, impl=impl)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    grad, grad_T = grad_of(loss, z, T)
    assert (grad.dtype, grad_T.dtype) == (dtype, torch.bfloat16)


# ---- gradients ----

OPTIONS = [
    {},
    {"reduction": "none"},
    {"reduction": "sum", "label_smoothing": 0.3},
    {"weight": torch.tensor([0.3, 1.0, 2.0, 0.7]).double(), "label_smoothing": 0.1},
]


@LOSSES
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("T", [torch.tensor(0.7), torch.tensor([0.7, 1.3, 2.0])], ids=["scalar", "per-sample"])
@pytest.mark.parametrize("impl", IMPLS)
def test_first_and_second_derivatives(op, impl, T, options):
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    T, y = T.double().requires_grad_(), torch.tensor([2, -100, 0])

    def loss(z, T):
        return op(z, y, T, **options, impl=impl)

    assert torch.autograd.gradcheck(loss, (z, T))
    assert torch.autograd.gradgradcheck(loss, (z, T))


@LOSSES
@pytest.mark.parametrize("impl", IMPLS)
def test_a_function_of_the_loss_has_the_right_second_derivative(op, impl):
    """grad_loss depends on the logits too: that path must be counted once."""
    z, y = batch(4, 5)
    assert torch.autograd.gradgradcheck(lambda z: op(z, y, 2.0, impl=impl).square(), (z,))


@pytest.mark.parametrize(("op", "n", "scale"), [(tempered_cross_entropy, 256, 2**20), (tempered_mse, 16, 2**30)])
@pytest.mark.parametrize("impl", IMPLS)
def test_a_small_half_precision_gradient_is_scaled_before_it_is_rounded(op, n, scale, impl):
    """At T = 1000 the mean's gradient is below float16's range; a loss scale must bring it back whole."""
    z, y = batch(n, 1000, torch.float16)
    scaled = grad_of(op(z, y, 1000.0, impl=impl) * scale, z)[0]
    exact = z.detach().double().requires_grad_()
    true = grad_of(op(exact, y, 1000.0) * scale, exact)[0]
    assert true.abs().max() / scale < torch.finfo(torch.float16).smallest_normal
    torch.testing.assert_close(scaled.double(), true, rtol=1e-3, atol=2**-24)


@LOSSES
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_from_the_forward_pass_is_the_backward_kernels(op, dtype, reduction):
    """Only the first backward with grad_loss = 1 takes it; it then belongs to the caller, who may overwrite it."""
    weight, T = torch.rand(37) + 0.5, torch.rand(3) + 0.5
    y = torch.randint(37, (3, 4, 5))
    y[0, 1, 2] = -100
    cases = [(z, y) for z in layouts(torch.randn(3, 37, 4, 5).to(dtype)) if as_ncd(z) is not None]
    assert len(cases) == 3
    cases += [(torch.randn(3, c).to(dtype), torch.randint(c, (3,))) for c in (1, 2, 16, 37, 1000)]
    cases += [(torch.randn(3, c).to(dtype), torch.rand(3, c)) for c in (37, 1000)]
    for z, target in cases:
        z.requires_grad_()
        w = weight if z.shape[1] == 37 else None
        loss = op(z, target, T, w, reduction=reduction, impl="native")
        assert loss.grad_fn.ready is not None
        first = grad_of(loss, z, retain_graph=True)[0]
        kept = first.clone()
        first.fill_(nan)
        assert loss.grad_fn.ready is None
        assert torch.equal(grad_of(loss, z, retain_graph=True)[0], kept)
        twice = grad_of(op(z, target, T, w, reduction=reduction, impl="native") * 2, z)[0]
        # Doubling commutes with rounding but for subnormal numbers.
        subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        torch.testing.assert_close(twice, kept * 2, rtol=0, atol=2 * subnormal)


@LOSSES
@pytest.mark.parametrize("impl", IMPLS)
def test_logits_without_gradient(op, impl):
    z, y = batch()
    T = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    frozen = op(z.detach(), y, T, impl=impl)
    assert torch.equal(grad_of(frozen, T)[0], grad_of(op(z, y, T, impl=impl), T)[0])
    with torch.no_grad():
        assert torch.equal(op(z, y, T, impl=impl), frozen)


# ---- memory layouts ----


# Cross-entropy with the classes of Pascal VOC: so few that a row lies in a lane, whatever the layout.
@pytest.mark.parametrize(("op", "c"), [(tempered_cross_entropy, 21), (tempered_mse, 37)])
def test_image_layouts_give_the_same_figures(op, c):
    z, y = torch.randn(3, c, 4, 5), torch.randint(c, (3, 4, 5))
    for dtype in DTYPES:
        rows = z.to(dtype).movedim(1, -1).reshape(-1, c).contiguous().requires_grad_()
        loss = op(rows, y.flatten(), 2.0, reduction="none", impl="native")
        grad = grad_of(loss.sum(), rows)[0].reshape(3, 4, 5, c).movedim(-1, 1)
        for view in layouts(z.to(dtype)):
            view.requires_grad_()
            got = op(view, y, 2.0, reduction="none", impl="native")
            assert torch.equal(got.flatten(), loss)
            assert torch.equal(grad_of(got.sum(), view)[0], grad)


# ---- rows that are not finite ----


@LOSSES
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("c", [3, 100])
def test_a_bad_row_stays_alone(op, impl, c):
    good, _ = batch(7, c, torch.float32)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    z = good.detach().clone()
    z[1, 0], z[2, 2], z[3] = nan, inf, -inf
    z[4], y[4] = nan, -100
    z.requires_grad_()
    rows = op(z, y, 2.0, reduction="none", impl=impl)
    expected = op(good, y, 2.0, reduction="none", impl=impl)
    grad, expected_grad = grad_of(rows.sum(), z)[0], grad_of(expected.sum(), good)[0]
    assert rows[1:4].isnan().all() and grad[1:4].isnan().all()
    assert rows[4] == 0 and (grad[4] == 0).all()
    rest = [0, 5, 6]
    assert torch.equal(rows[rest], expected[rest]) and torch.equal(grad[rest], expected_grad[rest])


# ---- without the core ----


@LOSSES
def test_reference_runs_without_the_core(op, monkeypatch):
    monkeypatch.setattr(
        backend, "_chosen", {(name, "cpu", None): "reference" for name in ("tempered_ce", "tempered_mse")}
    )
    z, y = batch()
    assert torch.equal(op(z, y, 2.0), op(z, y, 2.0, impl="reference"))
