"""Splits as loaders for `fastrank.evaluate`, and out-of-distribution sets by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fastrank.errors import InputError
from fastrank.train.config import TrainConfig
from fastrank.train.data import Data, has_splits, load_data, load_whole
from fastrank.train.splits import Split

BATCH = 512


@dataclass(frozen=True)
class Loader:
    """A split's samples in order, not augmented, as often as it is gone through; images alone without `labelled`.

    limit: a seeded choice of so many. (The first so many of a tree would be those of its first classes.)
    """

    dataset: Split
    workers: int = 0
    limit: int | None = None
    labelled: bool = True

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        batches = self.dataset.plain_batches(BATCH, self.limit, self.workers)
        return batches if self.labelled else ((images,) for images, _ in batches)


def load_ood(
    config: TrainConfig, names: Sequence[str], data: Data, workers: int = 0, limit: int | None = None
) -> dict[str, Loader | tuple[Loader, Loader]]:
    """name -> loaders as of `fastrank.evaluate(ood=...)`, images as a network trained by `config` on `data` sees them.

    names: as of `fastrank train --data`; a folder may also hold one set without splits, in folders of classes or not.

    Raises:
        InputError: an unknown set, or images of other channels than the network's.
    """
    return {name: _load(config, name, data, workers, limit) for name in names}


def check_ood(names: Sequence[str]) -> None:
    """InputError for a folder that is not there: before a training, not after it."""
    for name in names:
        kind, _, path = name.partition(":")
        if kind == "folder" and not Path(path).expanduser().is_dir():
            raise InputError("ood", "a folder of images, or of splits of them", f"{path}, which does not exist")


def _load(
    config: TrainConfig, name: str, data: Data, workers: int, limit: int | None
) -> Loader | tuple[Loader, Loader]:
    check_ood([name])
    seen = replace(config, data=name, image_size=data.image_size, class_balance=1.0)
    root = Path(name.removeprefix("folder:")).expanduser()
    if name.startswith("folder:") and not has_splits(root):
        channels = 3
        split, classes = load_whole(seen, root)
        found = Loader(split, workers, limit, labelled=classes > 1)
    else:
        other = load_data(seen, seen_by=config.data)
        channels = other.channels
        found = Loader(other.train, workers, limit), Loader(other.test, workers, limit)
    if channels != data.channels:
        raise InputError("ood", f"images of {data.channels} channels", f"{name}, which has {channels}")
    return found
