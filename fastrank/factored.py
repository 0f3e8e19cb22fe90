"""Spectra of gradients from their two factors, which have far fewer rows than the gradient has.

The gradient of a linear layer's weight is `P = G^T X`, X [n, in] its inputs and G [n, out] the gradients of its
outputs, n samples; of a convolution with its patches for X. The squares of P's singular values are the eigenvalues of
`L^T (X X^T) L` where `L L^T = G G^T`, all n x n. What is in memory differs from P, by rounding and by whatever else
may have happened to it (clipping, a second backward): a multiple of P is fitted to it, and the distance from that is
bounded with random vectors (Halko, Martinsson & Tropp 2011, lemma 4.1), so nothing is taken on trust.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrank.carried import SMALLEST_SIDE
from fastrank.kernels.rsvd import products_many, test_matrix
from fastrank.precision import one_thread
from fastrank.ranks import rank_counts
from fastrank.small_grams import U64, SmallGram, errors, small_grams
from fastrank.spectra import Spectrum, of_grams

#: Random vectors that probe what the factors lack. Lemma 4.1's factor: the bound fails with probability
#: FACTOR ** -PROBES, one in 10^10.
PROBES = 12
FACTOR = 10 ** (10 / PROBES)


def pays(rows: int, n: int, d: int) -> bool:
    """Whether factors of `rows` rows beat the Gram matrix of the gradient [n, d] itself."""
    return min(n, d) >= SMALLEST_SIDE and 0 < 2 * rows <= min(n, d)


def factored_spectra(jobs: list[tuple[Tensor, Tensor, Tensor]], seed: int, stream: int) -> list[Spectrum | None]:
    """Spectra of matrices A [n, d] that should be multiples of G^T X, from G [r, n] and X [r, d], r < min(n, d).

    None where that does not settle the default rank: float64, what is not finite, or what G and X do not explain.
    Bounds hold with probability 1 - 1e-10 over the draws (seed, stream), which must not depend on the matrices.
    """
    found: list[Spectrum | None] = [None] * len(jobs)
    fits = [i for i, job in enumerate(jobs) if torch.float64 not in {matrix.dtype for matrix in job}]
    if not fits:
        return found
    grams = small_grams([Y for i in fits for Y in jobs[i][1:]])
    products = _of_products(list(zip(grams[::2], grams[1::2], strict=True)))
    sound = {i: product for i, product in zip(fits, products, strict=True) if product is not None}
    spectra = dict(zip(sound, of_grams([product.gram for product in sound.values()]), strict=True))
    rests = _rests([jobs[i] for i in sound], [product.norm for product in sound.values()], seed, stream)
    open_ = {}
    for (i, product), rest in zip(spectra.items(), rests, strict=True):
        found[i] = _with_rest(jobs[i][0], product, rest.multiple, _largest(rest.products) + rest.rounding)
        if found[i] is None and not product.reason and bool(rest.multiple.isfinite()):
            open_[i] = rest
    # Rounding has its norm spread over all directions: a product with R shows far more than ||R||_2, of R R^T R the
    # cube root does not (512 x 512: 19 times less).
    again = _applied([jobs[i] for i in open_], list(open_.values()), [rest.products for rest in open_.values()], True)
    again = _applied([jobs[i] for i in open_], list(open_.values()), again, False)
    for (i, rest), W in zip(open_.items(), again, strict=True):
        found[i] = _with_rest(jobs[i][0], spectra[i], rest.multiple, _largest(W) ** (1 / 3) + rest.rounding)
    return found


@dataclass(frozen=True)
class _Product:
    """P = G^T X: a matrix whose eigenvalues are the squares of its singular values, and ||G||_F ||X||_F."""

    gram: SmallGram
    norm: Tensor


def _of_products(pairs: list[tuple[SmallGram, SmallGram]]) -> list[_Product | None]:
    """Of each pair g = G G^T, K = X X^T (both halves) `L^T K L` [r, r] with L L^T = g, whose eigenvalues are the
    squares of the singular values of G^T X; None where g or K is not finite.

    With exact g and K they are those of `K^(1/2) g K^(1/2)`: an error E of g moves them by at most ||E|| ||K||, one of
    K by its norm times ||g|| (Weyl).
    """
    orders: dict[int, list[int]] = {}
    for i, (g, _) in enumerate(pairs):
        orders.setdefault(len(g.G), []).append(i)
    found: list[_Product | None] = [None] * len(pairs)
    for r, here in orders.items():
        sides = [[pairs[i][side] for i in here] for side in range(2)]
        g, K = (torch.stack([gram.G for gram in side]) for side in sides)
        size, norm = (x.diagonal(dim1=1, dim2=2).sum(1) for x in (g, K))  # at least the Frobenius norms
        of_g, of_K = errors(sides[0], size), errors(sides[1], norm)
        # Cholesky of a Gram matrix of lower rank: raised by more than it rounds.
        shift = 2 * (of_g + (r + 2) * U64 * size)
        g.diagonal(dim1=1, dim2=2).add_(shift[:, None])
        with one_thread():
            L, failed = torch.linalg.cholesky_ex(g)
        S = L.mT @ (K @ L)
        raised = size + r * shift
        # |L L^T - g| <= gamma_{r+1} |L| |L|^T (Higham 2002, theorem 10.3); two products of r terms each.
        of_g, of_S = of_g + shift + 2 * (r + 1) * U64 * raised, 3 * (r + 1) * U64 * raised * norm
        error = (of_g * norm + (raised + of_g) * of_K + of_S) * (1 + 16 * U64)
        sound = ((failed == 0) & norm.isfinite()).tolist()
        for i, fine, *own in zip(here, sound, S, error, torch.zeros_like(error), (size * norm).sqrt(), strict=True):
            product, e, moved, of_factors = own
            if fine:
                n, d = (side.d for side in pairs[i])
                found[i] = _Product(SmallGram(product, n, d, torch.float32, False, e, moved), of_factors)
    return found


@dataclass(frozen=True)
class _Rest:
    """R = A - multiple G^T X: its products with the probes, and how much those round."""

    multiple: Tensor
    products: Tensor
    rounding: Tensor


def _rests(
    jobs: list[tuple[Tensor, Tensor, Tensor]], norms: list[Tensor], seed: int, stream: int
) -> list[_Rest]:  # fmt: skip
    A, G, X = ([job[i] for job in jobs] for i in range(3))
    # Layers of one width share what is drawn.
    widths = {(a.shape[1], a.device) for a in A}
    drawn = {(d, on): test_matrix(d, 1 + PROBES, seed, 1 + stream, device=on).double() for d, on in widths}
    V = [drawn[a.shape[1], a.device] for a in A]
    rests = []
    for a, norm, mine, theirs in zip(A, norms, products_many(A, V), _explained(G, X, V), strict=True):
        # The first vector is for the multiple alone, so that the others know nothing of the difference they probe.
        multiple = (mine[:, 0] @ theirs[:, 0]) / theirs[:, 0].square().sum()
        rounding = 4 * max(a.shape) * U64 * multiple.abs() * norm
        rests.append(_Rest(multiple, (mine - multiple * theirs)[:, 1:], rounding))
    return rests


def _applied(
    jobs: list[tuple[Tensor, Tensor, Tensor]], rests: list[_Rest], V: list[Tensor], transposed: bool
) -> list[Tensor]:
    """R V, or R^T V."""
    A, G, X = ([job[i] for job in jobs] for i in range(3))
    mine = products_many(A, V, transposed)
    theirs = _explained(X, G, V) if transposed else _explained(G, X, V)
    return [m - rest.multiple * t for m, t, rest in zip(mine, theirs, rests, strict=True)]


def _explained(G: list[Tensor], X: list[Tensor], V: list[Tensor]) -> list[Tensor]:
    """G^T X V."""
    return products_many(G, products_many(X, V), transposed=True)


def _largest(products: Tensor) -> Tensor:
    """A bound on the 2-norm of a matrix from its products with the probes (lemma 4.1)."""
    return FACTOR * math.sqrt(2 / math.pi) * products.norm(dim=0).max()


def _with_rest(A: Tensor, product: Spectrum, multiple: Tensor, outside: Tensor) -> Spectrum | None:
    """A is `multiple` times the product, and something of 2-norm `outside` at most."""
    if product.reason or not bool(outside.isfinite()):
        return None
    n, d = A.shape
    beyond = product.sigma.new_zeros(min(n, d) - len(product.sigma))
    sigma = multiple.abs() * torch.cat([product.sigma, beyond])
    bound = multiple.abs() * torch.cat([product.bound, beyond]) + outside
    found = Spectrum(sigma, bound, outside, n, d, A.dtype, False, "factors")
    _, lo, hi = rank_counts(found)
    return found if bool(lo == hi) else None
