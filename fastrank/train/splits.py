"""A split of a data set: batches whose content and order depend on (seed, epoch) alone, from any batch on.

So a run that is interrupted and resumed sees exactly what an uninterrupted one sees, with any number of workers where
the images are addressed by index. Neither order nor augmentation draws on the global generators.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fastrank.errors import InputError
from fastrank.train.augment import Transform

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class IndexedSplit:
    """`source[i]` is (PIL image, label) for i in `indices`.

    augment: the training transform, None for the plain one. tensors: all images of `indices` after the plain transform
    and their labels, where they fit in memory.
    """

    source: Any
    indices: Sequence[int]
    plain: Transform
    augment: Transform | None
    seed: int
    tensors: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def train_batches(self, epoch: int, batch_size: int, start: int = 0, workers: int = 0) -> Batches:
        """One epoch in random order from batch number `start` on; a last incomplete batch is left out.

        (Batch normalisation of a handful of samples would disturb both the training and what is measured.)
        """
        order = torch.randperm(len(self), generator=_generator(self.seed, epoch)).tolist()
        count = steps_per_epoch(self, batch_size)
        batches = [order[k * batch_size : (k + 1) * batch_size] for k in range(start, count)]
        return self._load(batches, self.augment, epoch, workers)

    def plain_batches(self, batch_size: int, limit: int | None = None, workers: int = 0) -> Batches:
        """Every sample once (a seeded choice of `limit` of them where there are more), not augmented."""
        order = range(len(self))
        if limit is not None and limit < len(self):
            order = sorted(torch.randperm(len(self), generator=_generator(0, 0))[:limit].tolist())
        batches = [list(order[k : k + batch_size]) for k in range(0, len(order), batch_size)]
        return self._load(batches, None, 0, workers)

    def _load(self, batches: list[list[int]], augment: Transform | None, epoch: int, workers: int) -> Batches:
        if augment is None and self.tensors is not None:
            return ((self.tensors[0][batch], self.tensors[1][batch]) for batch in batches)
        reader = _Indexed(self, augment or self.plain, epoch)
        # A generator of its own keeps the loader from drawing its workers' seed from the global one.
        return iter(DataLoader(reader, batch_sampler=batches, num_workers=workers, generator=torch.Generator()))


@dataclass(frozen=True)
class StreamedSplit:
    """A WebDataset: samples come in the order of timm's reader, whose shuffling depends on (seed, epoch, workers).

    open: (shuffled, seed) -> a fresh timm dataset of (PIL image, label); its shuffling must not outlive an epoch.
    """

    open: Callable[[bool, int], Any]
    size: int
    plain: Transform
    augment: Transform | None
    seed: int

    def __len__(self) -> int:
        return self.size

    def train_batches(self, epoch: int, batch_size: int, start: int = 0, workers: int = 0) -> Batches:
        """As `IndexedSplit.train_batches`; the batches before `start` are read and dropped."""
        count = steps_per_epoch(self, batch_size)
        dataset = self.open(True, _mix(self.seed, epoch, 0) % 2**32)
        return islice(self._load(dataset, self.augment or self.plain, epoch, batch_size, workers), start, count)

    def plain_batches(self, batch_size: int, limit: int | None = None, workers: int = 0) -> Batches:
        """Every sample once in file order, or the first `limit` of them (to whole batches), not augmented."""
        batches = self._load(self.open(False, 0), self.plain, 0, batch_size, workers)
        return batches if limit is None else islice(batches, -(-limit // batch_size))

    def _load(self, dataset: Any, transform: Transform, epoch: int, batch_size: int, workers: int) -> Batches:
        reader = _Streamed(dataset, transform, self.seed, epoch)
        generator = _generator(self.seed, epoch)
        return iter(DataLoader(reader, batch_size=batch_size, num_workers=workers, generator=generator))


Split = IndexedSplit | StreamedSplit


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Whole batches of an epoch; InputError where there is none."""
    if batch_size > len(split):
        raise InputError("batch_size", f"at most the {len(split)} training samples", batch_size)
    return len(split) // batch_size


class _Indexed(Dataset):
    def __init__(self, split: IndexedSplit, transform: Transform, epoch: int) -> None:
        self.split, self.transform, self.epoch = split, transform, epoch

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        index = self.split.indices[position]
        image, label = self.split.source[index]
        with _seeded(self.split.seed, self.epoch, index):
            return self.transform(image), int(label)


class _Streamed(IterableDataset):
    def __init__(self, dataset: Any, transform: Transform, seed: int, epoch: int) -> None:
        self.dataset, self.transform, self.seed, self.epoch = dataset, transform, seed, epoch

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = torch.utils.data.get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        for number, (image, label) in enumerate(self.dataset):
            with _seeded(self.seed, self.epoch, first + stride * number):
                yield self.transform(image), int(label)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(seed, epoch, 2**63))


def _mix(seed: int, epoch: int, index: int) -> int:
    """63 well-mixed bits of the three counters."""
    return int(np.random.Philox(key=[seed, epoch], counter=[0, index, 0, 0]).random_raw() >> 1)


@contextmanager
def _seeded(seed: int, epoch: int, index: int):
    """Python's and torch's global generators as this sample's own, and put back afterwards."""
    mixed, state = _mix(seed, epoch, index), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mixed)
        random.seed(mixed)
        try:
            yield
        finally:
            random.setstate(state)
