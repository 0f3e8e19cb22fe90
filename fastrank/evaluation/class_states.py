"""ClassMoments: sums and squares of features by class, additive over batches, processes and data sets."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

#: Rows converted to float64 at a time.
ROWS = 1024


class ClassMoments:
    """Counts n_c, sums and sums of squared norms of x - shift by class, in float64; memory C x d.

    The shift is the mean of the first batch: what is subtracted later on is then small.
    """

    def __init__(self, classes: int, d: int, device: torch.device) -> None:
        zeros = torch.zeros(classes, d, dtype=torch.float64, device=device)
        self.counts = zeros.new_zeros(classes)
        self._sums, self._squares, self._shift = zeros, zeros.new_zeros(classes), zeros.new_zeros(d)
        self._begun = False

    def update(self, X: Tensor, labels: Tensor) -> None:
        """X [n, d], labels [n] int64 in 0 .. C-1; more classes than so far are made room for."""
        if not len(X):
            return
        if not self._begun:
            mean = X.double().mean(0)
            self._shift = mean.where(mean.isfinite(), 0.0)
            self._begun = True
        for rows, label in zip(X.split(ROWS), labels.split(ROWS), strict=True):
            Y = rows - self._shift
            self._sums.index_add_(0, label, Y)
            self._squares.index_add_(0, label, torch.linalg.vector_norm(Y, dim=1).square())
            self.counts.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))

    def grow(self, classes: int) -> None:
        """Makes room for at least `classes`."""
        if (more := classes - len(self.counts)) > 0:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
            self._squares = torch.cat([self._squares, self._squares.new_zeros(more)])
            self._sums = torch.cat([self._sums, self._sums.new_zeros(more, self._sums.shape[1])])

    def all_reduce(self) -> None:
        """Makes this state that of all processes together."""
        size = torch.tensor(len(self.counts), device=self.counts.device)
        dist.all_reduce(size, dist.ReduceOp.MAX)
        self.grow(int(size))
        shift = self._shift.clone()
        begun = torch.tensor(float(self._begun), device=shift.device, dtype=torch.float64)
        dist.all_reduce(shift.mul_(begun))
        dist.all_reduce(begun)
        self._move(shift / begun.clamp_min(1))
        for tensor in (self.counts, self._sums, self._squares):
            dist.all_reduce(tensor)
        self._begun = bool(begun > 0)

    def _move(self, shift: Tensor) -> None:
        delta = self._shift - shift
        self._squares += 2 * self._sums @ delta + self.counts * delta.square().sum()
        self._sums += self.counts[:, None] * delta
        self._shift = shift

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def present(self) -> Tensor:
        """[C'] int64: the classes with samples."""
        return self.counts.nonzero().flatten()

    def means(self) -> Tensor:
        """[C', d]: of the classes present."""
        at = self.present
        return self._shift + self._sums[at] / self.counts[at, None]

    def mean(self) -> Tensor:
        """[d]: of all samples."""
        return self._shift + self._sums.sum(0) / self.counts.sum()

    def sums(self) -> Tensor:
        """[C, d]: of the samples as they are."""
        return self._sums + self.counts[:, None] * self._shift

    def scatter_between(self) -> Tensor:
        """[C', d]: sqrt(n_c) (mu_c - mean of all samples): its Gram matrix is what the classes add to the scatter."""
        at = self.present
        about = self._sums[at] / self.counts[at, None] - self._sums.sum(0) / self.counts.sum()
        return self.counts[at, None].sqrt() * about

    def variances(self) -> Tensor:
        """[C']: mean of ||x - mu_c||^2 over the samples of each class present."""
        at = self.present
        means = self._sums[at] / self.counts[at, None]
        return (self._squares[at] / self.counts[at] - means.square().sum(1)).clamp_min(0)
