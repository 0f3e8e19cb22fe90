"""The smaller Gram matrices of many matrices, in float64 and in grouped calls, each with a bound on its error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrank.kernels.gram import depth, gram_accumulate_many_, gram_dual_many

#: Unit roundoff of float64.
U64 = torch.finfo(torch.float64).eps / 2

#: Numbers of the Gram matrices that one grouped call holds at once: 128 MiB. Enough for all layers of most networks.
GROUP = 1 << 24


@dataclass(frozen=True)
class SmallGram:
    """The smaller Gram matrix of a matrix [n, d] and a bound on the 2-norm of its error; its lower triangle counts."""

    G: Tensor
    n: int
    d: int
    dtype: torch.dtype
    centered: bool
    error: Tensor


def small_gram_groups(matrices: list[Tensor], indices: list[int], centered: bool) -> Iterator[dict[int, SmallGram]]:
    """{index: Gram matrix} of the matrices asked for, a group for each grouped call."""
    group: list[int] = []
    size = 0
    for index in indices:
        k = min(matrices[index].shape)
        if group and (size + k * k > GROUP or matrices[index].device != matrices[group[0]].device):
            yield dict(zip(group, _small_grams([matrices[i] for i in group], centered), strict=True))
            group, size = [], 0
        group.append(index)
        size += k * k
    if group:
        yield dict(zip(group, _small_grams([matrices[i] for i in group], centered), strict=True))


def small_gram(X: Tensor) -> SmallGram:
    """That of one matrix, which is not float64 (a Gram matrix would halve its digits)."""
    return small_grams([X])[0]


def small_grams(matrices: list[Tensor]) -> list[SmallGram]:
    """Those of many, in one call."""
    return _small_grams(matrices, centered=False)


def _small_grams(matrices: list[Tensor], centered: bool) -> list[SmallGram]:
    data, shift_errors = matrices, [0.0] * len(matrices)
    if centered:
        data, shift_errors = map(list, zip(*map(centred, matrices), strict=True))
    wide = [i for i, X in enumerate(data) if X.shape[0] < X.shape[1]]
    tall = [i for i, X in enumerate(data) if X.shape[0] >= X.shape[1]]
    G: dict[int, Tensor] = dict(zip(wide, gram_dual_many([data[i] for i in wide]), strict=True))
    G |= {i: data[i].new_zeros((data[i].shape[1],) * 2, dtype=torch.float64) for i in tall}
    totals = [G[i].new_zeros(len(G[i])) for i in tall]
    gram_accumulate_many_([G[i] for i in tall], totals, [data[i] for i in tall])
    results = []
    for i, X in enumerate(data):
        n, d = X.shape
        roundings = depth(max(n, d), min(n, d), X.dtype, "exact", X.device.type)
        # ||E||_2 <= c * ||X||_F^2, proven in kernels/gram/bound.py; the trace itself carries the same relative error.
        c = roundings.factor(extra=1)
        trace = G[i].diagonal().sum() / (1 - c)
        # Products of numbers of 32 bits and less are far inside float64's range: a matrix of zeros is known to be one.
        underflow = roundings.tiny * n * d if X.dtype == torch.float64 or roundings.fp32 else 0.0
        error = c * trace + underflow
        if shift_errors[i]:
            error = error + shift_errors[i] * (2 * trace.sqrt() + shift_errors[i])
        results.append(SmallGram(G[i], n, d, matrices[i].dtype, centered, error))
    return results


def centred(X: Tensor) -> tuple[Tensor, float]:
    """X without its column means, in float64, and a bound on the Frobenius norm of its error.

    A mean of n numbers errs by at most n u times their mean size, so its removal by n u ||X||_F. The second mean is one
    of what the first has left, mostly far smaller.
    """
    X = X.double()
    if not len(X):
        return X, 0.0
    Y = X - X.mean(0)
    return Y - Y.mean(0), U64 * (4 * float(X.norm()) + (len(X) + 6) * float(Y.norm()))
