"""Probes: the batched problem is the one of each layer alone, and the closed form is scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fastrank.errors import InputError
from fastrank.evaluation.probes import CPU_ROWS, ProbeProtocol, continued, gradient_, kappa, rho, train_probes
from fastrank.evaluation.ridge import ridge_probe
from fastrank.evaluation.sample import Sample, held_out, keys

CPU = torch.device("cpu")


def alone(X, y, W, b, protocol):
    """torch.nn.Linear and torch.optim.Adam on one layer, from the same start and in the same order."""
    linear = torch.nn.Linear(X.shape[1], len(b))
    linear.load_state_dict({"weight": W, "bias": b})
    optimizer = torch.optim.Adam(linear.parameters(), protocol.lr, weight_decay=protocol.weight_decay)
    order = torch.Generator().manual_seed(protocol.seed + 1)
    x = (X - X.mean(0)) / X.std(0, correction=0)
    for _ in range(protocol.epochs):
        for rows in torch.randperm(len(y), generator=order).split(protocol.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(x[rows]), y[rows]).backward()
            optimizer.step()
    return linear


@pytest.mark.parametrize("batch_size", [48, 4096])
def test_together_is_one_at_a_time(batch_size):
    g = torch.Generator().manual_seed(0)
    groups, y = [torch.randn(2, 150, 9, generator=g) * 3 + 1, torch.randn(1, 150, 30, generator=g)], None
    y = torch.randint(4, (150,), generator=g)
    protocol = ProbeProtocol(epochs=6, batch_size=batch_size, lr=1e-2)
    found = train_probes([X.clone() for X in groups], y, 4, protocol)
    start = torch.Generator().manual_seed(0)
    for X, probes in zip(groups, found, strict=True):
        G, _, d = X.shape
        W = torch.empty(G, 4, d).uniform_(-1, 1, generator=start) / math.sqrt(d)
        b = torch.empty(G, 4).uniform_(-1, 1, generator=start) / math.sqrt(d)
        for i, probe in enumerate(probes):
            linear = alone(X[i], y, W[i], b[i], protocol)
            # Adam divides by the root of the second moment: a rounding of a tiny gradient is seen at full size.
            assert (linear.weight - probe.weight).abs().max() < 2e-5
            x = (X[i] - X[i].mean(0)) / X[i].std(0, correction=0)
            assert (probe.predict(X[i]) == linear(x).argmax(1)).float().mean() > 0.98


def test_blocks_and_batched_products_are_autograds_gradient():
    g = torch.Generator().manual_seed(0)
    n = 2 * CPU_ROWS + 5
    X, y = torch.randn(2, n, 6, generator=g), torch.randint(3, (n,), generator=g)
    for batch in (None, torch.randperm(n, generator=g)[: CPU_ROWS + 7]):
        W, b = torch.randn(2, 3, 6, generator=g).requires_grad_(), torch.randn(2, 3, generator=g).requires_grad_()
        x, target = (X, y) if batch is None else (X[:, batch], y[batch])
        logits = torch.baddbmm(b[:, None], x, W.mT)
        sum(nn.functional.cross_entropy(one, target) for one in logits).backward()
        for blocks in (True, False):
            own = W.detach().clone(), b.detach().clone()
            gradient_(X, nn.functional.one_hot(y, 3).float(), *own, batch, blocks)
            assert torch.allclose(own[0].grad, W.grad, atol=1e-6) and torch.allclose(own[1].grad, b.grad, atol=1e-6)


def test_a_layer_that_is_not_finite_touches_no_other():
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(3, 60, 5, generator=g), torch.randint(3, (60,), generator=g)
    broken = X.clone()
    broken[1, 7, 2] = math.nan
    protocol = ProbeProtocol(epochs=3)
    good, bad = train_probes([X], y, 3, protocol)[0], train_probes([broken], y, 3, protocol)[0]
    assert [probe.reason for probe in bad] == ["", "non-finite features", ""]
    assert torch.equal(good[0].weight, bad[0].weight) and torch.equal(good[2].weight, bad[2].weight)
    assert (bad[1].predict(X[1]) == -1).all()


def test_a_constant_feature_is_no_division_by_zero():
    X = torch.randn(1, 40, 4)
    X[..., 1] = 7.0
    probe = train_probes([X], torch.randint(2, (40,)), 2, ProbeProtocol(epochs=2))[0][0]
    assert not probe.reason and probe.std[1] == 1 and probe.mean[1] == 7


def test_ridge_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (300,), generator=g)
    X = torch.randn(300, 12, generator=g).double() + torch.randn(4, 12, generator=g).double()[y] + 5
    X[:, 3] = 2.0
    counts = torch.bincount(y).double()
    sums = torch.zeros(4, 12).double().index_add_(0, y, X)
    centred = X - X.mean(0)
    probe = ridge_probe(centred.T @ centred, sums, counts, penalty=0.01)
    std = X.std(0, correction=0)
    Z = (centred / torch.where(std == 0, 1.0, std)).numpy()
    onehot = np.eye(4)[y.numpy()]
    model = linear_model.Ridge(alpha=0.01 * 300).fit(Z, onehot)
    assert np.abs(model.coef_ - probe.weight.numpy()).max() < 1e-6
    assert np.abs(model.intercept_ - probe.bias.numpy()).max() < 1e-6
    classifier = linear_model.RidgeClassifier(alpha=0.01 * 300).fit(Z, y.numpy())
    assert (classifier.predict(Z) == probe.predict(X).numpy()).all()


def test_kappa_and_rho():
    assert kappa([0.5, 0.989, 0.99, 1.0]) == 0.75
    assert kappa([0.5, 0.989, 0.99, 1.0], threshold=0.98) == 0.5
    assert kappa([0.9, 0.5]) == 0.5 and kappa([0.3]) == 1.0
    assert rho([0.2, 0.8, 0.6]) == pytest.approx(0.25) and rho([0.1, 0.4]) == 0
    for empty in ([], [math.nan, 0.5]):
        assert math.isnan(kappa(empty)) and math.isnan(rho(empty))
    assert math.isnan(rho([0.0, 0.0]))
    with pytest.raises(InputError, match="lr: expected"):
        ProbeProtocol(lr=0.0)
    with pytest.raises(InputError, match="batch_size: expected"):
        ProbeProtocol(batch_size=0)


@pytest.mark.parametrize("sizes", [[10] * 20, [3, 100, 97], [200], [37, 0, 163]])
def test_a_sample_is_a_function_of_seed_and_position(sizes):
    sample, kept, first = Sample(37, 3, CPU), torch.full((37,), -1), 0
    for rows in sizes:
        taken, slots = sample.take(first, rows)
        assert len(slots.unique()) == len(slots)
        kept[slots] = taken + first
        first += rows
    hashes = keys(0, 200, 3, CPU)
    assert sorted(kept.tolist()) == sorted(hashes.argsort()[:37].tolist())
    assert torch.equal(sample.keys, hashes[kept])


def test_held_out_does_not_follow_the_order_of_the_keys():
    hashes = keys(0, 50_000, 5, CPU)
    for part in (hashes, hashes.sort().values[:5000]):
        assert abs(float(held_out(part).double().mean()) - 0.2) < 4 * math.sqrt(0.16 / len(part))


def test_excess_bounds_what_training_has_left():
    """Against the minimum that SciPy finds in float64; without weight decay nothing is known."""
    from scipy.optimize import minimize

    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (200,), generator=g)
    X = torch.randn(2, 200, 5, generator=g) + y[:, None] * torch.tensor([1.0, 0.3])[:, None, None]
    decay = 0.02
    x = ((X - X.mean(1, keepdim=True)) / X.std(1, correction=0, keepdim=True)).double()

    def objective(flat, layer):
        P = torch.as_tensor(flat).requires_grad_()
        W, b = P[:15].view(3, 5), P[15:]
        f = torch.nn.functional.cross_entropy(x[layer] @ W.T + b, y) + decay / 2 * P.square().sum()
        return float(f.detach()), torch.autograd.grad(f, P)[0].numpy()

    shares = []
    for steps in (1, 50, 3000):
        protocol = ProbeProtocol(epochs=1, lr=1e-2, weight_decay=decay, least_steps=steps)
        for layer, probe in enumerate(train_probes([X.clone()], y, 3, protocol)[0]):
            best = minimize(objective, np.zeros(18), args=(layer,), jac=True, options={"gtol": 1e-9}).fun
            f = objective(torch.cat([probe.weight.flatten(), probe.bias]).double().numpy(), layer)[0]
            assert 1 - best / f <= probe.excess + 1e-6 and 0 <= probe.excess <= 1
            shares.append(probe.excess)
    assert min(shares[:2]) > 0.5 and max(shares[-2:]) < 1e-3
    free = train_probes([X.clone()], y, 3, ProbeProtocol(epochs=1, weight_decay=0))[0]
    assert [probe.excess for probe in free] == [1.0, 1.0]


def test_small_sets_take_as_many_steps_as_the_papers():
    assert continued(1437, 8 * 256 * 10, 0).steps(1437) == 650
    for samples in (50_000, 1_281_167):  # nothing is added
        assert continued(samples, 10**6, 0).steps(samples) == ProbeProtocol().steps(samples)
    few = continued(40, 10**7, 3)  # 10,000 features of ten layers and 100 classes: what the work pays for
    assert few.seed == 3 and 50 < few.steps(40) < 650
    assert continued(40, 10**8, 0).steps(40) == continued(4000, 10**7, 0).steps(4000) == 50


def test_least_steps_are_whole_epochs():
    assert ProbeProtocol().steps(1437) == 50 and ProbeProtocol(least_steps=650).steps(1437) == 650
    assert ProbeProtocol(least_steps=651).steps(4097) == 652  # of two batches each
    assert ProbeProtocol(least_steps=10).steps(100) == 50
    X, y = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    for few, many in (({"least_steps": 14}, {"epochs": 14}), ({"least_steps": 13, "batch_size": 16}, {"epochs": 7})):
        size = {"batch_size": few.get("batch_size", 4096)}
        a, b = (train_probes([X.clone()], y, 3, ProbeProtocol(**{"epochs": 1, **size, **c}))[0][0] for c in (few, many))
        assert torch.equal(a.weight, b.weight)
    with pytest.raises(InputError, match="least_steps"):
        ProbeProtocol(least_steps=-1)
