"""Constants of the symmetric eigenproblems (those of the native kernels stand beside them, in csrc/small_eigh).

Tiles are choices by arithmetic; none has been timed on a device yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastrank.kernels.occupancy import Claim

#: Rows of the largest matrix that `eigh_many` takes: Jacobi's sweeps, 6 m^3 flops each, are for matrices in L1.
MOST_VECTORS = 64


@dataclass(frozen=True)
class Tile:
    """How a matrix of order up to `size` (a power of two) is walked through: `rows` x `columns` numbers at a time."""

    size: int
    rows: int
    columns: int
    warps: int


#: Of a rank-two update: 8 numbers a thread of as many threads as have registers for it, 32 kB in flight (L2 at some 700
#: clocks and 64 bytes a clock takes 45 kB; 16 numbers a thread spill).
TILES = (
    Tile(64, 64, 64, 16),
    Tile(128, 32, 128, 16),
    Tile(256, 16, 256, 16),
    Tile(512, 16, 256, 16),
)
#: The largest order that Triton's `eigvalsh_many` and `inertia_many` take; larger ones go to torch.
MOST_VALUES = TILES[-1].size
#: Of orders of two-sided Jacobi: four tiles of a quarter of the matrix in registers, 16 numbers a thread.
JACOBI = (Tile(16, 8, 8, 1), Tile(32, 16, 16, 2), Tile(64, 32, 32, 8))
#: Sweeps at most. Convergence is quadratic from about the fourth on; matrices of order 64 take 7 to 9.
SWEEPS = 16

#: Eigenvalues that one program bisects for: two warps, so that an order of 256 spreads over four multiprocessors.
LANES = 64
#: Halvings of an interval as wide as the spectrum's bound: to two units in the last place of it.
HALVINGS = 52
#: Matrices whose shifts one program counts at.
COUNTED = 32
#: Terms of the inner one of two sums; see `_sum` of triton.py.
INNER = 16


def tile(size: int, tiles: tuple[Tile, ...] = TILES) -> Tile:
    return next(t for t in tiles if size <= t.size)


def depth(terms: int) -> int:
    """Additions that a term of `_sum` passes at most, and the rounding of its product: gamma_depth bounds the sum's
    error, whatever the order within either level."""
    inner = min(INNER, terms)
    return inner - 1 + terms // inner - 1 + 1


def budget(size: int, columns: int) -> tuple[float, float]:
    """(c, f): a Householder step errs by at most u (c ||y|| + f ||T||_F) in the 2-norm: DevNotes.md here."""
    sums, products = depth(size), depth(columns) + -(-size // columns) - 1
    return 2 * sums + 17, 14 * sums + 4 * products + 137


#: What the tiles count on, as compiled by the triton that constraints.txt names: registers a thread at most, and blocks
#: at once on a multiprocessor. Where a compiler gives something else, tests/compile says so and this table follows.
CLAIMS = {
    "bisect 256 fp64 values": Claim(40, 24),
    "bisect 512 fp64 values": Claim(40, 24),
    "bisect 64 fp64 values": Claim(40, 24),
    "count 64 fp64 values": Claim(56, 64),
    "jacobi 16 fp64 values": Claim(128, 16),
    "jacobi 64 fp64 values": Claim(256, 1),
    "tridiagonal 256 fp64 values": Claim(128, 1),
    "tridiagonal 512 fp64 values": Claim(128, 1),
    "tridiagonal 64 fp64 values": Claim(120, 1),
}
