"""Scatter: what principal directions, ridge and NC1 need of a stream of feature rows, on the smaller of its sides."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastrank.gram import GramState


class Rows(NamedTuple):
    """centred: [n, d] float64, rows minus their mean. labels: [n] int64."""

    centred: Tensor
    labels: Tensor


class Scatter:
    """Labelled rows [n, d] themselves while they are fewer than the features, and their Gram matrix from then on.

    Either way it holds at most d x d numbers. The eigenproblem of n < d rows has at most n eigenvalues that are not 0,
    so it is solved as one of n x n: 50 rows of 4096 features in milliseconds, where d x d takes 20 s on one core.
    """

    def __init__(self, d: int, device: torch.device) -> None:
        self.d, self._device = d, device
        self._few: list[tuple[Tensor, Tensor]] | None = []
        self._gram: GramState | None = None
        self._n = 0

    @property
    def n(self) -> int:
        return self._n

    def update(self, X: Tensor, labels: Tensor) -> None:
        """X [n, d] floating, labels [n] int64."""
        if not len(X):
            return
        self._n += len(X)
        if self._few is None:
            self._gram.update(X)
            return
        # Kept beyond the batch, whose memory the model may write to again.
        self._few.append((X.clone(), labels.clone()))
        if self._n >= self.d:
            self._fold()

    def all_reduce(self) -> None:
        """Makes this state that of all processes together."""
        sizes: list[tuple[int, bool]] = [(0, False)] * dist.get_world_size()
        dist.all_gather_object(sizes, (self._n, self._few is None))
        total = sum(n for n, _ in sizes)
        if total >= self.d or any(folded for _, folded in sizes):
            self._fold()
            self._gram.all_reduce()
        else:
            parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in sizes]
            dist.all_gather_object(parts, [(X.cpu(), y.cpu()) for X, y in self._few])
            self._few = [(X.to(self._device), y.to(self._device)) for part in parts for X, y in part]
        self._n = total

    @property
    def mean(self) -> Tensor:
        """[d] float64."""
        if self._few is None:
            return self._gram.mean
        return self._joined()[0].mean(0)

    def rows(self) -> Rows | None:
        """The rows, where they are fewer than the features."""
        if self._few is None:
            return None
        X, labels = self._joined()
        return Rows(X - X.mean(0), labels)

    def matrix(self) -> Tensor:
        """[d, d] float64: sum (x - mean)(x - mean)^T."""
        if self._few is not None:
            X = self.rows().centred
            return X.T @ X
        return self._gram.gram(centered=True)

    def _joined(self) -> tuple[Tensor, Tensor]:
        if not self._few:
            empty = torch.empty(0, self.d, dtype=torch.float64, device=self._device)
            return empty, empty.new_empty(0, dtype=torch.int64)
        X, labels = zip(*self._few, strict=True)
        return torch.cat(X).double(), torch.cat(labels)

    def _fold(self) -> None:
        if self._few is None:
            return
        self._gram = GramState(self.d, device=self._device)
        for X, _ in self._few:
            self._gram.update(X)
        self._few = None
