"""Tile shapes of the losses' Triton kernels.

A program takes `rows` x `classes` logits at a time, 8 to 16 of them a thread: enough independent loads to cover memory
latency, few enough that tile and row sums stay in registers (the compile tests assert that nothing spills; 16 rows of
128 classes did, and 4096 classes on 8 warps did on sm_86 and sm_89). Small class counts share a program among rows, so
that a warp's lanes are not idle; a row that fits one tile is read once.

These are choices by that arithmetic; none has been timed on a device yet.
"""

from __future__ import annotations

from dataclasses import dataclass


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


def tile(classes: int) -> Tile:
    """The tile for logits of `classes` classes."""
    return next(t for t in TILES if classes <= t.max_classes)
