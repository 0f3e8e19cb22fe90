"""Launches of the small eigenproblems on CUDA, counted from triton.py (which tests hold this file to).

Bytes leave out the tables of addresses and orders, some 50 bytes a matrix. A matrix stays in L2 while it is worked on:
what is read again and again is in `requested`. Flops are those of the method as the kernel has it; bisection and Jacobi
are no textbook's least.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from fastrank.kernels.cost import Launch, together
from fastrank.kernels.small_eigh.config import COUNTED, HALVINGS, JACOBI, LANES, TILES, Tile, tile

_F64 = 8
#: Numbers that a reduction leaves beside diagonal and off-diagonal.
FACTS = 4
#: Sweeps of Jacobi that are counted where nobody says how many there are: what matrices of order 27 take, about.
EXPECTED_SWEEPS = 7
#: Per entry of what is left of the matrix and step: the rank-two update, the product with the reflector, the square.
REDUCED = 8
#: Per row of the matrix and step: the row itself, the norm, the reflector, its correction.
ROW = 14
#: Per minor of a Sturm sequence: two products, a subtraction each, the comparison, the scaling of two.
STURM = 8
#: Of a rotation: the angle; per entry and side that it turns.
ANGLE, TURNED = 14, 3


def eigvalsh(sizes: Iterable[int]) -> tuple[Launch, ...]:
    """Launches of `eigvalsh_many` for matrices of these orders, none above MOST_VALUES."""
    launches = []
    classes = _classes(sizes, TILES)
    for shape, members in classes.items():
        launches += [together([tridiagonal(m, shape) for m in members]), _bisect(members)]
        if len(classes) > 1:
            launches.append(Launch("torch.index_put", 2 * _F64 * len(members), _F64 * len(members)))
    return tuple(launches)


def inertia(sizes: Iterable[int]) -> tuple[Launch, ...]:
    """Launches of `inertia_many` for matrices of these orders, none above MOST_VALUES."""
    launches = []
    classes = _classes(sizes, TILES)
    for shape, members in classes.items():
        moved = 2 * _F64 * len(members), _F64 * len(members)
        apart = len(classes) > 1
        launches += [Launch("torch.index", *moved)] * apart
        launches += [together([tridiagonal(m, shape) for m in members]), _count(members)]
        launches += [Launch("torch.index_put", *moved)] * (2 * apart)
    return tuple(launches)


def eigh(sizes: Iterable[int], sweeps: int = EXPECTED_SWEEPS) -> tuple[Launch, ...]:
    """Launches of `eigh_many` for matrices of these orders, none above MOST_VECTORS."""
    return tuple(
        together([jacobi(m, shape, sweeps) for m in members]) for shape, members in _classes(sizes, JACOBI).items()
    )


@cache
def tridiagonal(m: int, shape: Tile) -> Launch:
    """One matrix's reduction: each step goes over what is left of the matrix."""
    N, rows, columns = shape.size, shape.rows, shape.columns
    requested, own, issued = _copied(m, rows, columns), 0, 0
    for k in range(m):
        left = m - k - 1
        high = len(range((k + 1) // rows * rows, m, rows))
        wide = len(range((k + 1) // columns * columns, m, columns))
        # v and w, whole and at k; row k; the product. Then, by blocks of rows, their v and w, and by tiles three more.
        requested += 2 * N + 2 + left + 1 + left
        requested += high * (2 * rows + wide * 3 * columns) + left * wide * columns
        own += REDUCED * left**2 + ROW * (left + 1)
        issued += REDUCED * high * rows * wide * columns + ROW * N
    requested += m + 2 * max(m - 1, 0)
    cover = -(-m // columns) * columns
    copy = m + max(m - 1, 0) * cover  # rows but the first are read in whole tiles
    # v, w, the next v; the product; the diagonal and the off-diagonal.
    read = _triangle(m) + copy + (2 * N + cover + 3 * m - 2 if m else 0)
    written = copy + 2 * N + (N + 3 * m if m else 0) + N + FACTS
    return Launch(
        "tridiagonal", _F64 * read, _F64 * written, {"fp64": own}, {"fp64": issued}, _F64 * requested, blocks=1
    )


def jacobi(m: int, shape: Tile, sweeps: int = EXPECTED_SWEEPS) -> Launch:
    """One matrix's eigenvectors, in so many sweeps (which depend on the matrix)."""
    N, half = shape.size, shape.rows
    players, pairs = m + m % 2, m // 2
    turns = max(players - 1, 0) * sweeps
    # Diagonals of whoever plays, the numbers between; the matrix; two rows of the vectors for each pair.
    turn = players // 2 + 2 * pairs + m * m + 2 * pairs * N
    requested = _copied(m, half, half) + turns * turn + sweeps * m * m + m + m * m
    read = _triangle(m) + m * m + (m * N if m > 1 else m)
    written = m * m + N * N + m + m * m
    own = turns * (2 * TURNED * (m * m + pairs * m) + ANGLE * pairs)
    issued = turns * (2 * TURNED * (4 * half * half + half * N) + ANGLE * half) + sweeps * 4 * N * N
    return Launch("jacobi", _F64 * read, _F64 * written, {"fp64": own}, {"fp64": issued}, _F64 * requested, blocks=1)


def _bisect(members: Sequence[int]) -> Launch:
    across = max(1, -(-max(members) // LANES))
    counts = [(m, -(-m // LANES)) for m in members]
    read = sum(2 * m + 3 for m in members)
    requested = sum(3 * across + used * HALVINGS * 2 * m for m, used in counts)
    own = sum(STURM * HALVINGS * m * m for m in members)
    issued = sum(STURM * HALVINGS * m * used * LANES for m, used in counts)
    return Launch(
        "bisect", _F64 * read, _F64 * sum(m + 1 for m in members), {"fp64": own}, {"fp64": issued}, _F64 * requested,
        blocks=across * len(members),
    )  # fmt: skip


def _count(members: Sequence[int]) -> Launch:
    programs = -(-len(members) // COUNTED)
    read = sum(2 * m + FACTS + 1 for m in members)
    return Launch(
        "count", _F64 * read, 2 * _F64 * len(members), {"fp64": STURM * sum(members)},
        {"fp64": STURM * programs * COUNTED * max(members)}, _F64 * read, blocks=programs,
    )  # fmt: skip


def _copied(m: int, rows: int, columns: int) -> int:
    """What `_scaled_copy` asks for: the lower triangle in tiles for the largest number, then everything."""
    tiles = sum(min(rows, m - row) * min(m, -(-(row + rows) // columns) * columns) for row in range(0, m, rows))
    return tiles + m * m


def _triangle(m: int) -> int:
    return m * (m + 1) // 2


def _classes(sizes: Iterable[int], tiles: tuple[Tile, ...]) -> dict[Tile, list[int]]:
    found: dict[Tile, list[int]] = {}
    for m in sizes:
        found.setdefault(tile(m, tiles), []).append(m)
    return found
