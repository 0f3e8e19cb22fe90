"""Constants of the randomized SVD ops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fastrank.kernels.occupancy import Claim

KINDS = ("gaussian", "rademacher", "sparse_sign")

#: Nonzeros in a row of a sparse sign matrix. Eight are what sparse sign sketches are commonly run with: as good as
#: Gaussian ones in practice (Martinsson & Tropp, Randomized numerical linear algebra, Acta Numerica 2020, section 9.2).
ZETA = 8

#: What multiplies the test matrix in blocks of as many rows: it is never in memory as a whole.
SKETCH_ROWS = 1024

#: Rows of A whose products are added up in the data's own precision before they join the rest (the CPU's kBlockRows).
STEP_ROWS = 32

#: A column of A V of which the others leave less than this share counts as dependent on them. A^T A V then says nothing
#: of it: its error there is eps * sigma_1 / DEPENDENT. And Q is made from a Gram matrix in float64, so its columns are
#: orthonormal to about 2^-52 / DEPENDENT^2 = 2e-10, whatever the dtype.
DEPENDENT = 2.0**-10

# --- the normal distribution (Box-Muller), as polynomials that every device evaluates with the same roundings ---
# Least squares on 400 Chebyshev nodes, coefficients rounded to float32, lowest power first; so close that what is left
# is the rounding of the evaluation.
#: ln(1 + f) = f - f^2 / 2 + f^3 P(f) on [sqrt(1/2) - 1, sqrt(2) - 1], to 2.6e-8 of itself.
LOG = tuple(map(float.fromhex, (
    "0x1.555552p-2", "-0x1.0000c8p-2", "0x1.99a14cp-3", "-0x1.54d54ep-3", "0x1.22dc4cp-3", "-0x1.09abe4p-3",
    "0x1.04591ap-3", "-0x1.4bd700p-4",
)))  # fmt: skip
#: ln 2 in two parts; the first has 13 bits, so that its product with an exponent of up to 24 is exact.
LN2_HIGH, LN2_LOW = float.fromhex("0x1.62ep-1"), float.fromhex("0x1.0bfbe8p-15")
#: sin(pi y / 4) = y S(y^2) and cos(pi y / 4) = C(y^2) on [-1, 1], to 3.5e-8 and 9.5e-9.
SIN = tuple(map(float.fromhex, ("0x1.921fb6p-1", "-0x1.4abbbap-4", "0x1.465ec4p-9", "-0x1.2d9b7cp-15")))
COS = tuple(map(float.fromhex, ("1", "-0x1.3bd3ccp-2", "0x1.03c1dcp-6", "-0x1.55c57ap-12", "0x1.d9c326p-19")))

#: A column of A V that is this small beside the longest is rounding alone: four units of it.
NOISE = {torch.float32: 2.0**-21, torch.float64: 2.0**-50}
#: Columns of a block, at most (kMaxColumns of csrc/rsvd/limits.h).
MAX_COLUMNS = 128
#: Singular values below this share of the largest are rounding of A^T A V alone and count as 0.
NEGLIGIBLE = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
#: Rows that the reference of `distances_many` takes to float64 at a time.
DISTANCE_ROWS = 64

#: Times that the reference orthonormalises a block: one pass may replace columns, one makes what is then there
#: orthonormal, and one takes away what rounding left. (The native kernel looks, and stops when it is.)
PASSES = 3
#: The seed of the columns that replace dependent ones; any would do.
FILL_SEED = 0x5EED


@dataclass(frozen=True)
class SketchTile:
    """What one Triton program makes of the result, `depth` columns of A at a time. None has been timed on a device."""

    rows: int
    columns: int
    depth: int
    warps: int


#: As wide as the sketch, up to 64 columns: each number drawn serves `rows` products, which is to be more than the about
#: 60 instructions that drawing it takes.
SKETCH_TILE = (SketchTile(64, 16, 16, 4), SketchTile(64, 32, 16, 4), SketchTile(64, 64, 16, 8))
#: Of float64, where a number takes two registers.
SKETCH_TILE_64 = (SketchTile(32, 16, 16, 4), SketchTile(32, 32, 16, 4), SketchTile(32, 64, 16, 8))
#: Of the test matrix alone: 16 numbers a thread.
TEST_TILE = SketchTile(64, 32, 0, 4)
#: Of the subspace step: rows (or columns) of A that a program turns into as many of Y (or Z), `depth` at a time.
STEP_TILE = SketchTile(64, 0, 16, 8)
#: Columns that a block is padded to; wider blocks go to torch.
STEP_WIDTHS = (16, 32, 64)

#: Of cosines: rows of W and of A, numbers of each at a time. Fifteen leading directions fit one tile.
COSINE_TILE = SketchTile(16, 16, 64, 4)

#: What the tiles count on, as compiled by the triton that constraints.txt names: registers a thread at most, and blocks
#: at once on a multiprocessor. Where a compiler gives something else, tests/compile says so and this table follows.
CLAIMS = {
    "add_spans 64 fp64 plain": Claim(40, 16),
    "add_spans 64 plain": Claim(32, 16),
    "apply 64 fill": Claim(120, 2),
    "apply 64 out": Claim(112, 2),
    "apply 64 out alone": Claim(112, 2),
    "basis 64 first": Claim(224, 1),
    "basis 64 next": Claim(240, 1),
    "columns 64 plain": Claim(128, 2),
    "cosines 16 fp64 plain": Claim(72, 3),
    "cosines 16 plain": Claim(64, 8),
    "finish 64 plain": Claim(32, 8),
    "left 64 plain": Claim(112, 2),
    "project 64 next plain": Claim(64, 4),
    "project 64 plain": Claim(80, 3),
    "residual 64 plain": Claim(72, 3),
    "right 16 float64": Claim(256, 1),
    "right 64 float64": Claim(176, 1),
    "rotations 64 plain": Claim(128, 2),
    "rows 64 plain": Claim(80, 3),
    "sketch 16 plain": Claim(128, 4),
    "sketch 64 fp64 plain": Claim(216, 1),
    "sketch 64 plain": Claim(128, 2),
    "small 64 float64": Claim(256, 1),
    "start 64 float64": Claim(80, 3),
    "test_matrix 64 float64": Claim(64, 8),
}
