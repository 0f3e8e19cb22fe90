"""Spectra of matrices of low rank from a sketch that is shown to have all of them.

`A = Q B + R` with Q [n, q] an orthonormal basis of the range of `A Omega` and `B = Q^T A` (Halko, Martinsson & Tropp
2011, "Finding structure with randomness", algorithm 4.1). B has the singular values of `Q B`, those of A lie within
`||R||_2` of them (Weyl). That norm is bounded with random vectors of which the sketch knows nothing: their lemma 4.1,
with `R R^T R` for the matrix, because `R` is mostly rounding, whose 2-norm is far below what one product with it shows.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastrank.kernels.rsvd import products_many, test_matrix
from fastrank.precision import all_threads, full_precision, one_thread
from fastrank.ranks import rank_counts
from fastrank.spectra import Spectrum, spectrum

#: Columns of a sketch beyond the rank that is expected.
OVERSAMPLE = 12
#: Random vectors that probe what the sketch lacks, and the factor of lemma 4.1: the bound fails with probability
#: FACTOR ** -PROBES, one in 10^10.
PROBES, FACTOR = 5, 100.0
#: In operations of a float32 product, a sketch of q columns takes (4 q + PASSES) n d + START, its small operations, and
#: the whole spectrum GRAM m n d + SOLVER m^3, m the smaller side. Fitted, on two threads, to 512 x 4608 (18 ms; 8 by 48
#: columns, 17 by 160), 2048 x 2048 (560; 28 by 160), 512 x 512 (7; 2.7 by 32) and 256 x 2304 (3.2; 3.0 by 16). A sketch
#: that fails comes on top, so it has to promise a third less.
PASSES, START, GRAM, SOLVER, PROMISE = 150, 2e8, 1.25, 5.0, 2 / 3
#: Widths are rounded up to a multiple of this, so that few test matrices are needed.
ROUND = 16


def sketch_width(n: int, d: int, rank: float) -> int | None:
    """Columns of a sketch for a matrix [n, d] whose rank is expected to be `rank`, None where it would not pay."""
    m = min(n, d)
    if not math.isfinite(rank) or not m:
        return None
    width = -(-math.ceil(rank * 1.05 + OVERSAMPLE) // ROUND) * ROUND
    pays = (4 * width + PASSES) * n * d + START <= PROMISE * (GRAM * m * n * d + SOLVER * m**3)
    return width if pays and width < m else None


def sketched_spectrum(A: Tensor, width: int, seed: int, stream: int) -> Spectrum | None:
    """Spectrum of A [n, d], zeros beyond the first `width`; None where it does not settle the default rank.

    Its bounds hold with probability 1 - 1e-10 over the draws (seed, stream), which must not depend on A.
    """
    n, d = A.shape
    if A.dtype == torch.float64:  # the rounding of a sketch reaches the tolerance
        return None
    X = (A if n <= d else A.T).float().contiguous()
    with full_precision(X.device):
        with all_threads():
            Y = X @ _sketching(X.shape[1], width, seed, X.device)
        if not bool(Y.isfinite().all()):
            return None
        with one_thread():
            Q = torch.linalg.qr(Y)[0]
        with all_threads():
            B = Q.T @ X
        W = test_matrix(PROBES, X.shape[1], seed, 1 + stream, device=X.device).double().T
        for transposed in (False, True, False):
            W = _rest_times(X, Q, B, W, transposed)
        Q64 = Q.double()
        uneven = torch.linalg.matrix_norm(Q64.T @ Q64 - torch.eye(width, dtype=Q64.dtype, device=Q.device))
    s = spectrum(B)
    # R as it is applied differs from R by the rounding of float64 products.
    rounding = 8 * max(n, d) * torch.finfo(torch.float64).eps * s.sigma.norm()
    outside = (FACTOR * math.sqrt(2 / math.pi) * W.norm(dim=0).max()) ** (1 / 3) + rounding
    # sigma(Q B) is sigma(B) times at most sqrt(1 + uneven), at least sqrt(1 - uneven) (Ostrowski).
    within = s.bound + uneven * (s.sigma + s.bound) + outside
    beyond = s.sigma.new_zeros(min(n, d) - width)
    sigma, bound = torch.cat([s.sigma, beyond]), torch.cat([within, beyond + outside])
    found = Spectrum(sigma, bound, outside, n, d, A.dtype, False, "sketch")
    _, lo, hi = rank_counts(found)
    return found if bool(lo == hi) and bool(hi < width) else None


def _rest_times(X: Tensor, Q: Tensor, B: Tensor, V: Tensor, transposed: bool) -> Tensor:
    """R V, or R^T V, in float64, of R = X - Q B."""
    of_X, inner = products_many([X, B if not transposed else Q], [V, V], transposed)
    (outer,) = products_many([Q if not transposed else B], [inner], transposed)
    return of_X - outer


@lru_cache(maxsize=16)
def _sketching(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    """The same for every matrix and step: nothing is claimed of it, what it misses the probes see."""
    return test_matrix(rows, columns, seed, device=device)
