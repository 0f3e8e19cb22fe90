// Householder reduction to tridiagonal form, with a running bound on its rounding.
//
// Rows are eliminated from the last to the first, so what is left is always the leading block. The rank-2 update of one
// step and the product that the next step needs are one pass over the block, which is thus read and written once per
// step. Its lower triangle is kept in tiles of some rows and one vector of columns, in the order of the pass: memory is
// one stream, and a large matrix takes half the cache.
#pragma once

#include <math.h>

#include "small_eigh/vectors.h"

namespace fastrank {
namespace small_eigh {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Rows of a tile, a multiple of the lanes: each vector of columns is loaded once for all of them.
constexpr int64_t kGroup = kLanes > 4 ? 8 : 4;
// Sums are cut after as many terms, so that their roundings do not grow with m.
constexpr int64_t kRowRun = 32;      // vectors of one row
constexpr int64_t kColumnRun = 128;  // rows of one column
constexpr double kNothing = 0x1p-400;  // a squared norm that counts as 0, of matrices scaled to about 1

// The most roundings of a product in an element of `pass`'s y: on its way through its row's sum or its column's, then
// through y. 4: the product itself, the vectors that the diagonal crosses, y's first value.
inline double pass_roundings(int64_t r) {
  const auto least = [](int64_t x, int64_t y) { return x < y ? x : y; };
  const int64_t row = least(ceil_div(r, kLanes), kRowRun) + ceil_div(r, kRowRun * kLanes) + kSumRoundings;
  const int64_t column = kGroup + least(ceil_div(r, kGroup), kColumnRun / kGroup);
  return static_cast<double>((row > column ? row : column) + ceil_div(r, kColumnRun) + 4);
}

// The vector of columns j (a multiple of kLanes) of row i, in a group that begins at row i / kGroup * kGroup and has
// columns up to its end.
inline double* packed(double* a, int64_t i, int64_t j) {
  const int64_t t = i % kGroup;
  return a + (i - t) * (i - t + kGroup) / 2 + j * kGroup + t * kLanes;
}

// Of a group's tiles [j, end), all left of the diagonal: a -= v w^T + w v^T if kUpdate; then their share of y = B x,
// by columns to part and by rows to acc.
template <bool kUpdate>
inline void group(double* tiles, int64_t i, int64_t j, int64_t end, const double* v, const double* w, const double* x,
                  double* part, V (&acc)[kGroup]) {
  V vi[kGroup], wi[kGroup], xi[kGroup];  // here, or each store would make the compiler read them again
#pragma GCC unroll 8
  for (int t = 0; t < kGroup; ++t) {
    vi[t] = V{} + v[i + t];
    wi[t] = V{} + w[i + t];
    xi[t] = V{} + x[i + t];
  }
  for (; j < end; j += kLanes) {
    const V vj = load(v + j), wj = load(w + j), xj = load(x + j);
    V column = {};
#pragma GCC unroll 8
    for (int t = 0; t < kGroup; ++t) {
      double* const at = tiles + j * kGroup + t * kLanes;
      V a = load(at);
      if (kUpdate) {
        a = a - wi[t] * vj - vi[t] * wj;
        store(at, a);
      }
      acc[t] += a * xj;
      column = t ? column + a * xi[t] : a * xi[0];
    }
    store(part + j, load(part + j) + column);
  }
}

// The same of the tiles that the diagonal crosses, whose numbers right of it are not their own.
template <bool kUpdate>
inline void diagonal(double* tiles, int64_t i, const double* v, const double* w, const double* x, double* part,
                     V (&acc)[kGroup]) {
#pragma GCC unroll 4
  for (int64_t j = 0; j < kGroup; j += kLanes) {
    const V vj = load(v + i + j), wj = load(w + i + j), xj = load(x + i + j);
    V column = {};
#pragma GCC unroll 8
    for (int t = 0; t < kGroup; ++t) {
      double* const at = tiles + (i + j) * kGroup + t * kLanes;
      V a = load(at);
      if (kUpdate) {
        a = a - w[i + t] * vj - v[i + t] * wj;
        store(at, a);
      }
      const M number = lane_numbers() + j;
      acc[t] += keep(a, number <= t) * xj;
      column += keep(a, number < t) * x[i + t];
    }
    store(part + i + j, load(part + i + j) + column);
  }
}

// Of the leading r x r block B: B -= v w^T + w v^T if kUpdate; then y = B x. v, w and x are 0 from r on, up to the next
// multiple of 8; y is written up to there. part: scratch of the same length.
template <bool kUpdate>
inline void pass(double* a, int64_t r, const double* v, const double* w, const double* x, double* y, double* part) {
  for (int64_t first = 0; first < r; first += kColumnRun) {
    const int64_t last = first + kColumnRun < r ? first + kColumnRun : r;
    const int64_t columns = ceil_div(last, 8) * 8;
    for (int64_t j = 0; j < columns; ++j) part[j] = 0;
    for (int64_t i = first; i < last; i += kGroup) {
      double* const tiles = packed(a, i, 0);
      V total[kGroup] = {};
      for (int64_t j = 0; j < i; j += kRowRun * kLanes) {
        const int64_t end = j + kRowRun * kLanes < i ? j + kRowRun * kLanes : i;
        V acc[kGroup] = {};
        group<kUpdate>(tiles, i, j, end, v, w, x, part, acc);
#pragma GCC unroll 8
        for (int t = 0; t < kGroup; ++t) total[t] += acc[t];
      }
      diagonal<kUpdate>(tiles, i, v, w, x, part, total);
#pragma GCC unroll 4
      for (int t = 0; t < kGroup; t += kLanes) store(y + i + t, sums(total + t));
    }
    for (int64_t j = 0; j < columns; ++j) y[j] += part[j];
  }
}

// Reduces A (`packed`, destroyed; rows from m to the next multiple of 8 exist, are finite, and so is what lies right of
// the diagonal) to diagonal d[m] and off-diagonal e[m - 1], e[i] between i and i + 1. norm2: ||A||_F^2, up to a relative
// 1e-14 m. Numbers of A are at most 1, the largest at least 1/2. Returns a bound on the 2-norm of T - Q^T A Q for some
// exactly orthogonal Q. scratch: 5 rows of round_up(m, 8) + 8.
inline double tridiagonalize(double* a, int64_t m, double norm2, double* d, double* e, double* scratch) {
  const int64_t length = ceil_div(m, 8) * 8 + 8;
  double *v = scratch, *w = v + length, *next = w + length, *y = next + length, *part = y + length;
  for (int64_t j = 0; j < 4 * length; ++j) scratch[j] = 0;
  bool pending = false;
  double error = 0;
  // What is left of ||A||_F^2, which reflections keep up to the error so far (DevNotes.md).
  const double norm_F = sqrt(norm2), floor2 = norm2 * 1e-13 * static_cast<double>(m);
  double left2 = norm2;
  for (int64_t r = m - 1; r >= 0; --r) {
    const V wr = V{} + w[r], vr = V{} + v[r];
    for (int64_t j = 0; j <= r; j += kLanes) {
      const V x = load(packed(a, r, j));
      store(next + j, pending ? x - wr * load(v + j) - vr * load(w + j) : x);
    }
    d[r] = next[r];
    if (r == 0) break;
    for (int64_t j = r; j < ceil_div(r + 1, 8) * 8; ++j) next[j] = v[j] = w[j] = 0;
    const double squares = dot(next, next, r), last = next[r - 1];
    left2 -= d[r] * d[r] + 2 * squares;
    if (r == 1) {
      e[0] = last;
      continue;
    }
    const double f = sqrt((left2 > 0 ? left2 : 0) + floor2 + 3 * norm_F * error);
    if (squares < kNothing) {
      // Dropped: the row's norm is at most 2^-200, and so is the change in the 2-norm. What is pending stays so.
      e[r - 1] = 0;
      error += 0x1p-199;
      continue;
    }
    const double norm = sqrt(squares), tau = 1 / (norm * (norm + fabs(last)));
    e[r - 1] = last < 0 ? norm : -norm;
    next[r - 1] = last < 0 ? last - norm : last + norm;
    if (pending) pass<true>(a, r, v, w, next, y, part);
    else pass<false>(a, r, v, w, next, y, part);
    for (int64_t j = r; j < ceil_div(r, 8) * 8; ++j) y[j] = 0;
    for (int64_t j = 0; j < r; j += kLanes) store(y + j, load(y + j) * tau);
    const double alpha = 0.5 * tau * dot(y, next, r), size = dot(y, y, r);
    for (int64_t j = 0; j < r; j += kLanes) store(w + j, load(y + j) - alpha * load(next + j));
    double* const old = v;
    v = next;
    next = old;
    pending = true;
    // DevNotes.md, "The block": roundings of the product, of a dot product, of tau; ||v|| ||p||.
    const double k = pass_roundings(r), kd = dot_roundings(r), kt = kd / 2 + 6, h = sqrt(2 * size / tau);
    error += kU * (f * (2 * k + 2) + h * (2 * kd + 3 * kt + 10) + norm * (0.75 * kd + 7));
  }
  return 1.01 * error;
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
