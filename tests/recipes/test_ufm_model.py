"""The simulator's arithmetic: closed-form gradients, the steps of torch's SGD, runs that do not feel each other."""

from __future__ import annotations

import extended_precision
import numpy as np
import pytest
import torch

from fastrank import InputError
from fastrank.recipes.ufm import initialise
from fastrank.recipes.ufm.descent import descend
from fastrank.recipes.ufm.flow import flow
from fastrank.recipes.ufm.measure import measure
from fastrank.recipes.ufm.model import Chain, DeepUFM, join, logits, losses, split
from fastrank.recipes.ufm.trajectory import log_steps

MODELS = [DeepUFM(3, 1, 1), DeepUFM(5, 1, 4, 2), DeepUFM(4, 2, 7), DeepUFM(6, 3, 5, 3), DeepUFM(10, 7, 12)]


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_loss_and_gradients_are_autograds(model, scale):
    weights = [W.requires_grad_() for W in initialise.gaussian(model, [0, 1, 2], scale)]
    Z = logits(weights)
    oracle = torch.stack([torch.nn.functional.cross_entropy(z, model.labels) for z in Z])
    expected = torch.autograd.grad(oracle.sum(), weights)
    weights = [W.detach() for W in weights]
    chain = Chain(model, 3, torch.float64)
    chain.load(join(weights))
    found = split(chain.gradients(torch.full((3, 1, 1), 1 / model.rows, dtype=torch.float64)), model)
    torch.testing.assert_close(losses(logits(weights), model.labels), oracle.detach(), rtol=1e-12, atol=1e-14)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-12 * float(other.abs().max().clamp_min(1e-3))


def test_gradient_and_loss_keep_their_digits_near_a_perfect_fit():
    model = DeepUFM(4, 1)
    Z = 40.0 * torch.eye(4)[None]  # p at the target rounds to 1 in float32; the others' share is 3 exp(-40)
    chain = Chain(model, 1, torch.float32)
    chain.load(Z.flatten(1))
    found = chain.gradients(torch.ones(1, 1, 1)).view(4, 4)
    others = torch.tensor(3.0, dtype=torch.float64) * torch.tensor(-40.0, dtype=torch.float64).exp()
    torch.testing.assert_close(found.diagonal().double(), -others.expand(4), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses(Z.double(), model.labels), others[None], rtol=1e-12, atol=0)


@pytest.mark.parametrize("model", MODELS[1:4], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_descent_is_torchs_sgd_on_small_modules(model, decay):
    weights = initialise.gaussian(model, [3, 4])
    lr = torch.tensor([0.3, 0.05], dtype=torch.float64)
    found = descend(weights, model, lr, 25, weight_decay=decay)
    for run in range(2):
        layers = [torch.nn.Linear(m, n, bias=False, dtype=torch.float64) for m, n in model.shapes]
        for layer, W in zip(layers, weights, strict=True):
            layer.weight.data = W[run].mT.clone()
        net = torch.nn.Sequential(*layers)
        sgd = torch.optim.SGD(net.parameters(), lr=float(lr[run]), weight_decay=decay)
        for _ in range(25):
            loss = torch.nn.functional.cross_entropy(net(torch.eye(model.rows, dtype=torch.float64)), model.labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        for layer, W in zip(layers, found.weights, strict=True):
            torch.testing.assert_close(W[run], layer.weight.data.mT, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_company_and_order_change_no_bit(dtype):
    model = DeepUFM(6, 4, 9)
    weights = [W.to(dtype) for W in initialise.gaussian(model, list(range(11)))]
    together = descend(weights, model, 0.2, 60)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    for runs, group in ((order, None), (torch.tensor([7]), None), (order[:5], 2), (torch.arange(11), 3)):
        alone = descend([W[runs] for W in weights], model, 0.2, 60, group=group)
        assert all(torch.equal(a, b[runs]) for a, b in zip(alone.weights, together.weights, strict=True))
        assert torch.equal(alone["sigma"], together["sigma"][:, runs])
        assert torch.equal(alone["loss"], together["loss"][:, runs])


def test_a_seed_names_a_run():
    model = DeepUFM(5, 3, 8)
    for start in (initialise.gaussian, initialise.orthogonal):
        both, one = start(model, [0, 9]), start(model, [9])
        assert all(torch.equal(a[1:], b) for a, b in zip(both, one, strict=True))
        assert not torch.equal(both[0][0], both[0][1])


def test_permuted_classes_permute_the_results():
    model = DeepUFM(7, 3, 9)
    weights = initialise.gaussian(model, [0, 1])
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    moved = [weights[0][:, order], *weights[1:-1], weights[-1][:, :, order]]
    a, b = (descend(w, model, 0.3, 200) for w in (weights, moved))
    torch.testing.assert_close(logits(b.weights), logits(a.weights)[:, order][:, :, order], rtol=1e-9, atol=1e-9)
    for name in ("sigma", "loss", "margin", "etf", "nc3_duality"):
        torch.testing.assert_close(b[name], a[name], rtol=1e-8, atol=1e-9)


def test_too_large_a_step_is_flagged_and_harms_no_other():
    model = DeepUFM(5, 4, 8)
    weights = initialise.gaussian(model, [0, 1, 2])
    found = descend(weights, model, torch.tensor([0.1, 50.0, 0.1], dtype=torch.float64), 300)
    calm = descend(weights, model, 0.1, 300)
    assert found.diverged.tolist() == [False, True, False]
    assert torch.equal(found["sigma"][:, [0, 2]], calm["sigma"][:, [0, 2]])
    # From where it was too large on, the run has no figure that a mean could take in.
    assert found["loss"][0, 1] == calm["loss"][0, 1] and found.rank(0.1)[0][-1, 1].isnan()
    assert all(value[-1, 1].isnan().all() for value in found.figures.values())
    assert not calm.diverged.any() and calm["loss"][-1].max() < calm["loss"][0].min()


def test_stopped_runs_keep_their_figures_and_weights():
    model = DeepUFM(4, 2, 6)
    weights = initialise.gaussian(model, [0, 1])
    lr = torch.tensor([0.5, 0.01], dtype=torch.float64)
    found = descend(weights, model, lr, 400, loss_below=0.1)
    at = int(found.stopped[0])
    assert 0 < at < 400 and found.stopped[1].isnan() and not found.diverged.any()
    record = [step for step in log_steps(400) if step <= at]
    until = descend([W[:1] for W in weights], model, 0.5, at, record=record)
    assert torch.equal(
        found["sigma"][len(record) - 1 :, 0], until["sigma"][-1].expand(len(found.times) - len(record) + 1, -1)
    )
    assert all(torch.equal(a[:1], b) for a, b in zip(found.weights, until.weights, strict=True))


def test_a_killed_call_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    from fastrank.recipes.ufm import checkpoint, descent

    model = DeepUFM(5, 3, 6)
    weights = [W.float() for W in initialise.gaussian(model, [0, 1, 2])]
    monkeypatch.setattr(checkpoint, "SAVE_EVERY", -1.0)
    whole = descend(weights, model, 0.2, 50, loss_below=0.5)
    real, calls = descent._steps, []

    def killed(*arguments):
        calls.append(arguments[-1])
        if sum(calls) > 20:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(descent, "_steps", killed)
    with pytest.raises(KeyboardInterrupt):
        descend(weights, model, 0.2, 50, loss_below=0.5, checkpoint=tmp_path / "state.pt")
    steps = []
    monkeypatch.setattr(descent, "_steps", lambda *a: (steps.append(a[-1]), real(*a))[1])
    resumed = descend(weights, model, 0.2, 50, loss_below=0.5, checkpoint=tmp_path / "state.pt")
    assert sum(steps) < 40
    assert torch.equal(resumed["sigma"], whole["sigma"])
    assert torch.equal(resumed.stopped.nan_to_num(-1), whole.stopped.nan_to_num(-1))
    with pytest.raises(InputError, match="checkpoint"):
        descend(weights, model, 0.3, 50, loss_below=0.5, checkpoint=tmp_path / "state.pt")


def test_a_killed_flow_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    from fastrank.recipes.ufm import checkpoint
    from fastrank.recipes.ufm import flow as module

    monkeypatch.setattr(checkpoint, "SAVE_EVERY", -1.0)
    model = DeepUFM(4, 3, 5)
    weights, times = initialise.gaussian(model, [0, 1, 2]), [0, 1, 10, 30, 100]
    whole = module.flow(weights, model, times, loss_below=0.2)
    assert whole.stopped.isfinite().any()
    real, seen = module.measure, []

    def killed(*arguments):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    path = tmp_path / "state.pt"
    monkeypatch.setattr(module, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        module.flow(weights, model, times, loss_below=0.2, checkpoint=path)
    resumed = module.flow(weights, model, times, loss_below=0.2, checkpoint=path)
    assert len(seen) == 4 + 2  # the fourth again, and the fifth
    assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in
               ((resumed["sigma"], whole["sigma"]), (resumed.stopped, whole.stopped)))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(resumed.weights, whole.weights, strict=True))
    with pytest.raises(InputError, match="checkpoint: expected one of a call with these arguments"):
        module.flow(weights, model, times, loss_below=0.3, checkpoint=path)
    for broken in (b"", b"no zip", path.read_bytes()[:200]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="checkpoint: expected a file that this function wrote"):
            module.flow(weights, model, times, loss_below=0.2, checkpoint=path)


def test_weights_and_times_must_be_finite():
    model = DeepUFM(4, 2, 5)
    weights = initialise.gaussian(model, [0])
    broken = [weights[0], weights[1].index_fill(1, torch.tensor([0]), float("nan"))]
    with pytest.raises(InputError, match="weights: expected finite"):
        descend(broken, model, 0.1, 5)
    for times in ([0, float("inf")], [0, float("nan")], [1, 0]):
        with pytest.raises(InputError, match="times"):
            flow(weights, model, times)


def test_a_failed_flow_has_no_figures(monkeypatch):
    from fastrank.recipes.ufm import integrate

    model = DeepUFM(4, 3, 5)
    weights = [W * torch.tensor([1.0, 40.0]).view(2, 1, 1) for W in initialise.gaussian(model, [0, 0])]
    monkeypatch.setattr(integrate, "MOST_STEPS", 60)
    found = flow(weights, model, [0, 1, 2])
    assert found.diverged.tolist() == [False, True]
    for value in found.figures.values():
        assert value[1:, 1].isnan().all()
    assert found["sigma"][:, 0].isfinite().all() and found["sigma"][0].isfinite().all()


@extended_precision.needed
def test_singular_values_are_within_their_bound():
    model = DeepUFM(6, 9, 10)
    weights = [W.float() for W in initialise.gaussian(model, list(range(5)), 0.4)]
    found = measure(weights, model)
    exact = np.eye(6, dtype=np.longdouble)[None]
    for W in weights:
        exact = exact @ W.numpy().astype(np.longdouble)
    truth = extended_precision.singular_values(exact)
    error = np.abs(found["sigma"].numpy() - truth).max(1)
    assert (error <= found["sigma_bound"].numpy()).all()
    assert (found["sigma_bound"] < 1e-9 * found["sigma"][:, 0]).all()
