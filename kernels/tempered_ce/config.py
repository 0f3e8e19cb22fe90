"""How the Triton kernels use their tiles: registers, rows split over programs, the sums of the last program. These are
choices by arithmetic; none has been timed on a device yet.
"""

from __future__ import annotations

from fastrank.kernels.occupancy import Claim
from fastrank.kernels.tempered_loss.tiles import Tile, tile

#: Programs' losses that the last program sums a step: a batch of this many programs is one load deep.
REDUCE_BLOCK = 1024
#: Most programs whose losses the last one sums alone: 16 waits for memory, as long as the few small kernels of torch's
#: own sum and quotient. Beyond it (millions of rows of few classes) those are the shorter way.
ALONE = 16 * REDUCE_BLOCK
#: Parts of rows that the last program puts together a step: 8 a thread, of up to 8 sums each.
COMBINE = 256

#: Multiprocessors to plan for where no device is there to ask: an H100's.
SMS = 132
#: A tile of a long row is 4 kB (16-bit) to 16 kB (fp64) in flight. Of an H100's 3.35 TB/s 25 GB/s fall to each
#: multiprocessor, which at some 0.7 us of latency takes 18 kB in flight: 4 programs and more.
PROGRAMS_PER_SM = 4
#: A program that goes through a row alone takes about that latency a tile. Splitting costs once more about three of
#: them: the parts' sums go to L2, a counter, and back. Below this many tiles it would not pay.
MIN_TILES = 8
#: Most parts of a row: what one step of the last program takes.
MAX_PARTS = 256


def splits(programs: int, classes: int, sms: int) -> tuple[int, int]:
    """(parts, tiles of each but the last) that the forward pass cuts a row into, where `programs` programs with a row
    or several each are not enough to keep `sms` multiprocessors' memory accesses in flight. The gradient is cut into
    single tiles anyway."""
    tiles = -(-classes // tile(classes).classes)
    if tiles < MIN_TILES:
        return 1, tiles
    wanted = min(max(1, PROGRAMS_PER_SM * sms // programs), tiles, MAX_PARTS)
    span = -(-tiles // wanted)
    return -(-tiles // span), span


def registers(shape: Tile, itemsize: int, target: str) -> int | None:
    """Most registers a thread of the forward pass, `itemsize` bytes an accumulator, where ptxas needs a bound: left
    alone it keeps one or two of them in memory there, on some architecture, to make room for another block."""
    if itemsize == 8:
        return 248
    if target == "probabilities":
        return 96
    return 128 if shape.rows == 64 else None


#: What the tiles count on, as compiled by the triton that constraints.txt names: registers a thread at most, and blocks
#: at once on a multiprocessor. "full" is weight, smoothing, statistics, a temperature tensor and scale_gradient="T2";
#: "nested": [N, C, d1]; "split": few rows, whose parts one program puts together (in the forward pass only).
#: Even the leanest case, fp64 with every option, keeps 8 warps of 16 loads each in flight. Where a compiler gives
#: something else, tests/compile says so and this table follows, by decision.
_VARIANTS = (
    "plain", "full", "nested", "fp64 plain", "fp64 full",
    "mixed", "mixed full", "probabilities", "probabilities full",
    "fp64 mixed full", "fp64 probabilities full",
)  # fmt: skip
_CLAIMS = {
    "forward 64x16": ((80, 6), (104, 4), (128, 4), (176, 2), (232, 2),
        (80, 6), (120, 4), (72, 7), (96, 5), (248, 2), (232, 2)),
    "forward 8x128": ((56, 9), (80, 6), (144, 3), (168, 3), (224, 2),
        (40, 12), (112, 4), (56, 9), (96, 5), (248, 2), (232, 2)),
    "forward 2x1024": ((56, 9), (96, 5), (72, 7), (176, 2), (232, 2),
        (56, 9), (104, 4), (80, 6), (96, 5), (240, 2), (232, 2)),
    "forward 1x2048": ((48, 10), (96, 5), (72, 7), (152, 3), (200, 2),
        (40, 12), (80, 6), (64, 8), (96, 5), (216, 2), (216, 2)),
    "backward 64x16": ((40, 12), (48, 10), (96, 5), (104, 4), (120, 4),
        (56, 9), (72, 7), (32, 16), (40, 12), (176, 2), (96, 5)),
    "backward 8x128": ((32, 16), (48, 10), (96, 5), (96, 5), (120, 4),
        (40, 12), (72, 7), (32, 16), (40, 12), (168, 3), (96, 5)),
    "backward 2x1024": ((40, 12), (56, 9), (56, 9), (96, 5), (112, 4),
        (56, 9), (80, 6), (40, 12), (56, 9), (168, 3), (96, 5)),
    "backward 1x2048": ((40, 12), (56, 9), (56, 9), (96, 5), (112, 4),
        (48, 10), (80, 6), (32, 16), (56, 9), (144, 3), (96, 5)),
}  # fmt: skip
CLAIMS = {
    f"{tile} {variant}": Claim(*claim)
    for tile, claims in _CLAIMS.items()
    for variant, claim in zip(_VARIANTS, claims, strict=True)
} | {
    "forward 1x2048 split": Claim(72, 7),
    "forward 1x2048 split full": Claim(120, 4),
    "forward 1x2048 split mixed full": Claim(160, 3),
    "forward 1x2048 split probabilities full": Claim(96, 5),
    "forward 1x2048 fp64 split full": Claim(232, 2),
    "forward 1x2048 fp64 split mixed full": Claim(232, 2),
    "forward 1x2048 fp64 split probabilities full": Claim(168, 3),
}
