"""The loss of a linear classifier in chunks: equal to the composition, first and second derivatives, and smaller."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from fastrank.kernels.linear_tempered_ce import config, linear_tempered_cross_entropy, reference
from fastrank.kernels.tempered_ce import tempered_cross_entropy

N, D, C = 101, 11, 37


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Four chunks, the last of 5 rows."""
    monkeypatch.setitem(config.CHUNK_BYTES, "cpu", 1)
    torch.manual_seed(0)


def problem(dtype=torch.float64, n=N):
    features, classifier = torch.randn(n, D, dtype=dtype), torch.randn(C, D, dtype=dtype)
    return features.requires_grad_(), classifier.requires_grad_(), torch.randn(C, dtype=dtype).requires_grad_()


def targets(n=N):
    first, second = torch.randint(C, (n,)), torch.randint(C, (n,))
    ignored = first.clone()
    ignored[3] = -100
    return {
        "index": ignored,
        "int32": first.int(),
        "mixed": (first, second, 0.3),
        "mixed per sample": (first, second, torch.rand(n)),
        "probabilities": torch.randn(n, C, dtype=torch.float64).softmax(1),
    }


@pytest.mark.parametrize("kind", targets())
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_the_composition(kind, reduction):
    features, classifier, bias = problem()
    weight = torch.rand(C, dtype=torch.float64) + 0.5
    temperatures = (3.0, torch.tensor(2.0).double().requires_grad_(), (torch.rand(N).double() + 0.5).requires_grad_())
    for T, w, b, scale in itertools.product(temperatures, (None, weight), (None, bias), (None, "T2")):
        inputs = [x for x in (features, classifier, b, T) if isinstance(x, torch.Tensor)]
        options = (b, T, w, -100, reduction, 0.1)
        target = targets()[kind]
        ours = linear_tempered_cross_entropy(features, classifier, target, *options, scale_gradient=scale)
        truth = reference.linear_tempered_cross_entropy(features, classifier, target, *options, scale)
        torch.testing.assert_close(ours, truth)
        grad_loss = torch.randn_like(truth)
        expected = torch.autograd.grad(truth, inputs, grad_loss, retain_graph=True)
        for factor in (1, 2):  # a second pass over a retained graph is no scaled copy of the first
            grads = torch.autograd.grad(ours, inputs, factor * grad_loss, retain_graph=True)
            for got, want in zip(grads, expected, strict=True):
                torch.testing.assert_close(got, factor * want)


def test_second_derivatives():
    features, classifier, bias = problem(n=5)
    target = torch.randint(C, (5,))
    for reduction in ("mean", "none"):
        torch.autograd.gradgradcheck(
            lambda *x, r=reduction: linear_tempered_cross_entropy(*x[:2], target, x[2], 2.0, reduction=r),
            (features, classifier, bias),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradients_are_added_up_in_float32(dtype, monkeypatch):
    """Of one row a chunk: the classifier's gradient errs no more than that of one product."""
    features, classifier, _ = problem(dtype, 512)
    target = torch.randint(C, (512,))
    monkeypatch.setattr(config, "MIN_ROWS", 1)
    loss = linear_tempered_cross_entropy(features, classifier, target)
    assert loss.dtype == torch.float32
    grad = torch.autograd.grad(loss, classifier)[0].double()
    wide = [x.detach().double().requires_grad_() for x in (features, classifier)]
    truth = torch.autograd.grad(reference.linear_tempered_cross_entropy(*wide, target), wide[1])[0]
    plain = torch.autograd.grad(tempered_cross_entropy(F.linear(features, classifier), target), classifier)[0].double()
    # What rounding a logit, a gradient and the result once puts on each entry.
    eps = torch.finfo(dtype).eps
    assert (grad - truth).abs().max() <= (plain - truth).abs().max() + eps * truth.abs().max()


def test_the_logits_are_never_whole():
    """No tensor that the call makes holds more than one chunk of logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else (result,):
                if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes():
                    Largest.size = max(Largest.size, x.untyped_storage().nbytes())
            return result

    features, classifier = (torch.randn(640, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True))
    with Largest():
        linear_tempered_cross_entropy(features, classifier, torch.randint(1000, (640,)), T=2.0).backward()
    assert 0 < Largest.size <= config.MIN_ROWS * 1000 * 4


def test_autocast_computes_the_logits_in_16_bits_and_the_loss_in_32():
    features, classifier, bias = problem(torch.float32)
    target = torch.randint(C, (N,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_tempered_cross_entropy(features, classifier, target, bias)
        plain = tempered_cross_entropy(F.linear(features, classifier, bias), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-5)
    assert torch.autograd.grad(loss, features)[0].dtype == torch.float32


def test_no_row_at_all():
    features, classifier, bias = problem(n=0)
    target = torch.zeros(0, dtype=torch.long)
    assert linear_tempered_cross_entropy(features, classifier, target, bias).isnan()
    loss = linear_tempered_cross_entropy(features, classifier, target, bias, reduction="sum")
    assert loss == 0 and not torch.autograd.grad(loss, classifier)[0].any()


def test_a_mean_over_ignored_rows_is_nan_and_moves_nothing():
    features, classifier, bias = problem(n=6)
    loss = linear_tempered_cross_entropy(features, classifier, torch.full((6,), -100), bias)
    assert loss.isnan()
    assert not any(grad.any() for grad in torch.autograd.grad(loss, (features, classifier, bias)))


X, W, Y = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 4])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], W, Y), ValueError, r"features: expected \[N, d\] of float dtype, got torch.float32 \[3\]"),
        ((X, W[:, :2], Y), ValueError, r"classifier: expected \[C, d\] with C > 0 and d = 3 .* got \[5, 2\]"),
        ((X, W[:0], Y), ValueError, "classifier: expected"),
        ((X, W.double(), Y), ValueError, "classifier: expected torch.float32 on cpu as features, got torch.float64"),
        ((X, W, Y, torch.ones(4)), ValueError, r"bias: expected one value per class \[5\], got \[4\]"),
        ((X, W, Y + 1), IndexError, r"target: expected labels in \[0, 5\)"),
        ((X, W, Y[:2]), ValueError, "target: expected class indices of shape"),
        ((X, W, Y, None, 0.0), ValueError, "T: expected a finite temperature > 0"),
        (("X", W, Y), TypeError, "features: expected a tensor, got str"),
    ],
    ids=lambda x: "",
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        linear_tempered_cross_entropy(*arguments)
