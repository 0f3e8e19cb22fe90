"""Spectra of products of few rows: every bound holds, and what the factors do not explain is not hidden."""

import fastrank.kernels.rsvd
import pytest
import torch

from fastrank import factored
from fastrank.factored import _of_products, factored_spectra, pays
from fastrank.ranks import rank_counts
from fastrank.small_grams import small_grams
from fastrank.spectra import of_grams


def factors(rows, n, d, decay=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    G = torch.randn(rows, n, generator=g) * torch.logspace(0, -decay, rows)[:, None]
    return G, torch.randn(rows, d, generator=g).relu()


def spectrum_of(A, G, X):
    return factored_spectra([(A, G, X)], seed=1, stream=2)[0]


def truth(A):
    return torch.linalg.svdvals(A.double())


@pytest.mark.parametrize(("rows", "n", "d"), [(40, 256, 700), (64, 700, 256), (1, 128, 128), (128, 300, 300)])
@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_bounds_hold(rows, n, d, decay):
    G, X = factors(rows, n, d, decay)
    A = G.T @ X
    s, sigma = spectrum_of(A, G, X), truth(A)
    assert s.method == "factors" and len(s.sigma) == min(n, d)
    assert ((s.sigma - sigma).abs() <= s.bound).all() and s.bound[0] < 1e-5 * sigma[0]
    assert [int(count) for count in rank_counts(s)] == [int((sigma > max(n, d) * 2**-23 * sigma[0]).sum())] * 3


@pytest.mark.parametrize("decay", [0.0, 6.0])
def test_the_bound_of_the_product_itself_holds(decay):
    """Without what rounds in the matrix, which is far more."""
    G, X = factors(64, 200, 300, decay)
    (product,) = _of_products([tuple(small_grams([G, X]))])
    (s,) = of_grams([product.gram])
    off = (s.sigma - truth(G.double().T @ X.double())[:64]).abs()
    assert (off <= s.bound).all() and off.max() > s.bound.max() / 1e5 and s.zero_bound < 1e-5 * s.sigma[0]


@pytest.mark.parametrize("times", [0.25, -3.0, 1e-20])
def test_a_multiple_of_the_product_is_known_as_one(times):
    """Clipped, averaged or scaled gradients."""
    G, X = factors(30, 200, 300)
    A = (G.T @ X) * times
    s = spectrum_of(A, G, X)
    assert ((s.sigma - truth(A)).abs() <= s.bound).all() and s.method == "factors"


def test_factors_of_lower_rank():
    """Equal samples, and samples without a gradient."""
    G, X = factors(30, 200, 300)
    X[7], X[9], G[11:20] = X[8], X[8], 0
    A = G.T @ X
    s = spectrum_of(A, G, X)
    assert ((s.sigma - truth(A)).abs() <= s.bound).all()
    assert [int(count) for count in rank_counts(s)] == [19] * 3


@pytest.mark.parametrize("above", [-1.5e-2, 1.5e-2])
def test_a_singular_value_next_to_the_tolerance_is_settled(above):
    """What one product with the rest shows of it would leave the rank open."""
    g = torch.Generator().manual_seed(3)
    U, V = (torch.linalg.qr(torch.randn(512, 20, generator=g))[0].T for _ in range(2))
    U[19] *= 512 * 2**-23 * (1 + above)
    A = U.T @ V
    s, sigma = spectrum_of(A, U, V), truth(A)
    assert ((s.sigma - sigma).abs() <= s.bound).all()
    assert [int(count) for count in rank_counts(s)] == [int((sigma > 512 * 2**-23 * sigma[0]).sum())] * 3


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_a_direction_that_the_factors_lack_is_not_hidden(size):
    """Just above the tolerance of 300 * 2^-23 = 3.6e-5, too: momentum, weight decay, another forward."""
    G, X = factors(30, 200, 300, decay=0.5)
    A = G.T @ X
    A += size * torch.linalg.matrix_norm(A, 2) * torch.outer(torch.eye(200)[3], torch.eye(300)[5])
    assert spectrum_of(A, G, X) is None


def test_factors_of_another_matrix():
    G, X = factors(30, 200, 300)
    A = torch.randn(200, 300, generator=torch.Generator().manual_seed(5))
    assert spectrum_of(A, G, X) is None
    assert [int(count) for count in rank_counts(spectrum_of(torch.zeros(200, 300), G, X))] == [0] * 3
    assert spectrum_of(A, torch.zeros_like(G), X) is None


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_non_finite_numbers_and_float64_are_left_to_others_one_by_one(bad):
    G, X = factors(30, 200, 300)
    good, broken = (G.T @ X, G, X), [G.T @ X, G.clone(), X.clone()]
    broken[bad][3, 4] = torch.inf
    wide = (good[0].double(), G, X)
    found = factored_spectra([good, tuple(broken), wide, good], seed=0, stream=0)
    assert found[1] is None and found[2] is None and torch.equal(found[0].sigma, found[3].sigma)


def test_bfloat16_factors():
    """Their product is rounded to bfloat16 by whoever stores it so: then it is not explained; stored wider, it is."""
    G, X = (Y.bfloat16() for Y in factors(30, 200, 300, decay=0.0))
    A = G.float().T @ X.float()
    s = spectrum_of(A, G, X)
    assert ((s.sigma - truth(A)).abs() <= s.bound).all()
    assert spectrum_of(A.bfloat16(), G, X) is None


def test_the_global_state_is_not_touched_and_the_same_draw_gives_the_same():
    G, X = factors(30, 200, 300)
    before = torch.get_rng_state()
    first, second = (spectrum_of(G.T @ X, G, X) for _ in range(2))
    assert torch.equal(first.bound, second.bound) and torch.equal(before, torch.get_rng_state())


def test_layers_of_one_width_share_their_probes(monkeypatch):
    drawn = []
    monkeypatch.setattr(factored, "test_matrix", lambda d, *a, **k: drawn.append(d) or probes(d, *a, **k))
    probes = fastrank.kernels.rsvd.test_matrix
    jobs = [(G.T @ X, G, X) for G, X in (factors(30, 200, d) for d in (300, 300, 260))]
    found = factored_spectra(jobs, seed=1, stream=2)
    assert sorted(drawn) == [260, 300] and all(
        torch.equal(s.bound, spectrum_of(*job).bound) for s, job in zip(found, jobs, strict=True)
    )


def test_where_it_pays():
    assert pays(64, 128, 2048) and pays(128, 2048, 2048)
    assert not pays(65, 128, 2048) and not pays(0, 128, 128) and not pays(4, 127, 4096)
