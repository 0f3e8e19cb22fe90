"""Twenty thousand matrices: every interval contains the rank in extended precision, and hardly any is wider than 0."""

from __future__ import annotations

import dataclasses
import itertools

import extended_precision
import numpy as np
import pytest
import torch
from fastrank.kernels.gram import digits
from matrix_families import FAMILIES, LADDER

from fastrank import matrix_rank, small_grams, spectra, spectrum
from fastrank.ranks import default_rtol, estimate_rank
from fastrank.small_grams import SmallGram
from fastrank.spectra import quick_spectra

#: Small ones are for numbers; the others reach every path of the kernels. [n, d], how many seeds of each family.
SMALL = {
    (1, 1): 40, (1, 9): 40, (9, 1): 40, (2, 2): 130, (2, 5): 130, (3, 3): 130, (4, 3): 130, (3, 7): 130, (5, 5): 160,
    (8, 4): 110, (6, 20): 60, (8, 8): 40, (17, 9): 20, (11, 12): 12, (12, 40): 8,
}  # fmt: skip
LARGE = ((16, 16), (33, 70), (64, 64), (70, 33), (100, 400), (128, 96), (300, 130), (300, 40))
#: The storage, and what is asked: torch's tolerance and one that the tolerance ladder stands around.
STORED = ((torch.float32, None), (torch.float32, LADDER), (torch.bfloat16, None), (torch.float16, LADDER))
#: The truth's own error, relative to sigma_1.
OWN = 64 * 2.0**-64
#: Those whose figures do not fit float16, whose largest number is 65504.
BEYOND_HALF = {"huge", "tiny", "one hot row", "mean-dominated"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stored(name, n, d, seed):
    """One of `STORED` in turn: the matrix, and the rtol that is asked."""
    dtype, rtol = STORED[seed % len(STORED)]
    if dtype == torch.float16 and name in BEYOND_HALF:
        dtype = torch.float32
    return FAMILIES[name](n, d, seed).to(dtype), rtol


def counts(sigma, n, d, dtype, rtol, own):
    """(fewest, most) counts that truths within `own`, relative to sigma_1, allow."""
    rtol = np.longdouble(default_rtol(n, d, dtype) if rtol is None else rtol)
    top = sigma[:1] if len(sigma) else np.zeros(1)
    return [int((sigma > (rtol + side * own) * top).sum()) for side in (1, -1)]


@dataclasses.dataclass
class Tally:
    matrices: int = 0
    clear: int = 0  # no singular value within 1e-4 of the tolerance
    exact: int = 0  # of those, intervals of width 0
    agreeing: int = 0  # with torch, where torch is right

    def add(self, label, r, A, sigma, own):
        n, d = A.shape
        fewest, most = counts(sigma, n, d, A.dtype, r.rtol, own)
        assert r.lo <= most and r.hi >= fewest and r.lo <= r.rank <= r.hi, f"{label}: {r} against {fewest}..{most}"
        tol = r.rtol * float(sigma[0])
        clear = not len(sigma) or bool((np.abs(sigma - tol) > 1e-4 * tol).all()) or tol == 0
        self.matrices += 1
        self.clear += clear
        self.exact += clear and r.exact
        if fewest == most and r.exact:
            assert r.rank == fewest, label
            theirs = int(torch.linalg.matrix_rank(A.float() if A.itemsize == 2 else A, rtol=r.rtol))
            self.agreeing += theirs == fewest


def small_matrices(seeds_of):
    """[(label, matrix)] and truths, of one shape and one rtol at a time."""
    for (n, d), seeds in SMALL.items():
        cases = [(name, seed) for name in FAMILIES for seed in range(seeds_of(seeds))]
        for rtol in (None, LADDER):
            some = [(f"{name} {n} x {d} seed {seed}", *stored(name, n, d, seed)) for name, seed in cases]
            some = [(label, A) for label, A, asked in some if asked == rtol]
            if some:
                yield rtol, some, extended_precision.singular_values(np.stack([A.double().numpy() for _, A in some]))


@extended_precision.needed
def test_twenty_thousand_small_matrices():
    tally = Tally()
    for rtol, some, truth in small_matrices(lambda seeds: seeds):
        for (label, A), r, sigma in zip(some, matrix_rank([A for _, A in some], rtol), truth, strict=True):
            tally.add(f"{label} {A.dtype} rtol {rtol}", r, A, sigma, OWN)
    print(tally)
    assert tally.matrices >= 20_000
    assert tally.exact >= 0.95 * tally.clear
    # Torch is right nearly everywhere; where it is, so are we (r.exact and r.rank == count, above).
    assert tally.agreeing >= 0.95 * tally.matrices


@extended_precision.needed
@pytest.mark.parametrize("method", ["spectrum", "inertia"])
def test_every_method_holds(method):
    tally = Tally()
    for rtol, some, truth in small_matrices(lambda seeds: -(-seeds // 25)):
        for (label, A), r, sigma in zip(
            some, matrix_rank([A for _, A in some], rtol, None, method), truth, strict=True
        ):
            tally.add(f"{label} {A.dtype} rtol {rtol}", r, A, sigma, OWN)
    assert tally.matrices >= 700 and tally.exact >= 0.95 * tally.clear


@extended_precision.needed
@pytest.mark.skipif(not digits(), reason="this processor does not round")
def test_intervals_hold_of_rounded_numbers(monkeypatch):
    monkeypatch.setattr(small_grams, "ROUNDED_SIDE", 0)
    monkeypatch.setattr(small_grams, "ROUNDED_ROWS", 0)
    tally, broken = Tally(), 0
    for rtol, some, truth in small_matrices(lambda seeds: -(-seeds // 10)):
        A = [a for _, a in some]
        results = zip(some, matrix_rank(A, rtol), quick_spectra(A), truth, strict=True)
        for (label, a), r, s, sigma in results:
            tally.add(f"{label} {a.dtype} rtol {rtol}", r, a, sigma, OWN)
            off = np.abs(s.sigma.numpy() - sigma)
            assert (off <= s.bound.numpy() + OWN * sigma[0]).all(), label
            broken += int((off > s.bound.numpy() / 100 + OWN * sigma[0]).sum())
            fewest, most = counts(sigma, *a.shape, a.dtype, rtol, OWN)
            quick = estimate_rank(s, rtol)
            assert quick.lo <= most and quick.hi >= fewest, label
    assert tally.matrices >= 2000 and tally.exact >= 0.95 * tally.clear
    assert broken, "bounds so wide that nothing could break them"


def test_larger_matrices_of_every_family():
    tally = Tally()
    for n, d in LARGE:
        for seed in range(2):
            some = [(name, *stored(name, n, d, seed + (n > 100))) for name in FAMILIES]
            for rtol in {asked for _, _, asked in some}:
                label, A = zip(*[(name, A) for name, A, asked in some if asked == rtol], strict=True)
                for method in ("auto", "inertia"):
                    for name, X, r in zip(label, A, matrix_rank(list(A), rtol, None, method), strict=True):
                        # LAPACK's float64 SVD: an error of a modest multiple of u sigma_1.
                        truth = torch.linalg.svdvals(X.double()).numpy()
                        tally.add(f"{name} {n} x {d} seed {seed} {method}", r, X, truth, 32 * max(n, d) * 2.0**-53)
    assert tally.exact >= 0.95 * tally.clear


@extended_precision.needed
def test_float64_matrices():
    """At torch's tolerance of float64 the SVD's own bound is half the tolerance; above it, intervals are exact."""
    for (n, d), rtol in itertools.product(((3, 3), (5, 8), (9, 4)), (None, 1e-12, 1e-9, LADDER)):
        A = [FAMILIES[name](n, d, seed) for name in FAMILIES for seed in range(6)]
        truth = extended_precision.singular_values(np.stack([a.numpy() for a in A]))
        for a, r, sigma in zip(A, matrix_rank(A, rtol), truth, strict=True):
            fewest, most = counts(sigma, n, d, a.dtype, rtol, OWN)
            assert r.lo <= most and r.hi >= fewest


@extended_precision.needed
def test_a_thousandth_of_the_bound_is_seen_to_fail(monkeypatch):
    """The bounds are not so wide that nothing could break them."""

    def broken():
        singular_values = ranks = 0
        for _, some, truth in small_matrices(lambda seeds: -(-seeds // 10)):
            A = [a for _, a in some]
            for s, sigma in zip(spectrum(A), truth, strict=True):
                off, own = np.abs(s.sigma.numpy() - sigma), OWN * sigma[0]
                singular_values += int((off > s.bound.numpy() + own).sum())
                # At a singular value itself, where every error counts.
                r = estimate_rank(s, 0.0, float(sigma[len(sigma) // 2]))
                ranks += r.lo > (sigma > r.tol - own).sum() or r.hi < (sigma > r.tol + own).sum()
        return singular_values, ranks

    assert broken() == (0, 0)
    exact = spectra.of_eigenvalues
    # Of the whole error of lambda, the Gram matrix's and the eigensolver's.
    smaller = lambda grams: [  # noqa: E731
        SmallGram(g.G, g.n, g.d, g.dtype, g.centered, g.error / 1000, g.moved) for g in grams
    ]
    monkeypatch.setattr(spectra, "of_eigenvalues", lambda grams, v, e: exact(smaller(grams), v, e / 1000))
    singular_values, ranks = broken()
    assert singular_values > 0 and ranks > 0


def test_members_of_a_list_do_not_change_each_other():
    A = [stored(name, n, d, seed)[0] for seed, (n, d) in enumerate(((3, 7), (64, 64), (70, 33))) for name in FAMILIES]
    A.append(torch.full((5, 5), float("nan")))
    backwards = list(reversed(A))
    for method in ("auto", "inertia"):
        alone = [matrix_rank(a, method=method) for a in A[:-1]]
        assert matrix_rank(A, method=method)[:-1] == alone
        torch.set_num_threads(2)
        assert matrix_rank(backwards, method=method)[:0:-1] == alone
        torch.set_num_threads(1)
    for a, s in zip(A[:-1], spectrum(A), strict=False):
        one = spectrum(a)
        assert torch.equal(s.sigma, one.sigma) and torch.equal(s.bound, one.bound)
    sigma = spectrum(A)[-1].sigma
    assert sigma.isnan().all() and matrix_rank(A)[-1].reason
