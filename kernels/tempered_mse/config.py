"""Tile shapes of the Triton kernels: those of the tempered cross-entropy, by the same arithmetic (logits of a thread,
rows of a program). None has been timed on a device yet."""

from __future__ import annotations

from dataclasses import dataclass

from fastrank.kernels.occupancy import Claim


@dataclass(frozen=True)
class Tile:
    """Logits of one program (powers of two) and the warps that share them; used up to `max_classes` classes."""

    max_classes: float
    rows: int
    classes: int
    warps: int


TILES = (
    Tile(max_classes=16, rows=64, classes=16, warps=4),
    Tile(max_classes=128, rows=8, classes=128, warps=4),
    Tile(max_classes=1024, rows=2, classes=1024, warps=4),
    Tile(max_classes=float("inf"), rows=1, classes=2048, warps=4),
)

#: Rows a step of the one program that sums the rows' losses: a batch of this size is one load deep.
REDUCE_BLOCK = 2048
REDUCE_WARPS = 8


def tile(classes: int) -> Tile:
    """The tile for logits of `classes` classes."""
    return next(t for t in TILES if classes <= t.max_classes)


#: What the tiles count on, as compiled by the triton that constraints.txt names: registers a thread at most, and blocks
#: at once on a multiprocessor. "soft" is class probabilities, weight, smoothing and a temperature tensor; "nested" two
#: labels, [N, C, d1]. Where a compiler gives something else, tests/compile says so and this table follows, by decision.
_VARIANTS = ("plain", "soft", "nested", "fp64 soft")
_CLAIMS = {
    "forward 64x16": ((64, 8), (64, 8), (120, 4), (144, 3)),
    "forward 8x128": ((64, 8), (56, 9), (112, 4), (128, 4)),
    "forward 2x1024": ((120, 4), (120, 4), (96, 5), (216, 2)),
    "forward 1x2048": ((96, 5), (112, 4), (96, 5), (232, 2)),
    "backward 64x16": ((48, 10), (48, 10), (104, 4), (144, 3)),
    "backward 8x128": ((40, 12), (40, 12), (120, 4), (128, 4)),
    "backward 2x1024": ((48, 10), (56, 9), (56, 9), (160, 3)),
    "backward 1x2048": ((40, 12), (56, 9), (72, 7), (160, 3)),
}
CLAIMS = {"reduce": Claim(80, 3)} | {
    f"{tile} {variant}": Claim(*claim)
    for tile, claims in _CLAIMS.items()
    for variant, claim in zip(_VARIANTS, claims, strict=True)
}
