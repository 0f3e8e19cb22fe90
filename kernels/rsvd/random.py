"""Test matrices inside Triton kernels: kernels/rsvd/reference.py, bit by bit."""

from __future__ import annotations

import triton
import triton.language as tl
from fastrank.kernels.rounding_triton import mul_rn
from fastrank.kernels.rsvd import config

_LOG = tl.constexpr(config.LOG)
_SIN = tl.constexpr(config.SIN)
_COS = tl.constexpr(config.COS)
_LN2_HIGH, _LN2_LOW = tl.constexpr(config.LN2_HIGH), tl.constexpr(config.LN2_LOW)
_SQRT_HALF = tl.constexpr(0x3F3504F3)


@triton.jit
def _horner(x, COEFFICIENTS: tl.constexpr, N: tl.constexpr):
    p = tl.full(x.shape, COEFFICIENTS[N - 1], tl.float32)
    for i in tl.static_range(N - 1):
        p = mul_rn(p, x) + COEFFICIENTS[N - 2 - i]
    return p


@triton.jit
def _constant(x, value):
    return tl.full(x.shape, value, tl.float32)


@triton.jit
def _radius(word):
    """sqrt(-2 ln u) for u = ((word >> 8) + 1) 2^-24."""
    bits = ((word >> 8).to(tl.int32) + 1).to(tl.float32).to(tl.int32, bitcast=True)
    power = (bits - _SQRT_HALF) >> 23  # u = m 2^power with m in [sqrt(1/2), sqrt(2))
    f = (bits - (power << 23)).to(tl.float32, bitcast=True) - 1.0
    e = (power - 24).to(tl.float32)
    square = mul_rn(f, f)
    log = mul_rn(mul_rn(_horner(f, _LOG, 8), f), square)
    log = log + mul_rn(e, _constant(e, _LN2_LOW))
    log = log + mul_rn(square, _constant(e, -0.5))
    log = log + f
    log = log + mul_rn(e, _constant(e, _LN2_HIGH))
    return tl.sqrt_rn(mul_rn(log, _constant(e, -2.0)))


@triton.jit
def _normal_pair(length, angle):
    r = _radius(length)
    a = (angle >> 8).to(tl.int32)
    quarter = (a + (1 << 21)) >> 22
    y = mul_rn((a - (quarter << 22)).to(tl.float32), _constant(r, 2.0**-21))
    square = mul_rn(y, y)
    s = mul_rn(_horner(square, _SIN, 4), y)
    c = _horner(square, _COS, 5)
    odd = (quarter & 1) != 0
    x, z = tl.where(odd, s, c), tl.where(odd, c, s)
    x = tl.where(((quarter + 1) & 2) != 0, -x, x)
    z = tl.where((quarter & 2) != 0, -z, z)
    return mul_rn(r, x), mul_rn(r, z)


@triton.jit
def _words(seed, stream, row, quarter):
    """Four words for each of `row` (int64) and `quarter`, of one shape."""
    low, high = row.to(tl.uint32), (row >> 32).to(tl.uint32)
    return tl.philox(seed, low, high, quarter.to(tl.uint32), (quarter * 0 + stream).to(tl.uint32))


@triton.jit
def random_tile(
    seed, stream, first_row, first_column, columns,
    KIND: tl.constexpr, ZETA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """[ROWS, COLUMNS] of the test matrix with so many columns, float32; `first_column` and COLUMNS are multiples of 4.
    What lies beyond the last column is random too."""
    row = first_row + tl.arange(0, ROWS).to(tl.int64)
    if KIND == "sparse_sign":
        column = first_column + tl.arange(0, COLUMNS)
        blocks = tl.minimum(columns, ZETA)
        block = (((column + 1).to(tl.int64) * blocks - 1) // columns).to(tl.int32)
        edge = (block.to(tl.int64) * columns // blocks).to(tl.int32)
        width = ((block + 1).to(tl.int64) * columns // blocks).to(tl.int32) - edge
        zero = tl.zeros((ROWS, COLUMNS), tl.int32)
        w0, w1, w2, w3 = _words(seed, stream, row[:, None] + zero, (block // 4)[None, :] + zero)
        which = (block % 4)[None, :]
        word = tl.where(which == 0, w0, tl.where(which == 1, w1, tl.where(which == 2, w2, w3)))
        there = edge[None, :] + ((word >> 1).to(tl.int32) % width[None, :]) == column[None, :]
        value = (1 / tl.sqrt(blocks.to(tl.float64))).to(tl.float32)
        sign = tl.where((word & 1) != 0, -value, value)
        return tl.where(there, sign, 0.0)
    else:
        quarter = first_column // 4 + tl.arange(0, COLUMNS // 4)
        zero = tl.zeros((ROWS, COLUMNS // 4), tl.int32)
        w0, w1, w2, w3 = _words(seed, stream, row[:, None] + zero, quarter[None, :] + zero)
        if KIND == "gaussian":
            x0, x1 = _normal_pair(w0, w1)
            x2, x3 = _normal_pair(w2, w3)
        else:
            x0 = tl.where((w0 >> 31) != 0, -1.0, 1.0)
            x1 = tl.where((w1 >> 31) != 0, -1.0, 1.0)
            x2 = tl.where((w2 >> 31) != 0, -1.0, 1.0)
            x3 = tl.where((w3 >> 31) != 0, -1.0, 1.0)
        return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (ROWS, COLUMNS))
