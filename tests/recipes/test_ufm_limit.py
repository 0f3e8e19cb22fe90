"""The flow's path beyond time: it is the flow's, nothing underflows on it, and without depth it ends at collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from fastrank import InputError
from fastrank.recipes.ufm import initialise
from fastrank.recipes.ufm.flow import flow
from fastrank.recipes.ufm.limit import direction, follow
from fastrank.recipes.ufm.measure import measure
from fastrank.recipes.ufm.model import DeepUFM, join, logits, losses, margins, split


@pytest.mark.parametrize("depth", [1, 3])
def test_direction_is_that_of_the_loss(depth):
    model = DeepUFM(4, depth, 5, 2)
    weights = [W.requires_grad_() for W in initialise.gaussian(model, [0, 1, 2])]
    losses(logits(weights), model.labels).sum().backward()
    gradient = join([W.grad for W in weights])
    y = join([W.detach() for W in weights])
    found = direction(y, model)
    torch.testing.assert_close(found.norm(dim=1), y.norm(dim=1))
    cosine = (found * gradient).sum(1) / found.norm(dim=1) / gradient.norm(dim=1)
    torch.testing.assert_close(cosine, -torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.skipif(np.finfo(np.longdouble).max == np.finfo(np.float64).max, reason="no wider floating type here")
def test_margins_beyond_float64_keep_their_direction():
    """Depth 1 at margins around 2000, where float64's probabilities are 0, against a wider exponent."""
    model = DeepUFM(4, 1, 1)
    Z = (
        2000 * torch.eye(4, dtype=torch.float64)
        + torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    )
    assert float(losses(Z[None], model.labels)) == 0
    wide = np.exp(Z.numpy().astype(np.longdouble) - Z.amax(1, keepdim=True).numpy())
    P = wide / wide.sum(1, keepdims=True)
    G = np.where(np.eye(4, dtype=bool), -(P * (1 - np.eye(4))).sum(1, keepdims=True), P)
    expected = -G / np.sqrt((G**2).sum()) * float(Z.norm())
    np.testing.assert_allclose(direction(Z.reshape(1, -1), model).view(4, 4), expected.astype(float), rtol=1e-9)


def test_it_is_the_path_of_the_flow():
    """At the time at which the flow has the margin that the path has reached, both are at the same weights."""
    model = DeepUFM(4, 3, 4)
    start = initialise.gaussian(model, [0], 0.7)
    found, failed = follow(start, model, 4.0, rtol=1e-9, atol=1e-11)
    there = float(margins(logits(found), model.labels).min())
    assert not failed.any() and 4 <= there < 5

    def ahead(log_time):
        return float(flow(start, model, [0.0, np.exp(log_time)], collapse=False)["margin"][-1]) - there

    time = np.exp(brentq(ahead, np.log(10.0), np.log(2000.0), xtol=1e-8))
    passed = flow(start, model, [0.0, time], collapse=False)
    torch.testing.assert_close(join(passed.weights), join(found), rtol=0, atol=1e-5)
    assert (join(start) - join(found)).norm() > 0.5


def test_depth_one_ends_at_collapse_and_runs_keep_to_themselves():
    model = DeepUFM(4, 1, 1)
    weights = initialise.gaussian(model, [0, 1, 2])
    found, failed = follow(weights, model, 30.0)
    assert not failed.any() and measure(found, model)["etf"].max() < 1e-3
    alone, _ = follow([W[1:2] for W in weights], model, 30.0)
    torch.testing.assert_close(alone[0], found[0][1:2], rtol=1e-12, atol=0)
    again, _ = follow(found, model, 20.0)  # already there: it stays
    assert torch.equal(again[0], split(join(found), model)[0])


def test_mistakes_are_named():
    model = DeepUFM(4, 2, 4)
    for margin in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="margin"):
            follow(initialise.gaussian(model, [0]), model, margin)
