"""Spectra of matrices of low rank from a sketch that is shown to have all of them.

`A = Q B + R` with Q [n, q] an orthonormal basis of the range of `A Omega` and `B = Q^T A` (Halko, Martinsson & Tropp
2011, "Finding structure with randomness", algorithm 4.1). B has the singular values of `Q B`, those of A lie within
`||R||_2` of them (Weyl). That norm is bounded with random vectors of which the sketch knows nothing: their lemma 4.1,
with `R R^T R` for the matrix, because `R` is mostly rounding, whose 2-norm is far below what one product with it shows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastrank.kernels.rsvd import test_matrix
from fastrank.precision import full_precision, one_thread
from fastrank.ranks import rank_counts
from fastrank.spectra import Spectrum, spectrum

#: Columns of a sketch beyond the rank that is expected.
OVERSAMPLE = 12
#: Random vectors that probe what the sketch lacks, and the factor of lemma 4.1: the bound fails with probability
#: FACTOR ** -PROBES, one in 10^10.
PROBES, FACTOR = 5, 100.0
#: A sketch takes 4 n d q operations in float32, the Gram matrix m n d in float64 at a third of the speed, and its
#: eigenvalues as much again. Below this smaller side, or above this share of it, nothing is won.
SMALLEST_SIDE, LARGEST_SHARE = 256, 1 / 3


def sketch_width(n: int, d: int, rank: float) -> int | None:
    """Columns of a sketch for a matrix [n, d] whose rank is expected to be `rank`, None where it would not pay."""
    m = min(n, d)
    width = math.ceil(rank * 1.05) + OVERSAMPLE if math.isfinite(rank) else m
    return width if m >= SMALLEST_SIDE and width <= LARGEST_SHARE * m else None


def sketched_spectrum(A: Tensor, width: int, seed: int, stream: int) -> Spectrum | None:
    """Spectrum of A [n, d], zeros beyond the first `width`; None where it does not settle the default rank.

    Its bounds hold with probability 1 - 1e-10 over the draws (seed, stream), which must not depend on A.
    """
    n, d = A.shape
    if A.dtype == torch.float64:  # the rounding of a sketch reaches the tolerance
        return None
    X = (A if n <= d else A.T).float()
    draw = {"seed": seed, "device": X.device}
    with full_precision(X.device):
        Y = X @ test_matrix(X.shape[1], width, stream=2 * stream, **draw)
        if not bool(Y.isfinite().all()):
            return None
        with one_thread():
            Q = torch.linalg.qr(Y)[0]
        B = Q.T @ X
        X64, Q64, B64 = X.double(), Q.double(), B.double()
        W = test_matrix(X.shape[1], PROBES, stream=2 * stream + 1, **draw).double()
        W = X64 @ W - Q64 @ (B64 @ W)
        W = X64.T @ W - B64.T @ (Q64.T @ W)
        W = X64 @ W - Q64 @ (B64 @ W)
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
