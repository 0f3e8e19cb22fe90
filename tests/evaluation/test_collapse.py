"""Neural collapse against definitions written out sample by sample, and what is known of simplices and codes."""

import itertools
import math

import numpy as np
import pytest
import torch

from fastrank.errors import InputError
from fastrank.evaluation import collapse as nc
from fastrank.evaluation.class_states import ClassMoments
from fastrank.evaluation.softmax_codes import gnc3, one_vs_rest_margin

pytest.importorskip("scipy")


def simplex(C, d):
    q = torch.linalg.qr(torch.randn(d, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0].T
    return nc.centered(q)


def blobs(counts, d, spread=0.3):
    g = torch.Generator().manual_seed(1)
    mu = torch.randn(len(counts), d, generator=g, dtype=torch.float64)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return mu[y] + spread * torch.randn(len(y), d, generator=g, dtype=torch.float64), y


def test_a_simplex_is_collapsed():
    M = simplex(7, 12)
    W, shifted = 3 * M, M + 5
    zero = torch.zeros(12, 12, dtype=torch.float64)
    for value in (
        nc.nc1_pinv(shifted, zero), nc.nc1_trace(shifted, torch.zeros(())), nc.cdnv(shifted, torch.zeros(7)),
        nc.nc2_equinorm(M), nc.nc2_equiangular(M), nc.nc2_angle_spread(M), nc.etf_error(M, M), nc.etf_error(W, M),
        nc.nc3_duality(W, shifted), gnc3(W, shifted, center=True),
    ):  # fmt: skip
        assert abs(float(value)) < 1e-12
    assert int(nc.between_rank(shifted)) == 6
    assert one_vs_rest_margin(W).margin == pytest.approx(7 / 6)  # a simplex of unit vectors: C / (C - 1)


@pytest.mark.parametrize("counts", [[40] * 5, [3, 90, 17, 1, 30]])
def test_agrees_with_the_definitions_sample_by_sample(counts):
    """Papyan et al. 2020 written in NumPy with explicit loops; equal and unequal classes, one class of one sample."""
    X, y = blobs(counts, 6)
    moments = ClassMoments(len(counts), 6, X.device)
    for rows, labels in zip(X.split(13), y.split(13), strict=True):
        moments.update(rows.float(), labels)
    x, labels, C = X.float().double().numpy(), y.numpy(), len(counts)
    mu = np.stack([x[labels == c].mean(0) for c in range(C)])
    within = sum(np.outer(h - mu[c], h - mu[c]) for h, c in zip(x, labels, strict=True)) / len(x)
    between = sum(np.outer(m - mu.mean(0), m - mu.mean(0)) for m in mu) / C
    var = np.array([((x[labels == c] - mu[c]) ** 2).sum(1).mean() for c in range(C)])
    M = mu - mu.mean(0)
    pairs = list(itertools.combinations(range(C), 2))
    cosines = np.array([M[a] @ M[b] / np.linalg.norm(M[a]) / np.linalg.norm(M[b]) for a, b in pairs])
    means, S_W = moments.means(), torch.from_numpy(within)
    W = torch.randn(C, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    w = W.numpy()
    ideal = (np.eye(C) - 1 / C) / math.sqrt(C - 1)
    close = {"rel": 1e-9, "abs": 1e-12}
    assert moments.variances().numpy() == pytest.approx(var, **close)
    assert float(nc.nc1_pinv(means, S_W)) == pytest.approx(np.trace(within @ np.linalg.pinv(between)) / C, **close)
    assert float(nc.nc1_trace(means, S_W.trace())) == pytest.approx(np.trace(within) / np.trace(between), **close)
    expected = np.mean([(var[a] + var[b]) / 2 / ((mu[a] - mu[b]) ** 2).sum() for a, b in pairs])
    assert float(nc.cdnv(means, moments.variances())) == pytest.approx(expected, **close)
    norms = np.linalg.norm(M, axis=1)
    assert float(nc.nc2_equinorm(nc.centered(means))) == pytest.approx(norms.std() / norms.mean(), **close)
    assert float(nc.nc2_equiangular(nc.centered(means))) == pytest.approx(np.abs(cosines + 1 / (C - 1)).mean(), **close)
    assert float(nc.nc2_angle_spread(nc.centered(means))) == pytest.approx(cosines.std(), **close)
    outer = w @ M.T
    assert float(nc.etf_error(W, nc.centered(means))) == pytest.approx(
        np.linalg.norm(outer / np.linalg.norm(outer) - ideal), **close
    )
    assert float(nc.nc3_duality(W, means)) == pytest.approx(
        np.linalg.norm(w / np.linalg.norm(w) - M / np.linalg.norm(M)) ** 2, **close
    )
    direct = [1 - w[c] @ mu[c] / np.linalg.norm(w[c]) / np.linalg.norm(mu[c]) for c in range(C)]
    assert float(gnc3(W, means)) == pytest.approx(np.mean(direct), **close)
    nearest = ((x[:, None] - mu[None]) ** 2).sum(2).argmin(1)
    assert (nc.nearest_class(X.float(), means).numpy() == nearest).all()


def test_leading_dimensions_are_separate_networks():
    means = torch.randn(3, 5, 8, dtype=torch.float64)
    within = torch.eye(8, dtype=torch.float64).expand(3, 8, 8)
    for f, args in ((nc.nc1_pinv, (means, within)), (nc.nc2_equiangular, (means,)), (nc.etf_error, (means, means)),
                    (nc.cdnv, (means, means.square().sum(-1))), (nc.nc3_duality, (means + 1, means))):  # fmt: skip
        together = f(*args)
        assert torch.allclose(together, torch.stack([f(*(a[i] for a in args)) for i in range(3)]), rtol=1e-12)


def test_moments_do_not_cancel_at_deep_collapse_far_from_the_origin():
    X, y = blobs([50, 50, 50], 4, spread=1e-6)
    X = X + 1000
    moments = ClassMoments(3, 4, X.device)
    moments.update(X, y)
    exact = torch.stack([(X[y == c] - X[y == c].mean(0)).square().sum(1).mean() for c in range(3)])
    assert torch.allclose(moments.variances(), exact, rtol=1e-3)


def test_gnc2_against_a_solver_of_another_kind():
    """scipy's SLSQP on the quadratic program itself; and the certificate closes."""
    from scipy.optimize import minimize

    W = np.random.default_rng(3).normal(size=(7, 3))
    W[6] = W[:6].mean(0)  # inside the hull of the others once normalised or not far from it
    for normalise in (True, False):
        codes = one_vs_rest_margin(torch.from_numpy(W), normalise)
        rows = W / np.linalg.norm(W, axis=1, keepdims=True) if normalise else W
        for c in range(7):
            others = np.delete(rows, c, 0)
            found = minimize(
                lambda a, others=others, row=rows[c]: ((a @ others - row) ** 2).sum(), np.full(6, 1 / 6),
                bounds=[(0, 1)] * 6, constraints={"type": "eq", "fun": lambda a: a.sum() - 1}, tol=1e-14,
            )  # fmt: skip
            assert codes.distance[c] == pytest.approx(math.sqrt(max(found.fun, 0)), abs=2e-6)
        assert (codes.lower <= codes.distance).all() and (codes.distance - codes.lower).max() < 1e-9
    assert one_vs_rest_margin(W, normalise=False).distance[6] < 1e-12


def test_gnc2_refuses_what_has_no_margin():
    for W in (torch.randn(1, 3), torch.tensor([[1.0, math.nan], [0, 1]]), torch.tensor([[0.0, 0], [0, 1], [1, 0]])):
        with pytest.raises(InputError, match="W: expected"):
            one_vs_rest_margin(W)
