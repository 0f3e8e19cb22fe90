"""The randomized SVD ops in plain torch: the specification that every kernel is held to."""

from __future__ import annotations

import math

import torch
from fastrank.kernels.rsvd.config import COS, DISTANCE_ROWS, LN2_HIGH, LN2_LOW, LOG, SIN, SKETCH_ROWS, ZETA
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox 4x32-10 of four tensors of 32-bit words, held as int64 (products wrap, their 64 bits are right)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def words(first: int, rows: int, columns: int, seed: int, stream: int, device=None) -> Tensor:
    """[rows, ceil(columns / 4), 4] int64: the words of rows [first, first + rows)."""
    row = torch.arange(first, first + rows, device=device)[:, None]
    quarter = torch.arange(-(-columns // 4), device=device)[None, :]
    zero = torch.zeros_like(row + quarter)
    counter = (row & _LOW) + zero, ((row >> 32) & _LOW) + zero, quarter + zero, zero + stream
    return torch.stack(philox4x32(counter, (seed & _LOW, (seed >> 32) & _LOW)), -1)


def test_matrix(
    rows: int, columns: int, seed: int, stream: int = 0, kind: str = "gaussian", dtype=torch.float32, device=None,
    first: int = 0,
) -> Tensor:  # fmt: skip
    """Rows [first, first + rows) of the test matrix with so many columns."""
    if kind == "sparse_sign":
        return _sparse_sign(first, rows, columns, seed, stream, device).to(dtype)
    w = words(first, rows, columns, seed, stream, device)
    if kind == "rademacher":
        numbers = 1.0 - 2.0 * (w >> 31).float()
    else:
        pairs = w.unflatten(-1, (2, 2))
        numbers = torch.stack(normal_pair(pairs[..., 0], pairs[..., 1]), -1)
    return numbers.flatten(1)[:, :columns].to(dtype).contiguous()


def normal_pair(length: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normal numbers (Box & Muller 1958): every line is one rounding, in the order of philox.h."""
    r = _radius(length)
    a = angle >> 8
    quarter = (a + (1 << 21)) >> 22
    y = (a - (quarter << 22)).float() * 2.0**-21  # exact
    square = y * y
    s = _horner(SIN, square) * y
    c = _horner(COS, square)
    odd = (quarter & 1).bool()
    x, z = torch.where(odd, s, c), torch.where(odd, c, s)
    x = torch.where(((quarter + 1) & 2).bool(), -x, x)
    z = torch.where((quarter & 2).bool(), -z, z)
    return r * x, r * z


def _radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln u) for u = ((word >> 8) + 1) 2^-24."""
    bits = ((word >> 8) + 1).float().view(torch.int32)
    power = (bits - 0x3F3504F3) >> 23  # u = m 2^power with m in [sqrt(1/2), sqrt(2))
    f = (bits - (power << 23)).view(torch.float32) - 1.0
    e = (power - 24).float()
    square = f * f
    log = _horner(LOG, f) * f
    log = log * square
    log = log + e * LN2_LOW
    log = log + square * -0.5
    log = log + f
    log = log + e * LN2_HIGH
    # Correctly rounded, which torch's own float32 root is not: to 53 bits, no number of 24 has a root that near a tie.
    return torch.sqrt((log * -2.0).double()).float()


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Multiplication and addition one after the other: torch.addcmul could fuse them."""
    p = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = p * x
        p = p + c
    return p


def sketch(A: Tensor, q: int, seed: int, stream: int = 0, kind: str = "gaussian") -> Tensor:
    """A [n, d] times the test matrix [d, q], of which SKETCH_ROWS rows are in memory at a time."""
    A = A if A.dtype == torch.float64 else A.float()
    Y = A.new_zeros(len(A), q)
    for first in range(0, A.shape[1], SKETCH_ROWS):
        columns = A[:, first : first + SKETCH_ROWS]
        Y += columns @ test_matrix(columns.shape[1], q, seed, stream, kind, A.dtype, A.device, first)
    return Y


def cosines(W: Tensor, A: Tensor) -> Tensor:
    """|W A^T|, at most 1."""
    return (W @ A.T).abs_().clamp_max_(1.0)


def distance(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """||X - Y||_F and ||X||_F in float64, a few rows of which are in memory at a time."""
    squares = X.new_zeros(2, dtype=torch.float64)
    for x, y in zip(X.split(DISTANCE_ROWS), Y.split(DISTANCE_ROWS), strict=True):
        x = x.double()
        squares += torch.stack([(x - y).square().sum(), x.square().sum()])
    return tuple(squares.sqrt())


def _sparse_sign(first: int, rows: int, columns: int, seed: int, stream: int, device) -> Tensor:
    blocks = min(ZETA, columns)
    found = torch.zeros(rows, columns, device=device)
    if not blocks:
        return found
    w = words(first, rows, blocks, seed, stream, device).flatten(1)
    value = 1.0 / math.sqrt(blocks)
    for b in range(blocks):
        start, end = b * columns // blocks, (b + 1) * columns // blocks
        place = start + (w[:, b] >> 1) % (end - start)
        found.scatter_(1, place[:, None], (value * (1.0 - 2.0 * (w[:, b] & 1).float()))[:, None])
    return found
