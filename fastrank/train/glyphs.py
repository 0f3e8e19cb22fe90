"""The bundled data set `glyphs`: 94 printable characters drawn in the fonts that matplotlib ships.

94 classes show a rank deficit that 10 cannot. Sample i of a split is a pure function of (seed, split, i, size):
its random numbers come from a counter-based generator (Philox 4x64, key = (seed, split), counter = i) and the noise
is integer arithmetic, so a larger set starts with the smaller one, and any machine with the same fonts and the same
FreeType draws the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from fastrank.errors import InputError
from fastrank.extras import require

CHARACTERS = "".join(map(chr, range(33, 127)))
SPLITS = {"train": 0, "test": 1}
# Mean and standard deviation of the pixels at 32 x 32, as shares of 255.
MEAN, STD = 0.186, 0.185

# Faces with every printable ASCII character at its code. Of matplotlib's other files STIXNonUni*, STIXSiz*, cmex10,
# cmsy10 and cmmi10 hold symbols, DejaVu*Display lack letters and LastResort draws placeholders.
FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSansMono-Oblique.ttf", "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "STIXGeneralBolIta.ttf", "cmtt10.ttf",
)  # fmt: skip
# Computer Modern text faces: right for letters and digits only (they hold other signs at the codes of "<>\_{|}).
ALPHANUMERIC_FONTS = ("cmr10.ttf", "cmb10.ttf", "cmss10.ttf", "cmti10.ttf")


@dataclass(frozen=True)
class Style:
    """How glyphs are drawn. fonts: "all", "dejavu" or "others". angles: smallest and largest |rotation| in degrees.
    noise: smallest and largest standard deviation of the noise, in levels of 255."""

    fonts: str = "all"
    angles: tuple[float, float] = (0.0, 12.0)
    noise: tuple[float, float] = (2.0, 20.0)


#: Data set -> how it is drawn. A network trained on "glyphs-dejavu" has not seen the fonts of "glyphs-fonts"; one
#: trained on "glyphs" has seen neither the angles of "glyphs-rotated" nor the noise of "glyphs-noisy".
STYLES = {
    "glyphs": Style(),
    "glyphs-dejavu": Style(fonts="dejavu"),
    "glyphs-fonts": Style(fonts="others"),
    "glyphs-rotated": Style(angles=(25.0, 50.0)),
    "glyphs-noisy": Style(noise=(50.0, 80.0)),
}


def render(
    split: str, count: int, size: int = 32, seed: int = 0, style: Style = STYLES["glyphs"]
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` samples of a split: images uint8 [count, size, size] and labels int64 [count].

    Sample i shows character i mod 94; other styles draw the same samples otherwise. Raises InputError for an unknown
    split, count < 1, size < 8 or a negative seed.
    """
    if split not in SPLITS:
        raise InputError("split", f"one of {', '.join(SPLITS)}", repr(split))
    if count < 1:
        raise InputError("count", "at least 1 glyph", count)
    if size < 8:
        raise InputError("image_size", "at least 8 pixels for a readable glyph", size)
    if not 0 <= seed < 2**64:
        raise InputError("seed", "an integer in 0 .. 2^64-1", seed)
    images = np.stack([_draw(i, split, size, seed, style) for i in range(count)])
    return images, np.arange(count, dtype=np.int64) % len(CHARACTERS)


def normalise(images: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w] -> float32 [n, 1, h, w] with the data set's constants, the same for any count and seed."""
    return ((images.astype(np.float32) / 255 - MEAN) / STD)[:, None]


def _draw(index: int, split: str, size: int, seed: int, style: Style) -> np.ndarray:
    from PIL import Image, ImageDraw

    character = CHARACTERS[index % len(CHARACTERS)]
    generator = np.random.Philox(key=[seed, SPLITS[split]], counter=[0, index, 0, 0])
    random = generator.random_raw(8 + (size * size + 1) // 2)
    uniform = (random[:8] >> np.uint64(11)) / 2**53
    fonts = _fonts(style.fonts, character.isalnum())
    pixels = round(size * (0.6 + 0.3 * uniform[1]))
    shift = size * 0.09 * (2 * uniform[2:4] - 1)
    centred, (least, most) = 2 * uniform[4] - 1, style.angles
    angle = most * centred if least == 0 else np.copysign(least + (most - least) * abs(centred), centred)
    contrast, background = 0.55 + 0.45 * uniform[5], 0.25 * uniform[6]
    noise_level = style.noise[0] + (style.noise[1] - style.noise[0]) * uniform[7]

    mask = Image.new("L", (size, size))
    centre = (size / 2 + shift[0], size / 2 + shift[1])
    # Anchor "mm" keeps the height of the character over its line: an apostrophe stays above a comma.
    font = _font(fonts[int(uniform[0] * len(fonts))], pixels)
    ImageDraw.Draw(mask).text(centre, character, fill=255, font=font, anchor="mm")
    ink = np.asarray(mask.rotate(angle, resample=Image.Resampling.BILINEAR, center=centre), dtype=np.float64)
    # The sum of four bytes less its mean is close to normal (standard deviation 147.8) and exact in integers.
    words = random[8:].astype("<u8").view("<u4")[: size * size].reshape(size, size)
    total = (words & 255) + (words >> 8 & 255) + (words >> 16 & 255) + (words >> 24)
    noise = (total.astype(np.float64) - 510) * (noise_level / 147.8)
    level = 255 * background + ink * contrast * (1 - background) + noise
    return np.clip(np.rint(level), 0, 255).astype(np.uint8)


@cache
def _fonts(chosen: str, alphanumeric: bool) -> tuple[str, ...]:
    fonts = FONTS + ALPHANUMERIC_FONTS if alphanumeric else FONTS
    if chosen == "all":
        return fonts
    return tuple(name for name in fonts if name.startswith("DejaVu") == (chosen == "dejavu"))


@cache
def _font(name: str, pixels: int):
    from PIL import ImageFont

    path = Path(require("matplotlib", "data glyphs").get_data_path()) / "fonts" / "ttf" / name
    if not path.is_file():
        raise InputError(
            "data",
            f"the font {name} in {path.parent}",
            "no such file",
            cure="pip install 'fastrank[train]' brings the matplotlib that ships it",
        )
    # Basic layout: the optional raqm shaper is absent on some machines and moves glyphs by a pixel.
    return ImageFont.truetype(str(path), pixels, layout_engine=ImageFont.Layout.BASIC)
