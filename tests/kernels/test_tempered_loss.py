"""What both tempered losses owe to whoever calls them: tensors that are not what their memory says, and the linear loss
on top of them."""

import pytest
import torch
from fastrank.kernels.linear_tempered_ce import linear_tempered_cross_entropy
from fastrank.kernels.tempered_ce import tempered_cross_entropy
from fastrank.kernels.tempered_mse import tempered_mse
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

LOSSES = pytest.mark.parametrize("loss", [tempered_cross_entropy, tempered_mse], ids=lambda f: f.__name__)


def negated(x):
    """`x` as a tensor whose memory holds -x."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg() and torch.equal(view, x)
    return view


def grad_of(loss, *inputs, **options):
    return torch.autograd.grad(loss, inputs, **options)


@LOSSES
def test_lazily_negated_tensors(loss):
    z, q, w, share = torch.randn(4, 5), torch.rand(4, 5), torch.rand(5), torch.rand(4)
    y = torch.tensor([0, 1, 2, 3])
    for target, lazy in ((y, y), (q, negated(q)), ((y, y.flip(0), share), (y, y.flip(0), negated(share)))):
        true = z.clone().requires_grad_()
        expected = loss(true, target, torch.tensor(2.0), w)
        moved = negated(z).detach().requires_grad_()
        got = loss(moved, lazy, negated(torch.tensor(2.0)), negated(w))
        assert torch.equal(got, expected)
        assert torch.equal(*grad_of(got, moved), *grad_of(expected, true))


@LOSSES
@pytest.mark.parametrize("place", ["target", "T", "weight"])
def test_a_tensor_without_memory_is_no_missing_one(loss, place):
    z, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    with FakeTensorMode() as mode:
        fake = {"target": mode.from_tensor(y), "T": torch.tensor(5.0), "weight": torch.ones(5)}[place]
    arguments = {"target": y, "T": 1.0, "weight": None} | {place: fake}
    with pytest.raises(Exception, match="Fake"):
        loss(z, **arguments)


def test_the_linear_loss_can_be_traced():
    with FakeTensorMode():
        x, w = torch.randn(8, 10, requires_grad=True), torch.randn(6, 10, requires_grad=True)
        grads = grad_of(linear_tempered_cross_entropy(x, w, torch.zeros(8, dtype=torch.long)), x, w)
    assert [g.shape for g in grads] == [x.shape, w.shape]


def test_half_precision_sums_of_the_linear_loss_stay_in_range():
    x, w = torch.full((100_000, 4), 2.0).half(), torch.zeros(10, 4).half().requires_grad_()
    y = torch.zeros(len(x), dtype=torch.long)
    grad = grad_of(linear_tempered_cross_entropy(x, w, y), w)[0]
    torch.testing.assert_close(grad, grad_of(tempered_cross_entropy(x @ w.T, y), w)[0], rtol=2e-3, atol=0)


@pytest.mark.parametrize("create_graph", [False, True])
def test_inputs_of_the_linear_loss_may_depend_on_each_other(create_graph):
    w = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3])
    x = lambda: w[:4] * w[1:5]  # noqa: E731
    fused = grad_of(linear_tempered_cross_entropy(x(), w, y, T=x().abs().sum()), w, create_graph=create_graph)[0]
    plain = grad_of(tempered_cross_entropy(x() @ w.T, y, x().abs().sum()), w, create_graph=create_graph)[0]
    torch.testing.assert_close(fused, plain)
    if create_graph:
        torch.testing.assert_close(*grad_of(fused.square().sum(), w), *grad_of(plain.square().sum(), w))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_reaches_the_linear_losss_gradient(passes, value):
    x, w = torch.randn(4, 5, requires_grad=True), torch.randn(7, 5)
    loss = linear_tempered_cross_entropy(x, w, torch.arange(4))
    for _ in range(passes):
        grad = grad_of(loss, x, grad_outputs=torch.tensor(value), retain_graph=True)[0]
    assert not grad.isfinite().any()


def test_the_linear_loss_lets_go_of_its_gradients():
    x, w = torch.randn(4, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    loss = linear_tempered_cross_entropy(x, w, torch.arange(4))
    once = grad_of(loss / 4, x, w, retain_graph=True)
    assert loss.grad_fn.ready is None
    torch.testing.assert_close(grad_of(loss / 4, x, w), once)
    with pytest.raises(RuntimeError, match="second time"):
        grad_of(loss, x)


@pytest.mark.parametrize("what", ["label", "T", "share"])
def test_the_linear_loss_names_the_sample(what):
    n, c = 200, 200_000  # chunks of few samples
    x, w, y = torch.randn(n, 4), torch.randn(c, 4), torch.zeros(n, dtype=torch.long)
    T, share = torch.ones(n), torch.full((n,), 0.5)
    {"label": y, "T": T, "share": share}[what][150] = -5
    with pytest.raises((IndexError, ValueError), match="150"):
        linear_tempered_cross_entropy(x, w, (y, y.clone(), share) if what == "share" else y, T=T)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_batched_gradients_of_the_linear_loss(reduction):
    x, w = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(7, 5, dtype=torch.float64)
    loss = linear_tempered_cross_entropy(x, w, torch.arange(4), reduction=reduction)
    vectors = torch.randn(3, *loss.shape, dtype=torch.float64)
    batched = grad_of(loss, x, grad_outputs=vectors, is_grads_batched=True, retain_graph=True)[0]
    each = torch.stack([grad_of(loss, x, grad_outputs=v, retain_graph=True)[0] for v in vectors])
    torch.testing.assert_close(batched, each)


@LOSSES
def test_a_scaled_gradient_does_not_overflow_on_its_way(loss):
    z, y = torch.randn(4, 5, requires_grad=True), torch.arange(4)
    for T in (1e25, 1e-25):
        native, reference = (
            grad_of(loss(z * T, y, T, scale_gradient="T2", impl=impl), z)[0] / T for impl in ("native", "reference")
        )
        torch.testing.assert_close(native, reference, rtol=1e-4, atol=0)


@LOSSES
def test_the_dtype_follows_the_logits_whatever_the_default(loss):
    z, y = torch.randn(4, 5), torch.arange(4)
    torch.set_default_dtype(torch.float64)
    try:
        assert {loss(z, y, impl=impl).dtype for impl in ("native", "reference")} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_linear_loss_compiles_as_one_graph_and_once_more_for_a_changing_number():
    torch._dynamo.reset()
    x, w, y = torch.randn(8, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True), torch.arange(8) % 7
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, w, y, T: linear_tempered_cross_entropy(x, w, y, T=T), fullgraph=True, backend=counter
    )
    for T in (2.0, 3.0, 4.0, 5.0):
        fused, plain = (grad_of(f(x, w, y, T=T), x, w) for f in (compiled, linear_tempered_cross_entropy))
        torch.testing.assert_close(fused, plain)
    assert counter.frame_count == 2
