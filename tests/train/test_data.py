"""Data sets: contents, splits, order and augmentation as functions of (seed, epoch), trees on disk, mistakes."""

import io
import json
import random
import tarfile

import numpy as np
import pytest
import torch

from fastrank.errors import InputError
from fastrank.train import glyphs as glyphs_module
from fastrank.train.config import TrainConfig
from fastrank.train.data import DIGITS, load_data
from fastrank.train.ood import Loader, load_ood

pytest.importorskip("timm")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

CLASSES = ("cat", "dog", "elk")
PER_CLASS = 8


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train/ and val/ with three classes of eight 24 x 20 images, whose red channel is 40 + 80 * class."""
    root, rng = tmp_path_factory.mktemp("data") / "tree", np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(PER_CLASS):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                pixels[..., 0] = 40 + 80 * label
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def data(source, **settings):
    return load_data(TrainConfig(**{"data": str(source), "image_size": 16, **settings}))


def batches(split, epoch, start=0, workers=0, size=5):
    return list(split.train_batches(epoch, size, start, workers))


def same(left, right):
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)


def test_digits():
    digits = data("digits", image_size=None)
    images, labels = digits.train.tensors
    assert (digits.classes, digits.channels, digits.image_size) == (10, 1, 32)
    assert images.shape == (len(digits.train), 1, 32, 32) and images.dtype == torch.float32
    assert len(digits.train) + len(digits.test) == 1797
    assert set(labels.tolist()) == set(digits.test.tensors[1].tolist()) == set(range(10))
    assert abs(float(images.mean())) < 0.1  # the stated constants do normalise


def test_glyphs_come_in_balanced_classes():
    glyphs = data("glyphs", samples_per_class=2)
    assert glyphs.classes == 94 and len(glyphs.train) == 188
    assert glyphs.train.tensors[1].bincount().tolist() == [2] * 94


def test_order_and_augmentation_depend_on_seed_and_epoch_only():
    state, python_state = torch.get_rng_state(), random.getstate()
    first = data("digits", augment="cifar", samples_per_class=4, seed=1).train
    again = data("digits", augment="cifar", samples_per_class=4, seed=1).train
    other = data("digits", augment="cifar", samples_per_class=4, seed=2).train
    assert same(batches(first, 3), batches(again, 3))
    assert not same(batches(first, 3), batches(first, 4))
    assert not same(batches(first, 3), batches(other, 3))
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python_state


def test_an_epoch_resumed_at_a_batch_is_its_tail_with_any_number_of_workers(tree):
    split = data(f"folder:{tree}", augment="imagenet").train
    whole = batches(split, 1)
    assert len(whole) == 24 // 5  # the last incomplete batch is left out
    assert same(whole[2:], batches(split, 1, start=2, workers=2))


def test_augmentation_moves_pixels_and_plain_batches_do_not():
    split = data("digits", augment="cifar", samples_per_class=4).train
    assert same(split.plain_batches(7), split.plain_batches(7))
    plain = {tuple(image.flatten().tolist()) for image, _ in zip(split.tensors[0], split.tensors[1], strict=True)}
    moved = [tuple(image.flatten().tolist()) not in plain for images, _ in batches(split, 0) for image in images]
    assert sum(moved) > len(moved) / 2


def test_in_memory_images_equal_the_transform_of_their_pictures():
    split = data("digits", samples_per_class=2).train
    transformed = torch.stack([split.plain(split.source[int(index)][0]) for index in split.indices])
    # Both scale by 255 and normalise in float32: two roundings of values up to 3.
    torch.testing.assert_close(split.tensors[0], transformed, rtol=0, atol=1e-6)


def test_plain_batches_are_limited_by_a_fixed_choice():
    split = data("digits").test
    labels = torch.cat([labels for _, labels in split.plain_batches(16, limit=40)])
    assert len(labels) == 40 and len(labels.unique()) > 5
    assert torch.equal(labels, torch.cat([labels for _, labels in split.plain_batches(9, limit=40)]))


def test_image_folder(tree):
    folder = data(f"folder:{tree}")
    assert (folder.classes, folder.channels, len(folder.train), len(folder.test)) == (3, 3, 24, 24)
    for images, labels in folder.train.plain_batches(24):
        assert images.shape == (24, 3, 16, 16)
        red = (images[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255
        # One 8-bit rounding of a constant channel, and float32.
        torch.testing.assert_close(red, 40.0 + 80 * labels, rtol=0, atol=1.0)


def test_samples_per_class_limits_a_folder_evenly(tree):
    split = data(f"folder:{tree}", samples_per_class=3).train
    labels = torch.cat([labels for _, labels in split.plain_batches(9)])
    assert labels.bincount().tolist() == [3, 3, 3]


def test_a_limit_takes_of_every_class(tree):
    labels = torch.cat([labels for _, labels in Loader(data(f"folder:{tree}").train, limit=12)])
    assert len(labels) == 12 and set(labels.tolist()) == {0, 1, 2}


def test_unbalanced_classes_shrink_geometrically(tree):
    split = data(f"folder:{tree}", class_balance=0.25).train
    assert torch.cat([labels for _, labels in split.plain_batches(9)]).bincount().tolist() == [8, 4, 2]
    assert len(data(f"folder:{tree}", class_balance=0.25).test) == 24
    with pytest.raises(InputError, match="class_balance: expected a number in"):
        data("digits", class_balance=0.0)


def test_a_set_without_splits(tree, tmp_path):
    config = TrainConfig(data=f"folder:{tree}", image_size=16, class_balance=0.25)
    names = [f"folder:{tree / 'val'}", f"folder:{tree / 'val' / 'cat'}", f"folder:{tree}"]
    whole, alone, (train, _) = load_ood(config, names, load_data(config)).values()
    assert torch.cat([labels for _, labels in whole]).bincount().tolist() == [8, 8, 8]
    assert same([next(iter(whole))], [next(load_data(config).test.plain_batches(24))])
    ((images,),) = alone  # one folder: images without labels
    assert torch.equal(images, next(iter(whole))[0][:8]) and len(train.dataset) == 24
    with pytest.raises(InputError, match="ood: expected images of 3 channels, got digits, which has 1"):
        load_ood(config, ["digits"], load_data(config))
    with pytest.raises(InputError, match="ood: expected a folder of images"):
        load_ood(config, [f"folder:{tmp_path / 'none'}"], load_data(config))


def test_tar_files_hold_the_same_data(tree, tmp_path):
    whole, each = tmp_path / "whole", tmp_path / "each"
    for split in ("train", "val"):
        whole.mkdir(exist_ok=True)
        with tarfile.open(whole / f"{split}.tar", "w") as tar:
            tar.add(tree / split, ".")
        (each / split).mkdir(parents=True)
        for name in CLASSES:
            with tarfile.open(each / split / f"{name}.tar", "w") as tar:
                for file in (tree / split / name).iterdir():
                    tar.add(file, file.name)
    expected = next(data(f"folder:{tree}").test.plain_batches(24))
    for root in (whole, each):
        images, labels = next(data(f"folder:{root}").test.plain_batches(24))
        # The readers list the images of a split in another order.
        key, expected_key = ([(int(y), x.double().sum()) for x, y in zip(*b, strict=True)] for b in
                             ((images, labels), expected))  # fmt: skip
        assert sorted(key) == sorted(expected_key)


def test_webdataset(tree, tmp_path):
    pytest.importorskip("webdataset")
    info = {"num_classes": 3, "splits": {}}
    for split in ("train", "val"):
        shards = []
        for label, name in enumerate(CLASSES):
            shards.append(f"{split}-{label}.tar")
            with tarfile.open(tmp_path / shards[-1], "w") as tar:
                for number in range(PER_CLASS):
                    tar.add(tree / split / name / f"{number}.png", f"{label}{number}.png")
                    member = tarfile.TarInfo(f"{label}{number}.cls")
                    member.size = 1
                    tar.addfile(member, io.BytesIO(str(label).encode()))
        entry = {"name": split, "num_samples": 24, "filenames": shards, "shard_lengths": [PER_CLASS] * 3}
        info["splits"][split] = entry
    (tmp_path / "info.json").write_text(json.dumps(info))
    streamed = data(f"folder:{tmp_path}", augment="cifar")
    whole = batches(streamed.train, 1, size=6)
    assert torch.cat([labels for _, labels in whole]).bincount().tolist() == [8, 8, 8]
    assert same(whole[1:], batches(streamed.train, 1, start=1, size=6))
    assert not same(whole, batches(streamed.train, 2, size=6))
    assert same(
        [next(streamed.test.plain_batches(24))], [next(data(f"folder:{tree}", augment="cifar").test.plain_batches(24))]
    )
    (tmp_path / "info.json").write_text(json.dumps({"splits": info["splits"]}))
    with pytest.raises(InputError, match=r"^data: expected .*num_classes.* got KeyError"):
        data(f"folder:{tmp_path}")


@pytest.mark.parametrize("source", ["glyph", "digit", "folder", "tar:/x"])
def test_unknown_data_is_named(source):
    with pytest.raises(InputError, match=r"^data: expected one of digits, glyphs, glyphs-dejavu, .*folder:PATH, got"):
        data(source)


def test_missing_trees_say_what_was_looked_for(tree, tmp_path):
    with pytest.raises(InputError, match=r"^data: expected .*train/ and val/.* got .*nowhere, which does not exist"):
        data(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(InputError, match=r"with none of train, train.tar, training"):
        data(f"folder:{tree / 'train'}")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match=r"^data: expected images in one folder per class, got .*train"):
        data(f"folder:{tmp_path}")


def test_one_class_is_refused(tree, tmp_path):
    """So a tar of `./0.png`, in which timm's reader sees one class named ".", does not pass silently."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in CLASSES:
            with tarfile.open(tmp_path / split / f"{name}.tar", "w") as tar:
                tar.add(tree / split / name, ".")
    with pytest.raises(InputError, match=r"^data: expected at least two classes .* got \['\.'\]"):
        data(f"folder:{tmp_path}")


def test_classes_of_the_splits_must_agree(tree, tmp_path):
    for split, names in (("train", CLASSES), ("val", CLASSES[:2])):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_bytes((tree / split / name / "0.png").read_bytes())
    with pytest.raises(InputError, match=r"^data: expected the same classes .* got \['elk'\] in only one"):
        data(f"folder:{tmp_path}")


def test_shifted_glyphs_differ_only_as_their_style_says():
    plain = glyphs_module.render("test", 188, size=24)[0].astype(int)
    for name, style in glyphs_module.STYLES.items():
        images, labels = glyphs_module.render("test", 188, size=24, style=style)
        assert (labels == np.arange(188) % 94).all()
        same = [(a == b).all() for a, b in zip(plain, images.astype(int), strict=True)]
        if name == "glyphs":
            assert all(same)
        elif name in ("glyphs-dejavu", "glyphs-fonts"):  # a draw may fall on the same font
            assert 188 - sum(same) > 0
        else:
            assert not any(same)
    fonts = {chosen: glyphs_module._fonts(chosen, True) for chosen in ("all", "dejavu", "others")}
    assert not set(fonts["dejavu"]) & set(fonts["others"])
    assert set(fonts["dejavu"]) | set(fonts["others"]) == set(fonts["all"])
    noisy = glyphs_module.render("test", 94, size=24, style=glyphs_module.STYLES["glyphs-noisy"])[0]
    assert noisy[:, 0].std() > 2 * plain[:94, 0].std()  # the top row is background


def test_another_set_as_a_trained_network_sees_it():
    own, seen = data("digits", image_size=8), load_data(TrainConfig(data="digits", image_size=8), seen_by="glyphs")
    grey = own.test.tensors[0] * DIGITS[1][0] + DIGITS[0][0]
    torch.testing.assert_close(seen.test.tensors[0], (grey - glyphs_module.MEAN) / glyphs_module.STD)
