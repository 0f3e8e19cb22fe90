"""How the Triton kernels use their tiles. None has been timed on a device yet."""

from __future__ import annotations

from fastrank.kernels.occupancy import Claim

#: Rows a step of the one program that sums the rows' losses: a batch of this size is one load deep.
REDUCE_BLOCK = 2048
REDUCE_WARPS = 8


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
