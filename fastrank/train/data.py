"""Data sets by name: `digits` and `glyphs`, which need no network, and `folder:PATH`, what timm's readers know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.train import glyphs
from fastrank.train.augment import augmented_transform, plain_transform
from fastrank.train.config import TrainConfig
from fastrank.train.names import closest
from fastrank.train.splits import IndexedSplit, Split, StreamedSplit

NAMES = ("digits", *glyphs.STYLES, "folder:PATH")
GLYPHS_PER_CLASS, TEST_GLYPHS_PER_CLASS = 100, 20
#: Sub-folders or tar files that hold the two splits, in the order in which they are looked for.
SPLIT_NAMES = {"train": ("train", "training"), "test": ("val", "valid", "validation", "test", "eval")}
#: Means and standard deviations of the channels, as shares of 255; a tree's are ImageNet's, or 0.5 for augment = "vit".
DIGITS = ((0.305,), (0.376,))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Data:
    """What a run trains on and is evaluated on; images are float32 [n, channels, image_size, image_size]."""

    train: Split
    test: Split
    classes: int
    channels: int
    image_size: int


def load_data(config: TrainConfig, seen_by: str | None = None) -> Data:
    """The data that `config` names. Raises InputError for an unknown name or a path that holds no images.

    seen_by: the data set that a network was trained on, whose constants then normalise these images too.
    """
    if config.data == "digits":
        return _in_memory(config, *_digits(config.image_size or 32), *_constants(seen_by or "digits"))
    if config.data in glyphs.STYLES:
        size, per_class = config.image_size or 32, config.samples_per_class or GLYPHS_PER_CLASS
        count, test_count = (n * len(glyphs.CHARACTERS) for n in (per_class, TEST_GLYPHS_PER_CLASS))
        train, test = (_glyphs(config.data, *split, size) for split in (("train", count), ("test", test_count)))
        return _in_memory(config, train, test, *_constants(seen_by or "glyphs"))
    kind, separator, path = config.data.partition(":")
    if kind == "folder" and separator:
        return _folder(config, Path(path).expanduser())
    raise InputError("data", f"one of {', '.join(NAMES)}", repr(config.data), closest(config.data, NAMES))


def _constants(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a grey data set, by name; those of glyphs for any but digits."""
    return DIGITS if name == "digits" else ((glyphs.MEAN,), (glyphs.STD,))


@cache
def _glyphs(name: str, split: str, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    return glyphs.render(split, count, size, style=glyphs.STYLES[name])


@cache
def _digits(size: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's handwritten digits, scaled from 8 to `size` pixels; every fifth of a class is for testing."""
    from PIL import Image

    digits = require("sklearn.datasets", "data digits").load_digits()
    originals = (digits.images * (255 / 16)).round().astype(np.uint8)
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in originals]
    images, labels = np.stack([np.asarray(image) for image in resized]), digits.target.astype(np.int64)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[::5]] = True
    return (images[~test], labels[~test]), (images[test], labels[test])


class _Pictures:
    """uint8 [n, h, w] and labels as (PIL image, label) pairs."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.fromarray(self.images[index]), int(self.labels[index])


def _in_memory(config: TrainConfig, train: tuple, test: tuple, mean: tuple, std: tuple) -> Data:
    size = train[0].shape[-1]
    plain = plain_transform(size, mean, std, crop_pct=1.0)
    augment = None if config.augment == "none" else augmented_transform(config.augment, size, mean, std)

    def split(images: np.ndarray, labels: np.ndarray, indices: Sequence[int]) -> IndexedSplit:
        scaled = (images[indices].astype(np.float32) / 255 - np.float32(mean[0])) / np.float32(std[0])
        tensors = torch.from_numpy(scaled[:, None]), torch.from_numpy(labels[indices])
        return IndexedSplit(_Pictures(images, labels), indices, plain, augment, config.seed, tensors)

    chosen = _choose(train[1], config.samples_per_class, config.class_balance)
    return Data(split(*train, chosen), split(*test, np.arange(len(test[1]))), int(train[1].max()) + 1, 1, size)


def _choose(labels: np.ndarray, per_class: int | None, balance: float = 1.0) -> np.ndarray:
    """Indices of at most `per_class` samples of each class, the same for every seed of a run.

    balance: share that the last class keeps of these; classes before it keep geometrically more, the first all.
    """
    if per_class is None and balance == 1:
        return np.arange(len(labels))
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(labels))
    classes = np.unique(labels)
    chosen = []
    for share, label in zip(np.geomspace(1, balance, len(classes)), classes, strict=True):
        members = order[labels[order] == label][:per_class]
        chosen.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(chosen))


def _folder(config: TrainConfig, root: Path) -> Data:
    """ImageFolder trees, tar files (one a split, or a folder of one a class), and WebDatasets with timm's info.json."""
    layout = "train/ and val/ (or train.tar and val.tar), each with one folder of images per class"
    if not root.exists():
        raise InputError(
            "data",
            f"a folder that holds {layout}",
            f"{root}, which does not exist",
            "unpack the data set there, or give another path",
        )
    size, plain = _plain_tree(config)
    augment = None if config.augment == "none" else augmented_transform(config.augment, size, *_of_tree(config))
    if any((root / name).is_file() for name in ("info.json", "_info.json")):
        return _webdataset(config, root, size, plain, augment)
    paths = {split: _find_split(root, split, layout) for split in SPLIT_NAMES}
    train, test = (_reader(path) for path in paths.values())
    if _classes(train) != _classes(test):
        odd = sorted(set(_classes(train)) ^ set(_classes(test)))
        raise InputError("data", f"the same classes in {paths['train']} and {paths['test']}", f"{odd[:3]} in only one")
    if len(_classes(train)) < 2:
        raise InputError("data", f"at least two classes in {paths['train']}", sorted(_classes(train)))
    image_dataset = require("timm.data", "data").ImageDataset
    chosen = _choose(_labels(train), config.samples_per_class, config.class_balance)
    return Data(
        IndexedSplit(image_dataset(paths["train"], reader=train), chosen, plain, augment, config.seed),
        IndexedSplit(image_dataset(paths["test"], reader=test), range(len(test)), plain, None, config.seed),
        len(_classes(train)),
        3,
        size,
    )


def _plain_tree(config: TrainConfig) -> tuple[int, Any]:
    """(image size, transform without augmentation) of what is read from disk."""
    size = config.image_size or 224
    return size, plain_transform(size, *_of_tree(config), crop_pct=1.0 if config.augment in ("cifar", "vit") else 0.875)


def _of_tree(config: TrainConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return HALF if config.augment == "vit" else IMAGENET


def load_whole(config: TrainConfig, root: Path) -> tuple[IndexedSplit, int]:
    """(all images under `root`, number of class folders): a set without splits, as ImageNet-A, -O, -R and -Sketch are.

    Images that lie in no folder, or all in one, as those of iNaturalist, have no labels to speak of: then 1.
    """
    reader = _reader(root)
    images = require("timm.data", "data").ImageDataset(root, reader=reader)
    return IndexedSplit(images, range(len(reader)), _plain_tree(config)[1], None, config.seed), len(_classes(reader))


def has_splits(root: Path) -> bool:
    names = (f"{name}{ending}" for split in SPLIT_NAMES.values() for name in split for ending in ("", ".tar"))
    return any((root / name).exists() for name in (*names, "info.json", "_info.json"))


def _find_split(root: Path, split: str, layout: str) -> Path:
    candidates = [root / f"{name}{ending}" for name in SPLIT_NAMES[split] for ending in ("", ".tar")]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        looked = ", ".join(path.name for path in candidates)
        raise InputError("data", f"a folder that holds {layout}", f"{root} with none of {looked}")
    return found


def _reader(path: Path) -> Any:
    """timm's reader of one split: a tree, one tar file, or a folder of tar files."""
    readers = require("timm.data.readers.reader_factory", "data")
    try:
        if path.is_dir() and any(path.glob("*.tar")):
            return readers.ReaderImageInTar(str(path), cache_tarinfo=False)
        if path.suffix == ".tar":
            return readers.create_reader("", root=str(path), cache_tarinfo=False)
        return readers.create_reader("", root=str(path))
    except (RuntimeError, AssertionError, ValueError) as error:  # timm's ways to say that there is no image
        raise InputError("data", "images in one folder per class", f"{path} ({error})") from error


def _classes(reader: Any) -> dict[str, int]:
    return reader.class_to_idx if hasattr(reader, "class_to_idx") else reader.class_name_to_idx


def _labels(reader: Any) -> np.ndarray:
    return np.asarray(reader.targets if hasattr(reader, "targets") else [label for _, label in reader.samples])


def _webdataset(config: TrainConfig, root: Path, size: int, plain: Any, augment: Any) -> Data:
    """Shards that info.json lists (timm's format: splits, filenames, num_samples), with `num_classes` beside them."""
    require("webdataset", f"data folder:{root}")
    for name, all_samples in (("samples_per_class", None), ("class_balance", 1.0)):
        if (value := getattr(config, name)) != all_samples:
            raise InputError(name, f"{all_samples} for a WebDataset, which is read as a stream", value)
    file = next(path for name in ("_info.json", "info.json") if (path := root / name).is_file())
    try:
        info = json.loads(file.read_text())
        sizes = {name: int(split["num_samples"]) for name, split in info["splits"].items()}
        classes = int(info["num_classes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "data",
            f"{file} with num_classes and splits of num_samples, filenames, shard_lengths",
            f"{type(error).__name__}: {error}",
        ) from error
    create = require("timm.data", "data").create_dataset

    def split(kind: str) -> StreamedSplit:
        name = next((name for name in SPLIT_NAMES[kind] if name in sizes), None)
        if name is None:
            raise InputError("data", f"a split named {' or '.join(SPLIT_NAMES[kind])} in {file}", ", ".join(sizes))

        def open_split(shuffled: bool, seed: int) -> Any:
            return create("wds/", root=str(root), split=name, is_training=shuffled, batch_size=1, seed=seed)

        return StreamedSplit(open_split, sizes[name], plain, augment, config.seed)

    return Data(split("train"), split("test"), classes, 3, size)
