"""Flow and descent against what is known of them: conservation, the reduced ODE, the convex case, small deviations."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastrank import InputError
from fastrank.recipes.ufm import bases, initialise, reduced
from fastrank.recipes.ufm.descent import descend
from fastrank.recipes.ufm.flow import flow
from fastrank.recipes.ufm.integrate import Integrator
from fastrank.recipes.ufm.model import DeepUFM
from fastrank.recipes.ufm.trajectory import log_times


def imbalance(weights):
    """W_l^T W_l - W_{l+1} W_{l+1}^T, which the flow conserves."""
    return [a.mT @ a - b @ b.mT for a, b in itertools.pairwise(weights)]


def test_flow_conserves_what_layers_differ_by():
    model = DeepUFM(5, 4, 7, 2)
    weights = initialise.gaussian(model, [0, 1])
    for rtol in (1e-6, 1e-9):
        found = flow(weights, model, [0.0, 1000.0], rtol=rtol, atol=rtol / 100)
        drift = max(
            float((a - b).abs().max()) for a, b in zip(imbalance(weights), imbalance(found.weights), strict=True)
        )
        size = float(found.weights[0].square().sum(2).max())
        assert drift <= 300 * rtol * size
    assert found["loss"][-1].max() < 0.01 and not found.diverged.any()


@pytest.mark.parametrize("make", ["spectral", "balanced"])
def test_balanced_starts_are_balanced(make):
    model = DeepUFM(6, 5, 9, 2)
    s = 0.1 + torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = initialise.spectral(model, bases.fourier(6), s, seed=1)
    if make == "balanced":
        weights = initialise.perturbed(weights, torch.tensor([0.0, 0.2, 2.0]), [0, 1, 2])
    assert all(float(gap.abs().max()) < 1e-14 for gap in imbalance(weights))
    if make == "spectral":
        sigma = torch.linalg.svdvals(torch.linalg.multi_dot([W[0] for W in weights]))
        torch.testing.assert_close(sigma[:5], s[0].sort(descending=True).values, rtol=1e-12, atol=1e-14)


def test_orthogonal_layers_have_one_singular_value():
    for W in initialise.orthogonal(DeepUFM(5, 4, 8), [0, 1], 0.7):
        torch.testing.assert_close(torch.linalg.svdvals(W), torch.full((2, min(W.shape[1:])), 0.7, dtype=torch.float64))
    weights = initialise.orthogonal(DeepUFM(5, 4, 5), [0, 1], 0.7)
    sigma = torch.linalg.svdvals(weights[0] @ weights[1] @ weights[2] @ weights[3])
    torch.testing.assert_close(sigma, torch.full_like(sigma, 0.7**4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_reduced_ode_is_the_full_flow(depth):
    s = torch.tensor([[0.3, 0.2, 0.1, 0.05, 0.2, 0.15, 0.02], [0.1] * 7], dtype=torch.float64)
    U, model, times = bases.walsh(8), DeepUFM(8, depth, 10), [0.0, 1.0, 10.0, 100.0]
    full = flow(initialise.spectral(model, U, s, seed=0), model, times, rtol=1e-9, atol=1e-11)["sigma"][..., :7]
    alone = reduced.reduced_flow(s, U, depth, times).sort(-1, descending=True).values
    assert float((full - alone).abs().max() / alone.max()) < 1e-7
    assert alone[-1].max() > 3  # it has gone somewhere


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_descent_on_a_spectral_start_is_euler_on_the_reduced_ode(depth):
    s = torch.tensor([[0.3, 0.3, 0.1, 0.1, 0.2]], dtype=torch.float64)
    U, n, record = bases.fourier(6), 2, [0, 1, 10, 400]
    model = DeepUFM(6, depth, 6, n)
    full = descend(initialise.spectral(model, U, s), model, 0.3, 400, record=record)["sigma"][..., :5]
    # With n samples a class s / sqrt(n) takes the place of s, and time runs n^(1 / L) times as slowly.
    alone = n**0.5 * reduced.reduced_descent(s / n**0.5, U, depth, 0.3 / n ** (1 / depth), record)
    alone = alone.sort(-1, descending=True).values
    torch.testing.assert_close(full, alone, rtol=1e-10, atol=1e-12)


def test_bases_are_orthonormal_and_keep_the_gradient_diagonal():
    generator = torch.Generator().manual_seed(0)
    for U, free in (
        (bases.walsh(8), torch.arange(7)),
        (bases.fourier(9), bases.frequencies(9)),
        (bases.fourier(10), bases.frequencies(10)),
    ):
        C = len(U)
        torch.testing.assert_close(U.T @ U, torch.eye(C - 1, dtype=torch.float64), rtol=0, atol=1e-14)
        assert float(U.sum(0).abs().max()) < 1e-13
        s = 5 * torch.rand(4, C - 1, dtype=torch.float64, generator=generator)[:, free]
        assert float(reduced.off_diagonal(s, U).max()) < 1e-13
    other = bases.random_basis(8, generator)
    assert (
        float(reduced.off_diagonal(5 * torch.rand(4, 7, dtype=torch.float64, generator=generator), other).min()) > 0.01
    )


@pytest.mark.parametrize("depth", [2, 3, 8])
def test_deviations_from_collapse_follow_first_order_theory(depth):
    C, start, eps = 8, 0.05, 1e-6
    deviation = torch.tensor([1.0, -1, 0, 0, 2, -2, 0], dtype=torch.float64)
    s = start * (1 + eps * deviation)[None]
    for row in reduced.reduced_flow(s, bases.walsh(C), depth, log_times(1e4, 2), atol=1e-16)[1:, 0]:
        mean = float(row.mean())
        expected = reduced.amplification(mean, start, C, depth)
        torch.testing.assert_close((row / mean - 1) / eps, expected * deviation, rtol=0.01, atol=0.01)
    assert mean > reduced.turning_point(C, depth)


def test_one_layer_is_the_convex_case():
    model = DeepUFM(6, 1)
    weights = initialise.gaussian(model, [0, 1, 2], 0.5)
    found = flow(weights, model, log_times(1e6, 1), rtol=1e-6, atol=1e-9)
    # The maximum-margin direction is the simplex; what is off it stays bounded while the norm grows as log t.
    assert found.rank(0.3)[0][-1].tolist() == [5.0] * 3
    off = found["etf"] * found["norm"]
    assert float(found["etf"][-1].max()) < 0.1 and float(off[-1].max()) < 1.5 * float(off[0].max())
    assert float((found["margin"][-1] - found["norm"][-1] / 5**0.5).abs().max()) < 1.5


def test_flow_runs_do_not_feel_their_company():
    model = DeepUFM(4, 3, 5)
    weights = initialise.gaussian(model, [0, 1, 2])
    weights = [W * torch.tensor([1.0, 3.0, 0.3]).double()[:, None, None] for W in weights]  # steps of different lengths
    together, alone = (flow([W[i] for W in weights], model, [0.0, 3.0, 50.0]) for i in (slice(None), slice(2, 3)))
    assert torch.equal(together["sigma"][:, 2:], alone["sigma"])


def test_integrator_is_scipys():
    from scipy.integrate import solve_ivp

    def rate(y, runs=None):
        return torch.stack([y[:, 1], (1 - y[:, 0] ** 2) * y[:, 1] * 5 - y[:, 0]], 1)  # van der Pol

    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    integrator = Integrator(rate, start, 1e-6, 1e-9)
    integrator.advance(20.0, torch.ones(1, dtype=torch.bool))
    oracle = solve_ivp(
        lambda t, y: rate(torch.as_tensor(y)[None])[0].numpy(), (0, 20), [2.0, 0.0], rtol=1e-6, atol=1e-9
    )
    truth = solve_ivp(
        lambda t, y: rate(torch.as_tensor(y)[None])[0].numpy(),
        (0, 20),
        [2.0, 0.0],
        method="DOP853",
        rtol=1e-12,
        atol=1e-12,
    ).y[:, -1]
    error = abs(integrator.y[0].numpy() - truth).max()
    assert error <= 2 * abs(oracle.y[:, -1] - truth).max()
    assert int(integrator.steps[0]) <= 1.2 * len(oracle.t) + 20 or int(integrator.steps[0]) <= oracle.nfev // 6 + 5


def test_flow_is_what_descent_tends_to():
    model = DeepUFM(4, 3, 5)
    weights = initialise.gaussian(model, [0])
    exact = flow(weights, model, [0.0, 20.0])["sigma"][-1]
    coarse, fine = (descend(weights, model, lr, round(20 / lr))["sigma"][-1] for lr in (0.1, 0.05))
    ratio = float((coarse - exact).norm() / (fine - exact).norm())
    assert 1.8 < ratio < 2.2  # Euler's error is of first order


def test_mistakes_are_named():
    model = DeepUFM(4, 3, 5)
    weights = initialise.gaussian(model, [0, 1])
    for argument, call in (
        ("weights", lambda: descend(weights[:2], model, 0.1, 5)),
        ("weights", lambda: descend([W.half() for W in weights], model, 0.1, 5)),
        ("lr", lambda: descend(weights, model, torch.ones(3), 5)),
        ("lr", lambda: descend(weights, model, 0.0, 5)),
        ("record", lambda: descend(weights, model, 0.1, 5, record=[0, 6])),
        ("times", lambda: flow(weights, model, [1.0, 0.0])),
        ("depth", lambda: DeepUFM(4, 0)),
        ("width", lambda: initialise.spectral(DeepUFM(8, 2, 3), bases.walsh(8), torch.ones(1, 7))),
        ("s", lambda: initialise.spectral(DeepUFM(8, 2, 9), bases.walsh(8), -torch.ones(1, 7))),
        ("classes", lambda: bases.walsh(6)),
    ):
        with pytest.raises(InputError, match=f"^{argument}: expected"):
            call()
