"""The squared error in torch's machinery: its operators, compiled graphs, torch.func's transforms."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from fastrank.kernels.tempered_mse import tempered_mse
from torch.library import opcheck


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


def batch(n=6, c=10, dtype=torch.float64, scale=3.0):
    return (scale * torch.randn(n, c)).to(dtype).requires_grad_(), torch.randint(c, (n,))


def grad_of(loss, *inputs, **options):
    return torch.autograd.grad(loss, inputs, **options)


def test_opcheck():
    z, y = batch(4, 5, torch.float32)
    T = torch.tensor(0.7, requires_grad=True)
    y[1] = -100
    for reduction, temperature, smoothing in (("mean", T, 0.0), ("none", None, 0.1)):
        arguments = (
            z, y, None, None, 1.5, temperature, torch.rand(5), -100, reduction, smoothing, 0, reduction != "none",
            "native",
        )  # fmt: skip
        opcheck(torch.ops.fastrank.tempered_mse.default, arguments)
        loss, rows, denominator, _ = torch.ops.fastrank.tempered_mse(*arguments)
        grad_loss = torch.randn_like(loss).requires_grad_()
        opcheck(
            torch.ops.fastrank.tempered_mse_backward.default,
            (grad_loss, z, y, None, None, rows, denominator, 1.5, temperature, arguments[6], -100, reduction, smoothing,
             0, "native"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"),
    [("index", {}), ("mixed", {"label_smoothing": 0.1, "reduction": "none"}), ("probabilities", {})],
    ids=str,
)
def test_compiles_as_one_graph(kind, options):
    z, y = batch(5, 7, torch.float32)
    compiled = torch.compile(tempered_mse, fullgraph=True, backend="aot_eager")
    target = {"index": y, "mixed": (y, y.roll(1), 0.3), "probabilities": torch.rand(5, 7)}[kind]
    for T in (2.0, torch.tensor(3.0), torch.rand(5) + 1):
        results = [f(z, target, T, **options) for f in (compiled, tempered_mse)]
        for got, want in zip(*((r, *grad_of(r.sum(), z)) for r in results), strict=True):
            assert torch.equal(got, want)


def test_a_temperature_that_changes_in_place_does_not_recompile():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    z, y = batch(5, 7, torch.float32)
    T = torch.tensor(1.0)
    compiled = torch.compile(tempered_mse, fullgraph=True, backend=counter)
    for value in (1.0, 10.0, 100.0):
        T.fill_(value)
        assert torch.equal(compiled(z, y, T), tempered_mse(z, y, value))
    assert counter.frame_count == 1


def test_a_number_that_changes_compiles_once_more_at_most():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    z, y = batch(5, 7, torch.float32)
    compiled = torch.compile(tempered_mse, fullgraph=True, backend=counter)
    for value in (1.0, 2.5, 10.0, 31.0, 100.0):
        assert torch.equal(compiled(z, y, value), tempered_mse(z, y, value))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("kind", ["index", "mixed", "probabilities"])
def test_transforms_of_torch_func(kind):
    z, y = torch.randn(3, 4, 5, dtype=torch.float64), torch.randint(5, (3, 4))
    target = {"index": y, "mixed": (y, y.roll(1), torch.rand(3, 4).double()), "probabilities": z.softmax(2)}[kind]
    each = [(target[0][i], target[1][i], target[2][i]) if kind == "mixed" else target[i] for i in range(3)]
    loss = lambda z, t: tempered_mse(z, t, 2.0)  # noqa: E731
    torch.testing.assert_close(
        torch.vmap(loss)(z, target), torch.stack([loss(a, b) for a, b in zip(z, each, strict=True)])
    )
    leaves = [a.clone().requires_grad_() for a in z]
    expected = torch.stack([grad_of(loss(a, b), a)[0] for a, b in zip(leaves, each, strict=True)])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(z, target), expected)
    _, tangent = torch.func.jvp(lambda a: loss(a, each[0]), (z[0],), (torch.ones_like(z[0]),))
    torch.testing.assert_close(tangent, torch.zeros(()).double(), rtol=0, atol=1e-15)  # an offset changes nothing
