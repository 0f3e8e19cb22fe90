"""Fewer samples than features: the figures of the smaller side are those of the larger one, and cost as little."""

import math

import pytest
import torch
from torch import nn

from fastrank import InputError, evaluate
from fastrank.evaluation import ProbeProtocol
from fastrank.evaluation.ood import Neco
from fastrank.evaluation.ridge import ridge_probe, ridge_probe_of_rows
from fastrank.evaluation.scatter import Scatter
from fastrank.report.content import flatten

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

D, C = 40, 4
FAST = ProbeProtocol(epochs=2)


def samples(n, seed=0, width=D):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    centres = 2 * torch.randn(C, width, generator=torch.Generator().manual_seed(9))
    return torch.randn(n, width, generator=g) + centres[y] + 1, y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), nn.LeakyReLU(), nn.Linear(D, C))


def figures(n, **options):
    x, y = samples(n)
    ood = [(x[:9] + 2, y[:9])]
    found = evaluate(
        network(), [(x[:7], y[:7]), (x[7:], y[7:])], test=[samples(30, 3)], ood=ood, protocol=FAST, **options
    )
    return flatten(found.to_dict())


@pytest.fixture
def always_the_large_side(monkeypatch):
    plain = Scatter.__init__

    def folded(self, d, device):
        plain(self, d, device)
        self._fold()

    def force():
        monkeypatch.setattr(Scatter, "__init__", folded)

    return force


@pytest.mark.parametrize(("n", "dim"), [(12, 0.9), (12, 5), (D - 1, 0.9), (D, 0.9), (D + 1, 5)])
def test_figures_of_both_sides_are_one(n, dim, always_the_large_side, monkeypatch):
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: sizes.append(len(A)) or eigh(A))
    found = figures(n, neco_dim=dim)
    assert sizes == [min(n, D)]
    always_the_large_side()
    expected = figures(n, neco_dim=dim)
    assert sizes[1:] == [D] and found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float) and not math.isnan(value):
            assert found[key] == pytest.approx(value, rel=1e-7, abs=1e-10), key


def test_directions_without_variance_are_not_made_up():
    """With 12 rows nothing varies in 29 of 40 directions, whichever side is asked, and the evaluation says so."""
    x, y = samples(12)
    X = x.double()
    centred = X - X.mean(0)
    small, large = Neco.of_rows(X.mean(0), centred, 30), Neco.fit(X.mean(0), centred.T @ centred / 12, 30)
    assert small.dim == large.dim == 11
    other = samples(20, 5)[0]
    torch.testing.assert_close(small.score(other), large.score(other), rtol=1e-9, atol=0)
    eye = torch.eye(11, dtype=torch.float64)
    torch.testing.assert_close(small.components.T @ small.components, eye, rtol=0, atol=1e-12)
    found = evaluate(network(), [(x, y)], ood=[(x + 1, y)], probes=None, neco_dim=30).ood["ood"]
    assert found.neco_dim == 11 and "NECO: the training features vary in 11 directions, not in 30" in found.notes
    with pytest.raises(InputError, match="neco_dim: expected"):
        Neco.of_rows(X.mean(0), centred, 41)


def test_ridge_weights_of_both_sides_are_one():
    x, y = samples(12)
    x, y = x.double()[y < 3], y[y < 3]  # the last class has no sample
    mean = x.mean(0)
    sums = x.new_zeros(C, D).index_add_(0, y, x)
    large = ridge_probe((x - mean).T @ (x - mean), sums, y.bincount(minlength=C).double(), 0.1)
    small = ridge_probe_of_rows(x - mean, mean, y, C, 0.1)
    for name in ("weight", "bias", "mean", "std"):
        torch.testing.assert_close(getattr(small, name), getattr(large, name), rtol=1e-5, atol=1e-7)
    x[0, 0] = math.nan
    assert ridge_probe_of_rows(x - mean, mean, y, C).reason == "non-finite features"
    with pytest.raises(InputError, match="penalty: expected a number > 0"):
        ridge_probe_of_rows(x - mean, mean, y, C, 0.0)


def test_the_state_is_bounded_by_its_matrix():
    state = Scatter(D, torch.device("cpu"))
    for start in range(0, 100, 10):
        x, y = samples(10, start)
        state.update(x, y)
        assert (state.rows() is None) == (start + 10 >= D) and state.n == start + 10
    assert state._few is None
    X = torch.cat([samples(10, start)[0] for start in range(0, 100, 10)]).double()
    centred = X - X.mean(0)
    torch.testing.assert_close(state.matrix(), centred.T @ centred)
    torch.testing.assert_close(state.mean, X.mean(0))


def test_rows_are_copies():
    state, x = Scatter(D, torch.device("cpu")), samples(5)[0]
    state.update(x, torch.zeros(5, dtype=torch.int64))
    before = state.rows().centred.clone()
    x.zero_()
    assert torch.equal(state.rows().centred, before)
