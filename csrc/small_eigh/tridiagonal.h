// Householder reduction to tridiagonal form, with a running bound on its rounding.
//
// Rows are eliminated from the last to the first, so what is left is always the leading block: its rows start at column
// 0, aligned, and the row to eliminate lies contiguous. The rank-2 update of one step and the product that the next
// step needs are one pass over the block, which is thus read and written once per step.
#pragma once

#include <math.h>

#include "small_eigh/vectors.h"

namespace fastrank {
namespace small_eigh {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

constexpr int64_t kGroup = 4;  // rows at once: each vector of columns is loaded once for all of them
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

// One group of rows and the vectors [j, end) of columns; kDiagonal: the lanes right of a row's diagonal are not its own.
template <bool kUpdate, bool kDiagonal>
inline void group(double* const (&row)[kGroup], int64_t i, int64_t j, int64_t end, const double* v, const double* w,
                  const double* x, double* part, V (&acc)[kGroup]) {
  V vi[kGroup], wi[kGroup], xi[kGroup];  // here, or each store would make the compiler read them again
#pragma GCC unroll 4
  for (int t = 0; t < kGroup; ++t) {
    vi[t] = V{} + v[i + t];
    wi[t] = V{} + w[i + t];
    xi[t] = V{} + x[i + t];
  }
  for (; j < end; j += kLanes) {
    const V vj = load(v + j), wj = load(w + j), xj = load(x + j);
    V column = {};
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; ++t) {
      V a = load(row[t] + j);
      if (kUpdate) {
        a = a - wi[t] * vj - vi[t] * wj;
        store(row[t] + j, a);
      }
      if (kDiagonal) {
        const M at = lane_numbers() + j;
        acc[t] += keep(a, at <= i + t) * xj;
        a = keep(a, at < i + t);
      } else {
        acc[t] += a * xj;
      }
      column = t ? column + a * xi[t] : a * xi[0];
    }
    store(part + j, load(part + j) + column);
  }
}

// Of the leading r x r block B: B -= v w^T + w v^T if kUpdate; then y = B x. v, w and x are 0 from r on, up to the next
// multiple of 8; y is written up to there. part: scratch of the same length.
template <bool kUpdate>
inline void pass(double* a, int64_t ld, int64_t r, const double* v, const double* w, const double* x, double* y,
                 double* part) {
  for (int64_t first = 0; first < r; first += kColumnRun) {
    const int64_t last = first + kColumnRun < r ? first + kColumnRun : r;
    const int64_t columns = ceil_div(last, 8) * 8;
    for (int64_t j = 0; j < columns; ++j) part[j] = 0;
    for (int64_t i = first; i < last; i += kGroup) {
      double* const row[kGroup] = {a + i * ld, a + (i + 1) * ld, a + (i + 2) * ld, a + (i + 3) * ld};
      V total[kGroup] = {};
      const int64_t whole = i / kLanes * kLanes;
      for (int64_t j = 0; j < whole; j += kRowRun * kLanes) {
        const int64_t end = j + kRowRun * kLanes < whole ? j + kRowRun * kLanes : whole;
        V acc[kGroup] = {};
        group<kUpdate, false>(row, i, j, end, v, w, x, part, acc);
#pragma GCC unroll 4
        for (int t = 0; t < kGroup; ++t) total[t] += acc[t];
      }
      group<kUpdate, true>(row, i, whole, i + kGroup, v, w, x, part, total);
      for (int t = 0; t < kGroup; ++t) y[i + t] = sum(total[t]);
    }
    for (int64_t j = 0; j < columns; ++j) y[j] += part[j];
  }
}

// Reduces A (destroyed; rows from m to the next multiple of 8 exist, are finite, and so is what lies right of the
// diagonal up to there) to diagonal d[m] and off-diagonal e[m - 1], e[i] between i and i + 1. norm2: ||A||_F^2, up to a
// relative 1e-13 m. Numbers of A are at most 1, the largest at least 1/2. Returns a bound on the 2-norm of T - Q^T A Q for
// some exactly orthogonal Q. scratch: 6 rows of round_up(m, 8) + 8.
inline double tridiagonalize(double* a, int64_t ld, int64_t m, double norm2, double* d, double* e, double* scratch) {
  const int64_t length = ceil_div(m, 8) * 8 + 8;
  double *v = scratch, *w = v + length, *next = w + length, *y = next + length, *part = y + length;
  for (int64_t j = 0; j < 4 * length; ++j) scratch[j] = 0;
  bool pending = false;
  double error = 0;
  // What is left of ||A||_F^2, which reflections keep up to 1e-12 m of it (DevNotes.md).
  const double floor2 = norm2 * 1e-12 * static_cast<double>(m);
  double left2 = norm2 + floor2;
  for (int64_t r = m - 1; r >= 0; --r) {
    double* const row = a + r * ld;
    if (pending)
      for (int64_t j = 0; j <= r; ++j) row[j] = row[j] - w[r] * v[j] - v[r] * w[j];
    d[r] = row[r];
    if (r == 0) break;
    for (int64_t j = 0; j < r; ++j) next[j] = row[j];
    for (int64_t j = r; j < ceil_div(r + 1, 8) * 8; ++j) next[j] = v[j] = w[j] = 0;
    const double squares = dot(next, next, r), last = next[r - 1];
    const double off2 = r == 1 ? last * last : squares;
    left2 -= d[r] * d[r] + 2 * off2;
    if (r == 1) {
      e[0] = last;
      if (pending) a[0] = a[0] - w[0] * v[0] - v[0] * w[0];
      pending = false;
      continue;
    }
    const double f = sqrt(left2 > 0 ? left2 + floor2 : floor2);
    if (squares < kNothing) {
      // Dropped: the row's norm is at most 2^-200, and so is the change in the 2-norm. What is pending is still due.
      e[r - 1] = 0;
      error += 0x1p-199;
      for (int64_t j = 0; j < r; ++j) next[j] = 0;
      if (pending) {
        pass<true>(a, ld, r, v, w, next, y, part);
        pending = false;
      }
      continue;
    }
    const double norm = sqrt(squares), tau = 1 / (norm * (norm + fabs(last)));
    e[r - 1] = last < 0 ? norm : -norm;
    next[r - 1] = last < 0 ? last - norm : last + norm;
    if (pending) pass<true>(a, ld, r, v, w, next, y, part);
    else pass<false>(a, ld, r, v, w, next, y, part);
    for (int64_t j = r; j < ceil_div(r, 8) * 8; ++j) y[j] = 0;
    for (int64_t j = 0; j < r; ++j) y[j] *= tau;
    const double alpha = 0.5 * tau * dot(y, next, r);
    for (int64_t j = 0; j < r; ++j) w[j] = y[j] - alpha * next[j];
    double* const old = v;
    v = next;
    next = old;
    pending = true;
    // DevNotes.md, "one step": roundings of the product, of a dot product, of tau.
    const double k = pass_roundings(r), kd = dot_roundings(r), kt = kd / 2 + 6;
    error += kU * (f * (2 * (k + kt + 1) + 4 * (kd + kt + 3) + 8) + norm * (0.75 * kd + 7));
  }
  return 1.01 * error;
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
