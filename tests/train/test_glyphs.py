"""The generated data set: what sample i is depends on nothing but its address."""

import hashlib

import numpy as np
import pytest

from fastrank.errors import InputError
from fastrank.train import glyphs

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")


def test_a_larger_set_starts_with_the_smaller_one():
    images, labels = glyphs.render("train", 100, size=16)
    more, _ = glyphs.render("train", 190, size=16)
    assert images.shape == (100, 16, 16) and images.dtype == np.uint8
    np.testing.assert_array_equal(more[:100], images)
    np.testing.assert_array_equal(labels, np.arange(100) % 94)


def test_split_seed_and_index_each_change_the_sample():
    first = glyphs.render("train", 95, size=16)[0]
    assert (first[0] != first[94]).any()  # the same character, drawn anew
    assert (first[0] != glyphs.render("test", 1, size=16)[0][0]).any()
    assert (first[0] != glyphs.render("train", 1, size=16, seed=1)[0][0]).any()


def test_noise_is_the_same_bytes_everywhere():
    """The part that no font library touches: the random words of sample 3 of the test split."""
    words = np.random.Philox(key=[5, 1], counter=[0, 3, 0, 0]).random_raw(4)
    assert hashlib.sha256(words.astype("<u8").tobytes()).hexdigest()[:16] == "e26d2110e003eb3b"


def test_every_font_draws_every_character_of_its_own():
    """A face without a character draws the same placeholder for all it lacks, and nothing for a space-like one."""
    from PIL import Image, ImageDraw

    for name in glyphs.FONTS + glyphs.ALPHANUMERIC_FONTS:
        seen = {}
        for character in glyphs.CHARACTERS:
            if name in glyphs.ALPHANUMERIC_FONTS and not character.isalnum():
                continue
            mask = Image.new("L", (40, 40))
            ImageDraw.Draw(mask).text((20, 20), character, fill=255, font=glyphs._font(name, 28), anchor="mm")
            assert np.asarray(mask).any(), (name, character)
            twin = seen.setdefault(mask.tobytes(), character)
            assert twin == character, (name, twin, character)


def test_pixels_have_the_stated_mean_and_deviation():
    images = glyphs.render("train", 940, size=32)[0].astype(np.float64) / 255
    # 940 images whose means scatter by about 0.08: three standard errors are 0.008.
    assert images.mean() == pytest.approx(glyphs.MEAN, abs=0.01)
    assert images.std() == pytest.approx(glyphs.STD, abs=0.01)


def test_characters_are_visible():
    images = glyphs.render("train", 940, size=24)[0].astype(np.int64)
    assert (images.max((1, 2)) - np.median(images, (1, 2)) > 60).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("dev", 1), "split"), (("train", 0), "count"), (("train", 1, 7), "image_size"), (("train", 1, 16, -1), "seed")],
)
def test_mistakes_are_named(arguments, named):
    with pytest.raises(InputError, match=f"^{named}: expected"):
        glyphs.render(*arguments)
