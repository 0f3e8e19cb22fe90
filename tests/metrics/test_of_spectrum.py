"""Each figure of a spectrum against its definition written out in numpy, and at the edges where it must not break."""

import math

import numpy as np
import pytest
import torch

from fastrank import InputError, metrics, spectrum
from fastrank.spectra import Spectrum


def of(sigma, centered=False, d=None):
    """A Spectrum with the given singular values, without error."""
    sigma = torch.tensor(sigma, dtype=torch.float64)
    zero = torch.zeros_like(sigma)
    d = d or len(sigma)
    return Spectrum(sigma, zero, torch.zeros((), dtype=torch.float64), 100, d, torch.float32, centered, "svd64")


SIGMA = np.sort(np.random.default_rng(0).exponential(size=40))[::-1].copy()
P = SIGMA / SIGMA.sum()
LAMBDA = SIGMA**2
DEFINITIONS = {
    "frobenius": np.sqrt(LAMBDA.sum()),
    "nuclear": SIGMA.sum(),
    "stable_rank": LAMBDA.sum() / LAMBDA[0],
    "effective_rank": np.exp(-(P * np.log(P)).sum()),
    "rankme": np.exp(-((P + 1e-7) * np.log(P + 1e-7)).sum()),
    "participation_ratio": LAMBDA.sum() ** 2 / (LAMBDA**2).sum(),
    "srank_0.01": 1 + np.argmax(np.cumsum(P) >= 0.99),
    "condition_number": SIGMA[0] / SIGMA[-1],
    "alpha_req": -np.polyfit(np.log(np.arange(1, 41)), np.log(LAMBDA), 1)[0],
}


@pytest.mark.parametrize("name", metrics.OF_SPECTRUM)
def test_definition(name):
    assert float(metrics.OF_SPECTRUM[name](of(SIGMA))) == pytest.approx(DEFINITIONS[name], rel=1e-12)


@pytest.mark.parametrize("name", metrics.OF_SPECTRUM)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_ranks_do_not_depend_on_scale(name, scale):
    value, scaled = (float(metrics.OF_SPECTRUM[name](of(s))) for s in (SIGMA, SIGMA * scale))
    factor = scale if name in ("frobenius", "nuclear") else 1.0
    assert scaled == pytest.approx(value * factor, rel=1e-9)


@pytest.mark.parametrize("name", metrics.OF_SPECTRUM)
def test_zero_and_empty_spectra_give_zero_and_nan_gives_nan(name):
    figure = metrics.OF_SPECTRUM[name]
    assert float(figure(of([0.0, 0.0]))) == 0
    assert float(figure(of([]))) == 0
    assert math.isnan(float(figure(of([math.nan, math.nan]))))


@pytest.mark.parametrize("name", ["stable_rank", "effective_rank", "rankme", "participation_ratio", "srank_0.01"])
def test_k_equal_values_have_rank_k(name):
    assert float(metrics.OF_SPECTRUM[name](of([3.0] * 7))) == pytest.approx(7, rel=1e-5)


def test_a_power_law_has_its_exponent():
    assert float(metrics.alpha_req(of(np.arange(1, 200) ** -0.65))) == pytest.approx(1.3)


def test_saturation_and_tunnel_rank_are_statements_about_the_covariance():
    sigma = [10.0, 5.0, 1.0, 0.2, 0.01]
    share = np.cumsum(np.square(sigma)) / np.square(sigma).sum()
    s = of(sigma, centered=True, d=10)
    assert float(metrics.saturation(s)) == pytest.approx((1 + np.argmax(share >= 0.99)) / 10)
    assert float(metrics.tunnel_rank(s)) == sum(v * v > 1e-3 * 100 for v in sigma)
    for figure in (metrics.saturation, metrics.tunnel_rank):
        with pytest.raises(InputError, match=r"^s: expected a centred spectrum"):
            figure(of(sigma))


def test_saturation_of_data_on_a_subspace():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(500, 3, generator=g) @ torch.linalg.qr(torch.randn(12, 3, generator=g))[0].T + 7.0
    assert float(metrics.saturation(spectrum(X, centered=True))) == pytest.approx(3 / 12)
