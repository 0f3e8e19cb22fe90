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


CLAIMS = {"reduce": Claim(64, 4)}
