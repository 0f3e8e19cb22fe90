"""The smaller Gram matrices of many matrices, in float64 and in grouped calls, each with a bound on its error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from fastrank.kernels.gram import depth, digits, gram_dual_many

#: Unit roundoff of float64.
U64 = torch.finfo(torch.float64).eps / 2

#: Numbers of the Gram matrices that one grouped call holds at once: 48 MiB, those of all gradients of a ResNet-50.
#: At 32 MiB a second call took what the first one left, and 5 % longer: threads wait for the largest of each.
GROUP = 3 << 21

#: Smaller and larger sides from which on rounded numbers are multiplied faster than float64's are.
ROUNDED_SIDE, ROUNDED_ROWS = 96, 256


@dataclass(frozen=True)
class SmallGram:
    """The smaller Gram matrix of a matrix [n, d]; its lower triangle counts.

    Attributes:
        error: 0-d, a bound on the 2-norm of its error as that of a matrix which differs from the one asked for ...
        moved: 0-d, ... by at most this in Frobenius norm: singular values move by as much, not their squares.
    """

    G: Tensor
    n: int
    d: int
    dtype: torch.dtype
    centered: bool
    error: Tensor
    moved: Tensor

    @property
    def zero_bound(self) -> Tensor:
        """How large a singular value of exactly zero can look."""
        return self.error.sqrt() + self.moved


class _Product(SmallGram):
    """That of X, just multiplied. Its error is worked out where somebody asks, for many at once where they do
    (`errors`): in a hook, where nothing is in the caches, a dozen small operations take as long as a small product."""

    def __init__(
        self, G: Tensor, X: Tensor, centered: bool, multiplied: torch.dtype, mode: str, shift_error: float,
        changed: Tensor | None,
    ) -> None:  # fmt: skip
        """multiplied: in what type, `mode`: how; shift_error: of the column means; changed: 0-d, the square of what
        rounding changed, or None."""
        n, d = X.shape
        self.__dict__.update(G=G, n=n, d=d, dtype=X.dtype, centered=centered)
        self.__dict__.update(_multiplied=multiplied, _mode=mode, _shift_error=shift_error, changed=changed)

    @property
    def roundings(self) -> tuple[float, float, float]:
        """Of the products and their sums, relative to the trace; of numbers too small; of the column means."""
        return *_roundings(self.n, self.d, self._multiplied, self._mode, self.G.device.type), self._shift_error

    @cached_property
    def error(self) -> Tensor:
        return errors([self], self.G.diagonal().sum()[None])[0]

    @cached_property
    def moved(self) -> Tensor:
        return moves([self], self.G.device)[0]


def errors(grams: Sequence[SmallGram], traces: Tensor) -> Tensor:
    """[m]: `error` of each. traces: [m], of their matrices, or more."""
    if not all(isinstance(g, _Product) for g in grams):
        return torch.stack([g.error for g in grams])
    roundings = torch.tensor([g.roundings for g in grams], dtype=torch.float64, device="cpu")
    relative, underflow, shift = roundings.to(traces.device, non_blocking=True).unbind(1)
    # The trace itself carries the same relative error.
    traces = traces / (1 - relative)
    return relative * traces + underflow + shift * (2 * traces.sqrt() + shift)


def moves(grams: Sequence[SmallGram], device: torch.device) -> Tensor:
    """[m]: `moved` of each."""
    if not all(isinstance(g, _Product) for g in grams):
        return torch.stack([g.moved for g in grams])
    changed = [g.changed for g in grams]
    if all(square is None for square in changed):
        return torch.zeros(len(grams), dtype=torch.float64, device=device)
    none = torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([none if square is None else square for square in changed]).sqrt()


def small_gram_groups(
    matrices: list[Tensor], indices: list[int], centered: bool, rounded: bool = False
) -> Iterator[dict[int, SmallGram]]:
    """{index: Gram matrix} of the matrices asked for, a group for each grouped call.

    rounded: their numbers may be rounded to 24 bits where that is faster (`fastrank.kernels.gram.digits`).
    """
    group: list[int] = []
    size = 0
    for index in indices:
        k = min(matrices[index].shape)
        if group and (size + k * k > GROUP or matrices[index].device != matrices[group[0]].device):
            yield dict(zip(group, _small_grams([matrices[i] for i in group], centered, rounded), strict=True))
            group, size = [], 0
        group.append(index)
        size += k * k
    if group:
        yield dict(zip(group, _small_grams([matrices[i] for i in group], centered, rounded), strict=True))


def small_gram(X: Tensor, rounded: bool = False) -> SmallGram:
    """That of one matrix, which is not float64 (a Gram matrix would halve its digits)."""
    return small_grams([X], rounded)[0]


def small_grams(matrices: list[Tensor], rounded: bool = False) -> list[SmallGram]:
    """Those of many, in one call."""
    return _small_grams(matrices, False, rounded)


def _small_grams(matrices: list[Tensor], centered: bool, rounded: bool) -> list[SmallGram]:
    if rounded and not centered and matrices and digits(matrices[0].device):
        rough = {i for i, X in enumerate(matrices) if _pays_to_round(X)}
        parts = [[X for i, X in enumerate(matrices) if (i in rough) == here] for here in (True, False)]
        found = [iter(_of_one_mode(some, False, mode)) for some, mode in zip(parts, ("fast", "exact"), strict=True)]
        return [next(found[i not in rough]) for i in range(len(matrices))]
    return _of_one_mode(matrices, centered, "exact")


def _pays_to_round(X: Tensor) -> bool:
    return X.dtype != torch.float64 and min(X.shape) >= ROUNDED_SIDE and max(X.shape) >= ROUNDED_ROWS


def _of_one_mode(matrices: list[Tensor], centered: bool, mode: str) -> list[SmallGram]:
    """In mode "fast" the numbers are rounded."""
    if not matrices:
        return []
    data, shift_errors = matrices, [0.0] * len(matrices)
    if centered:
        data, shift_errors = map(list, zip(*map(centred, matrices), strict=True))
    sides = [X if X.shape[0] < X.shape[1] else X.mT for X in data]
    changed = data[0].new_zeros(len(data), dtype=torch.float64) if mode == "fast" else None
    grams = gram_dual_many(sides, mode, rounded=changed)
    squares = [None] * len(data) if changed is None else changed.unbind()
    return [
        _Product(G, X, centered, Y.dtype, mode, shift_error, square)
        for G, X, Y, shift_error, square in zip(grams, matrices, data, shift_errors, squares, strict=True)
    ]


@lru_cache(maxsize=1024)
def _roundings(n: int, d: int, dtype: torch.dtype, mode: str, device: str) -> tuple[float, float]:
    """(c, underflow) of ||E||_2 <= c ||X||_F^2 + underflow, E the error of the smaller Gram matrix of X [n, d]; proven
    in kernels/gram/bound.py."""
    roundings = depth(max(n, d), min(n, d), dtype, mode, device, rounded=mode == "fast")
    # Products of numbers of 32 bits and less are far inside float64's range: a matrix of zeros is known to be one.
    underflow = roundings.tiny * n * d if dtype == torch.float64 or roundings.fp32 else 0.0
    return roundings.factor(extra=1), underflow


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
