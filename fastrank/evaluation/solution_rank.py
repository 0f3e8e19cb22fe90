"""Solution rank: the numerical rank of all logits of a data set, before and after the softmax ([U] sec. 2.1, A.5)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.evaluation.one_pass import Batch, Observer
from fastrank.gram import GramState
from fastrank.ranks import estimate_rank
from fastrank.spectra import Spectrum


@dataclass(frozen=True)
class SetRank:
    """Numerical rank of a matrix [samples, C] with its interval and the whole rank-versus-tolerance curve.

    rank, lo, hi, tol, rtol, definition, reason: as of `fastrank.RankEstimate`. sigma: [C] singular values, descending;
    at a tolerance of sigma[i] (absolute) the rank is at most i. norm: Frobenius norm.
    """

    rank: float
    lo: int
    hi: int
    tol: float
    rtol: float
    definition: str
    reason: str
    samples: int
    norm: float
    sigma: tuple[float, ...]

    def __int__(self) -> int:
        if self.reason:
            raise ValueError(f"the rank is not a number: {self.reason}")
        return int(self.rank)

    __index__ = __int__

    def at(self, rtol: float) -> int:
        """The count of singular values above `rtol` times the largest: a point of the curve."""
        return sum(value > rtol * self.sigma[0] for value in self.sigma)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sigma": list(self.sigma)}


@dataclass(frozen=True)
class SolutionRank:
    """What [U] reads from the logits M [samples, C] of a data set.

    Attributes:
        before, after: rank of M, and of softmax(M / T); `rank`, `lo`, `hi`, `tol`, `definition` are those of `before`.
        norm, norm_over_T: Frobenius norm ||M||, and ||M|| / T: what the softmax sees.
        accuracy: share of labelled samples whose largest logit is the label's; NaN without labels.
        T: the temperature.
        class_gap, class_gap_bound: sigma_1 - sigma_C of the square matrix of mean outputs of the softmax, one row a
            class, and the bound that Proposition 3.1 of [U] sets on it; NaN where a class is missing.
    """

    before: SetRank
    after: SetRank
    T: float
    accuracy: float
    class_gap: float
    class_gap_bound: float

    @property
    def rank(self) -> float:
        return self.before.rank

    @property
    def lo(self) -> int:
        return self.before.lo

    @property
    def hi(self) -> int:
        return self.before.hi

    @property
    def norm(self) -> float:
        return self.before.norm

    @property
    def norm_over_T(self) -> float:
        return self.before.norm / self.T

    def __int__(self) -> int:
        return int(self.before)

    __index__ = __int__

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.before.to_dict(),
            "norm_over_T": self.norm_over_T,
            "T": self.T,
            "accuracy": self.accuracy,
            "after_softmax": self.after.to_dict(),
            "class_gap": self.class_gap,
            "class_gap_bound": self.class_gap_bound,
        }


class LogitsState(Observer):
    """Gram matrices in float64 of the logits and of softmax(logits / T); counts of right answers."""

    def __init__(self, classes: int, T: float, device: torch.device) -> None:
        if not (isinstance(T, int | float) and 0 < T < math.inf):
            raise InputError("T", "a finite number > 0", repr(T))
        self.T, self.classes = float(T), classes
        self.logits, self.softmax = (GramState(classes, device=device) for _ in range(2))
        zeros = torch.zeros(classes, dtype=torch.float64, device=device)
        self._right, self._seen = zeros.new_zeros(()), zeros.new_zeros(())
        self._class_sums, self._counts = zeros.new_zeros(classes, classes), zeros
        self._labels: Tensor | None = None

    def begin(self, batch: Batch) -> None:
        self._labels = batch.labels

    def end(self, features: Tensor | None, logits: Tensor) -> None:
        if logits.shape[1] != self.classes:
            raise InputError("model", f"logits [n, {self.classes}] for every batch", f"shape {tuple(logits.shape)}")
        self.logits.update(logits)
        # Of float32 at least: 16-bit probabilities would round away what the rank is about.
        z = logits.double() if logits.dtype == torch.float64 else logits.float()
        probabilities = ((z - z.amax(1, keepdim=True)) / self.T).softmax(1)
        self.softmax.update(probabilities)
        if self._labels is not None:
            self._right += (logits.argmax(1) == self._labels).sum()
            self._seen += len(logits)
            self._class_sums.index_add_(0, self._labels, probabilities.double())
            self._counts.index_add_(0, self._labels, torch.ones_like(self._labels, dtype=torch.float64))

    def all_reduce(self) -> None:
        for state in (self.logits, self.softmax):
            state.all_reduce()
        for tensor in (self._right, self._seen, self._class_sums, self._counts):
            torch.distributed.all_reduce(tensor)

    def result(self) -> SolutionRank:
        gap = bound = math.nan
        if bool((self._counts > 0).all()):
            gap, bound = softmax_gap(self._class_sums / self._counts[:, None])
        accuracy = float(self._right / self._seen) if self._seen > 0 else math.nan
        before, after = (set_rank(state.spectrum()) for state in (self.logits, self.softmax))
        return SolutionRank(before, after, self.T, accuracy, gap, bound)


def set_rank(s: Spectrum) -> SetRank:
    """The rank that a spectrum supports, at the default tolerance; its interval is as wide as the spectrum's bound."""
    r = estimate_rank(s)
    sigma = s.sigma.cpu()
    return SetRank(
        rank=r.rank, lo=r.lo, hi=r.hi, tol=r.tol, rtol=r.rtol, definition=r.definition, reason=r.reason, samples=s.n,
        norm=float(sigma.norm()), sigma=tuple(sigma.tolist()),
    )  # fmt: skip


def softmax_gap(S: Tensor) -> tuple[float, float]:
    """(sigma_1 - sigma_m of S, and its bound sqrt(1 + r) - sqrt(max(1/k - r, 0))): Proposition 3.1 of [U].

    S: [m, k], every row a probability vector (m = k in the proposition, whose vectors are columns; the same argument
    holds for m <= k). r is the largest sum over the other rows of inner products with one row. NaN for non-finite S.

    Raises:
        InputError: more rows than columns.
    """
    S = S.double()
    m, k = S.shape
    if m > k:
        raise InputError("S", "at most as many rows as columns", f"shape {tuple(S.shape)}")
    if not bool(S.isfinite().all()):
        return math.nan, math.nan
    gram = S @ S.T
    r = float((gram.sum(1) - gram.diagonal()).max())
    sigma = torch.linalg.svdvals(S)
    return float(sigma[0] - sigma[-1]), math.sqrt(1 + r) - math.sqrt(max(1 / k - r, 0.0))
