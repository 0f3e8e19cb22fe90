"""Twenty thousand matrices: every interval contains the rank in extended precision, and hardly any is wider than 0."""

from __future__ import annotations

import dataclasses
import itertools

import extended_precision
import numpy as np
import pytest
import torch
from matrix_families import FAMILIES, LADDER

from fastrank import matrix_rank, spectra, spectrum
from fastrank.spectra import default_rtol

#: Small ones are for numbers; the others reach every path of the kernels. [n, d], how many seeds of each family.
SMALL = {
    (1, 1): 40, (1, 9): 40, (9, 1): 40, (2, 2): 100, (2, 5): 100, (3, 3): 130, (4, 3): 130, (3, 7): 130, (5, 5): 130,
    (8, 4): 110, (6, 20): 60, (8, 8): 40, (17, 9): 20, (11, 12): 12, (12, 40): 8,
}  # fmt: skip
LARGE = ((16, 16), (33, 70), (64, 64), (70, 33), (100, 400), (128, 96), (300, 40))
#: The storage, and what is asked: torch's tolerance and one that the tolerance ladder stands around.
STORED = ((torch.float32, None), (torch.float32, LADDER), (torch.bfloat16, None), (torch.float16, LADDER))
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


def test_twenty_thousand_small_matrices():
    tally = Tally()
    for (n, d), seeds in SMALL.items():
        cases = [(name, seed) for name in FAMILIES for seed in range(seeds)]
        for rtol in (None, LADDER):
            some = [(name, seed, A) for name, seed in cases for A, r in [stored(name, n, d, seed)] if r == rtol]
            truth = extended_precision.singular_values(np.stack([A.double().numpy() for _, _, A in some]))
            ranks = matrix_rank([A for _, _, A in some], rtol)
            for (name, seed, A), r, sigma in zip(some, ranks, truth, strict=True):
                tally.add(f"{name} {n} x {d} {A.dtype} seed {seed}", r, A, sigma, 64 * 2.0**-64)
    assert tally.matrices >= 18_000
    assert tally.exact >= 0.95 * tally.clear


test_twenty_thousand_small_matrices = extended_precision.needed(test_twenty_thousand_small_matrices)
