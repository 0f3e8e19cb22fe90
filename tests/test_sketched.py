"""Spectra of low rank from a sketch: every bound holds, and what the sketch does not have it does not hide."""

import pytest
import torch

from fastrank.ranks import rank_counts
from fastrank.sketched import sketch_width, sketched_spectrum


def low_rank(n, d, sigma, noise=0.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(n)
    U = torch.linalg.qr(torch.randn(n, len(sigma), generator=g, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(d, len(sigma), generator=g, dtype=torch.float64))[0]
    A = (U * torch.as_tensor(sigma, dtype=torch.float64)) @ V.T
    return (A + noise * torch.randn(n, d, generator=g, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize(("n", "d"), [(256, 700), (700, 256), (300, 300)])
@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bounds_hold(n, d, decay, dtype):
    A = low_rank(n, d, torch.arange(1, 41).double() ** -decay)
    if dtype != A.dtype:  # integers, which bfloat16 has too
        A = (A[:, :30].sign() @ A[:30].sign()).clamp(-128, 128).to(dtype)
    s = sketched_spectrum(A, 60, seed=1, stream=2)
    truth = torch.linalg.svdvals(A.double())
    assert s.method == "sketch" and ((s.sigma - truth).abs() <= s.bound).all()
    rank = 40 if dtype == torch.float32 else 30
    assert [int(count) for count in rank_counts(s)] == [rank] * 3


def test_what_the_sketch_lacks_is_in_its_bound():
    """A tail just below the tolerance: the zeros that are reported for it are off by what it is."""
    A = low_rank(256, 700, [1.0] * 20, noise=5e-8, dtype=torch.float64).float()
    s, truth = sketched_spectrum(A, 40, seed=0, stream=0), torch.linalg.svdvals(A.double())
    off = (s.sigma - truth).abs()
    assert (off <= s.bound).all() and off[100] > s.bound[100] / 50


@pytest.mark.parametrize("width", [30, 40])
def test_more_than_the_sketch_has_is_not_hidden(width):
    A = low_rank(256, 700, [1.0] * 41)
    assert sketched_spectrum(A, width, seed=0, stream=0) is None
    # One direction that is only just above the tolerance of 700 * 2^-23 is not missed either.
    A = low_rank(256, 700, [1.0] * width + [3e-4])
    assert sketched_spectrum(A, width, seed=0, stream=0) is None


def test_non_finite_matrices_are_left_to_others():
    A = low_rank(256, 300, [1.0] * 5)
    A[7, 9] = torch.inf
    assert sketched_spectrum(A, 20, seed=0, stream=0) is None


def test_float64_is_left_to_others():
    assert sketched_spectrum(low_rank(256, 300, [1.0] * 5).double(), 20, seed=0, stream=0) is None


def test_widths():
    assert sketch_width(512, 4608, 20) == sketch_width(4608, 512, 20) == 48
    assert sketch_width(512, 4608, 127) is None and sketch_width(2048, 2048, 127) == 160
    assert sketch_width(256, 2304, 20) is None and sketch_width(2048, 2048, float("nan")) is None
    assert sketch_width(0, 7, 0) is None


def test_the_global_state_is_not_touched_and_the_same_draw_gives_the_same():
    A, before = low_rank(256, 300, [1.0] * 5), torch.get_rng_state()
    first, second = (sketched_spectrum(A, 20, seed=3, stream=4) for _ in range(2))
    assert torch.equal(first.sigma, second.sigma) and torch.equal(before, torch.get_rng_state())
