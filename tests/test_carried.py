"""Spectra carried from an anchor: every bound holds while a matrix moves, and anchors are renewed when it says more."""

import pytest
import torch

import fastrank.carried
from fastrank.carried import DRIFT, RENEW, Anchor, carried_spectra, distances
from fastrank.ranks import rank_counts
from fastrank.subspace import top_svd


def moving(n, d, rank, dtype=torch.float32, steps=6, size=3e-4):
    g = torch.Generator().manual_seed(n + d)
    X = torch.randn(n, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, d, generator=g, dtype=torch.float64)
    X = X / X.norm()
    for _ in range(steps):
        yield X.to(dtype)
        step = torch.randn(n, d, generator=g, dtype=torch.float64)
        X = X + size * step / step.norm() if rank == min(n, d) else X * (1 + size)


@pytest.mark.parametrize(("n", "d", "rank"), [(40, 90, 40), (90, 40, 40), (60, 60, 60), (50, 80, 12), (9, 30, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_bounds_hold_while_the_matrix_moves(n, d, rank, dtype):
    anchor = top = None
    for step, X in enumerate(moving(n, d, rank, dtype)):
        top = top_svd(X, 15, top)
        ((s, anchor, drift),) = ((c.spectrum, c.anchor, c.drift) for c in carried_spectra([(X, top, anchor)], step))
        truth = torch.linalg.svdvals(X.double())
        assert anchor.step == 0 and (drift > 0) == (step > 0)
        assert ((s.sigma - truth).abs() <= s.bound + 1e-14).all()
        _, lo, hi = rank_counts(s)
        assert lo <= torch.linalg.matrix_rank(X.double(), rtol=max(n, d) * 2**-23) <= hi or dtype == torch.float64
        # The leading values are today's, and so is the norm.
        assert (s.sigma[: top.k] - truth[: top.k]).abs().max() <= 1e-3 * truth[0]
        assert float(s.sigma.norm()) == pytest.approx(float(truth.norm()), rel=1e-3)


def test_the_bound_is_not_larger_than_what_was_moved():
    X, Y = list(moving(60, 60, 60, steps=2))
    (moved, norm), apart = distances([X], [Y])[0], (X.double() - Y.double()).norm()
    assert apart <= moved <= 1.001 * apart and float(norm) == pytest.approx(float(X.norm()))
    tops = top_svd([X, Y], 15)
    (first,) = carried_spectra([(X, tops[0], None)], 0)
    (second,) = carried_spectra([(Y, tops[1], first.anchor)], 1)
    # Without what it moved by, the truth lies outside.
    too_tight = second.spectrum.bound - moved
    assert not ((second.spectrum.sigma - torch.linalg.svdvals(Y.double())).abs() <= too_tight.clamp_min(0)).all()


def test_an_anchor_is_the_matrix_that_its_spectrum_is_of(monkeypatch):
    """Another process may write to a weight while it is measured: no version counter tells."""
    X = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    real = fastrank.carried.spectrum

    def meanwhile(matrices):
        found = real(matrices)
        X.mul_(1.25)
        return found

    monkeypatch.setattr(fastrank.carried, "spectrum", meanwhile)
    (first,) = carried_spectra([(X, top_svd(X, 15), None)], 0)
    assert torch.linalg.svdvals(first.anchor.matrix) == pytest.approx(first.spectrum.sigma.float().numpy(), rel=1e-4)
    (now,) = carried_spectra([(X, top_svd(X, 15), first.anchor)], 1)
    assert ((now.spectrum.sigma - torch.linalg.svdvals(X.double())).abs() <= now.spectrum.bound).all()


def followed(matrices, top=None, anchor=None):
    """Of one matrix after the other, with the anchor that the last one left where it fits."""
    for step, X in enumerate(matrices):
        top = top_svd(X, 15, top)
        (now,) = carried_spectra([(X, top, anchor if anchor is not None and anchor.fits(X) else None)], step)
        anchor = now.anchor
        yield now


def test_a_weight_that_begins_at_zero():
    """A zero-initialised layer: its anchor has no direction to go by."""
    moves = torch.randn(150, 200, generator=torch.Generator().manual_seed(0))
    for size in (1e-3, 1e3):
        A = [torch.zeros(150, 200), torch.zeros(150, 200), size * moves, 1.1 * size * moves]
        for X, now in zip(A, followed(A), strict=True):
            truth, s = torch.linalg.svdvals(X.double()), now.spectrum
            assert ((s.sigma - truth).abs() <= s.bound + 1e-14 * truth[0]).all() and not s.reason
            assert int(rank_counts(s)[0]) == (150 if X.any() else 0)
            assert float(s.sigma.norm()) == pytest.approx(float(truth.norm()), rel=1e-6)


def test_a_weight_that_jumps_is_computed_anew_at_once():
    X = torch.randn(150, 200, generator=torch.Generator().manual_seed(0))
    Y = torch.randn(150, 200, generator=torch.Generator().manual_seed(1))
    for after in (3 * X, Y, torch.zeros_like(X)):
        _, now = followed([X, after])
        truth = torch.linalg.svdvals(after.double())
        assert (now.spectrum.sigma - truth).abs().max() <= 1e-6 * truth[0]
        _, lo, hi = rank_counts(now.spectrum)
        assert lo == hi == (150 if after.any() else 0)
    first, near = followed([X, 1.4 * X])
    assert near.anchor is first.anchor


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_was_not_finite_for_a_step_is_not_followed(bad):
    X = torch.randn(150, 200, generator=torch.Generator().manual_seed(0))
    broken = X.clone()
    broken[3, 4] = bad
    truth = torch.linalg.svdvals(X.double())
    for matrices in ([broken, X], [X, broken, X]):
        *_, wrong, now = followed(matrices)
        assert wrong.spectrum.reason and wrong.spectrum.sigma.isnan().all()
        assert not now.spectrum.reason and (now.spectrum.sigma - truth).abs().max() <= 1e-6 * truth[0]


def test_a_tail_of_zeros_shares_what_is_left_of_the_norm():
    """Where nobody looks at how far it moved, as on a GPU."""
    X = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(X)
    top = top_svd(X, 15)
    (first,) = carried_spectra([(zeros, top_svd(zeros, 15), None)], 0)
    moved, norm = distances([X], [zeros])[0]
    (now,) = fastrank.carried._carried([(X, top, first.anchor)], moved[None], norm[None])
    truth = torch.linalg.svdvals(X.double())
    assert ((now.spectrum.sigma - truth).abs() <= now.spectrum.bound).all()
    assert float(now.spectrum.sigma.norm()) == pytest.approx(float(truth.norm()), rel=1e-5)


def test_an_unsettled_subspace_does_not_hide_what_the_anchor_knows():
    X = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    top, truth = top_svd(X, 15), torch.linalg.svdvals(X.double())
    assert ((truth[:15] - top.S.double()) / truth[:15]).max() > 0.03  # a flat spectrum: far from settled
    ((anchor),) = (c.anchor for c in carried_spectra([(X, top, None)], 0))
    (still,) = carried_spectra([(X, top, anchor)], 1)
    assert (still.spectrum.sigma[:15] - truth[:15]).abs().max() <= 1e-9 * truth[0]
    # A step that is small beside the subspace's error, and one beside which the anchor knows nothing.
    Y = X + 1e-3 * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    (near,) = carried_spectra([(Y, top_svd(Y, 15, top), anchor)], 1)
    assert (near.spectrum.sigma[:15] - torch.linalg.svdvals(Y.double())[:15]).abs().max() <= 2e-3 * truth[0]
    Y = 3 * decaying(X)
    top = top_svd(Y, 15)
    (far,) = carried_spectra([(Y, top, anchor)], 1)
    assert (far.spectrum.sigma[:15] - torch.linalg.svdvals(Y.double())[:15]).abs().max() <= 1e-3 * top.S[0]


def decaying(X):
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    return U * (S[0] * 0.7 ** torch.arange(len(S))) @ Vh


def test_a_distance_is_bounded_from_above_where_rounding_makes_it_small():
    X = torch.full((3, 100_000), 1.0)
    Y = X * (1 + 2**-23)
    assert distances([X], [Y])[0, 0] >= (X.double() - Y.double()).norm()
    tiny = torch.full((3, 5), 1e-25)
    assert distances([tiny], [2 * tiny])[0, 0] >= (15**0.5) * 1e-25  # its squares vanish in float32


def test_an_anchor_is_renewed_when_that_says_more_and_not_too_often():
    X = torch.randn(64, 80, generator=torch.Generator().manual_seed(0))
    ((anchor),) = (c.anchor for c in carried_spectra([(X, top_svd(X), None)], 5))
    assert float(anchor.width) == 0
    soon, later = 5 + 64 // RENEW - 1, 5 + 64 // RENEW
    assert not anchor.outdated(later, 0.0, DRIFT / 2)
    assert anchor.outdated(later, 1.0, 0.0) and anchor.outdated(later, 0.0, 2 * DRIFT)
    assert not anchor.outdated(soon, 1.0, 2 * DRIFT)
    assert anchor.outdated(later, float("nan"), 0.0)  # not finite for a while
    again = Anchor.from_state_dict(anchor.state_dict())
    assert torch.equal(again.matrix, anchor.matrix) and torch.equal(again.spectrum.sigma, anchor.spectrum.sigma)
    assert anchor.fits(X) and not anchor.fits(X.double()) and not anchor.fits(X.T)


def test_non_finite_weights_are_nan_with_a_reason():
    X = torch.randn(20, 30)
    ((anchor),) = (c.anchor for c in carried_spectra([(X, top_svd(X), None)], 0))
    bad = X.clone()
    bad[3, 4] = torch.nan
    (found,) = carried_spectra([(bad, top_svd(bad), anchor)], 1)
    assert found.spectrum.reason and found.spectrum.sigma.isnan().all()
