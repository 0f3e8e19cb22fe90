"""Spectra of gradients from their two factors, which have far fewer rows than the gradient has.

The gradient of a linear layer's weight is `P = G^T X`, X [n, in] its inputs and G [n, out] the gradients of its
outputs, n samples; of a convolution with its patches for X. The squares of P's singular values are the eigenvalues of
`L^T (X X^T) L` where `L L^T = G G^T`, all n x n. What is in memory differs from P, by rounding and by whatever else
may have happened to it (clipping, a second backward): a multiple of P is fitted to it, and the distance from that is
bounded with random vectors (Halko, Martinsson & Tropp 2011, lemma 4.1), so nothing is taken on trust.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastrank.carried import SMALLEST_SIDE
from fastrank.kernels.rsvd import test_matrix
from fastrank.precision import one_thread
from fastrank.ranks import rank_counts
from fastrank.small_grams import U64, SmallGram, small_grams
from fastrank.spectra import Spectrum, of_grams

#: Random vectors that probe what the factors lack. Lemma 4.1's factor: the bound fails with probability
#: FACTOR ** -PROBES, one in 10^10.
PROBES = 12
FACTOR = 10 ** (10 / PROBES)
#: Rows of a matrix that are float64 at a time: 1 MiB of 2048 columns, which stays in a core's cache.
BLOCK = 64


def pays(rows: int, n: int, d: int) -> bool:
    """Whether factors of `rows` rows beat the Gram matrix of the gradient [n, d] itself."""
    return min(n, d) >= SMALLEST_SIDE and 0 < 2 * rows <= min(n, d)


def factored_spectra(jobs: list[tuple[Tensor, Tensor, Tensor]], seed: int, stream: int) -> list[Spectrum | None]:
    """Spectra of matrices A [n, d] that should be multiples of G^T X, from G [r, n] and X [r, d], r < min(n, d).

    None where that does not settle the default rank: float64, what is not finite, or what G and X do not explain.
    Bounds hold with probability 1 - 1e-10 over the draws (seed, stream), which must not depend on the matrices.
    """
    fits = [torch.float64 not in (A.dtype, G.dtype, X.dtype) for A, G, X in jobs]
    grams = small_grams([Y for job, fit in zip(jobs, fits, strict=True) if fit for Y in job[1:]])
    products = [_of_product(g, x) for g, x in zip(grams[::2], grams[1::2], strict=True)]
    sound = [p for p in products if p is not None]
    spectra = dict(zip(map(id, sound), of_grams(sound), strict=True))
    found = iter([spectra.get(id(p)) for p in products])
    with one_thread():
        return [_settled(*job, next(found) if fit else None, seed, stream) for job, fit in zip(jobs, fits, strict=True)]


def _of_product(g: SmallGram, x: SmallGram) -> SmallGram | None:
    """`L^T K L` [r, r] with L L^T = g, K = x, whose eigenvalues are the squares of the singular values of G^T X.

    With exact g and K they are those of `K^(1/2) g K^(1/2)`: an error E of g moves them by at most ||E|| ||K||, one of
    K by its norm times ||g|| (Weyl).
    """
    r = len(g.G)
    K = x.G.tril() + x.G.tril(-1).T
    size, norm = g.G.diagonal().sum(), x.G.diagonal().sum()  # at least the Frobenius norms
    # Cholesky of a Gram matrix of lower rank: raised by more than it rounds.
    shift = 2 * (g.error + (r + 2) * U64 * size)
    L, failed = torch.linalg.cholesky_ex(g.G.tril() + g.G.tril(-1).T + shift * torch.eye(r, dtype=g.G.dtype))
    if bool(failed) or not bool(norm.isfinite()):
        return None
    S = L.T @ (K @ L)
    raised = size + r * shift
    # |L L^T - g| <= gamma_{r+1} |L| |L|^T (Higham 2002, theorem 10.3); two products of r terms each.
    of_g, of_S = g.error + shift + 2 * (r + 1) * U64 * raised, 3 * (r + 1) * U64 * raised * norm
    error = (of_g * norm + (raised + of_g) * x.error + of_S) * (1 + 16 * U64)
    return SmallGram(S, g.d, x.d, torch.float32, False, error)


def _settled(A: Tensor, G: Tensor, X: Tensor, product: Spectrum | None, seed: int, stream: int) -> Spectrum | None:
    if product is None or product.reason:
        return None
    n, d = A.shape
    V = test_matrix(d, 1 + PROBES, seed, 1 + stream, device=A.device).double()
    mine, theirs = _times(A, V), _times_transposed(G, _times(X, V))
    # The first vector is for the multiple alone, so that the others know nothing of the difference they probe.
    multiple = (mine[:, 0] @ theirs[:, 0]) / theirs[:, 0].square().sum()
    R_V = (mine - multiple * theirs)[:, 1:]
    rounding = 4 * max(n, d) * U64 * multiple.abs() * (G.norm().double() * X.norm().double())
    found = _with_rest(A, product, multiple, _largest(R_V) + rounding)
    if found is None and bool(multiple.isfinite()):
        # Rounding has its norm spread over all directions: a product with R shows far more than ||R||_2, of R R^T R the
        # cube root does not (512 x 512: 19 times less).
        W = _times_transposed(A, R_V) - multiple * _times_transposed(X, _times(G, R_V))
        W = _times(A, W) - multiple * _times_transposed(G, _times(X, W))
        found = _with_rest(A, product, multiple, _largest(W) ** (1 / 3) + rounding)
    return found


def _largest(products: Tensor) -> Tensor:
    """A bound on the 2-norm of a matrix from its products with the probes (lemma 4.1)."""
    return FACTOR * math.sqrt(2 / math.pi) * products.norm(dim=0).max()


def _with_rest(A: Tensor, product: Spectrum, multiple: Tensor, outside: Tensor) -> Spectrum | None:
    """A is `multiple` times the product, and something of 2-norm `outside` at most."""
    if not bool(outside.isfinite()):
        return None
    n, d = A.shape
    beyond = product.sigma.new_zeros(min(n, d) - len(product.sigma))
    sigma = multiple.abs() * torch.cat([product.sigma, beyond])
    bound = multiple.abs() * torch.cat([product.bound, beyond]) + outside
    found = Spectrum(sigma, bound, outside, n, d, A.dtype, False, "factors")
    _, lo, hi = rank_counts(found)
    return found if bool(lo == hi) else None


def _times(A: Tensor, V: Tensor) -> Tensor:
    """A V in float64, of A in whatever precision (2048 x 2048: four times as fast as by copies of 256 rows)."""
    result = V.new_empty(len(A), V.shape[1])
    wide = V.new_empty(min(BLOCK, len(A)), A.shape[1])
    for block, rows in zip(A.split(BLOCK), result.split(BLOCK), strict=True):
        torch.mm(wide[: len(block)].copy_(block), V, out=rows)
    return result


def _times_transposed(A: Tensor, V: Tensor) -> Tensor:
    """A^T V, as `_times`."""
    result = V.new_zeros(V.shape[1], A.shape[1])
    wide = V.new_empty(min(BLOCK, len(A)), A.shape[1])
    for block, rows in zip(A.split(BLOCK), V.split(BLOCK), strict=True):
        result.addmm_(rows.T, wide[: len(block)].copy_(block))
    return result.T
