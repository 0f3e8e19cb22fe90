// How many eigenvalues of a symmetric matrix exceed a shift: the signs of D in L D L^T = P (G - shift I) P^T.
//
// Pivots are 1 x 1, the largest diagonal number of what is left each time, which is kept up to date as in a pivoted
// Cholesky factorisation. Worked on are the rows of U = L^T, so every inner loop is contiguous. Growth, which such
// pivots do not rule out, is not feared but measured: the slack comes from |L| |D| |L^T| as computed.
#pragma once

#include <math.h>

#include "small_eigh/small_eigh.h"
#include "small_eigh/vectors.h"

namespace fastrank {
namespace small_eigh {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Rows of U that update the rest at once, which is part of the bound too. Where the matrix leaves L2 its traffic counts.
inline int64_t panel_of(int64_t m) { return m <= 512 ? 16 : kMostPanel; }
#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTileVectors = 3;
#elif defined(__AVX2__)
constexpr int kTileRows = 4, kTileVectors = 3;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif
// Pivots below this share of the largest number are rounding noise: what is left is bounded instead of divided by.
constexpr double kNoise = 0x1p-56;

// a[r + t][c ...] -= sum over p < count of w[p][r + t] u[p][c ...], of N vectors of columns.
template <int N>
inline void update_tile(double* a, int64_t ld, const double* u, const double* w, int64_t count, int64_t r, int64_t c) {
  V acc[kTileRows][N] = {};
  for (int64_t p = 0; p < count; ++p) {
    V column[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) column[n] = load(u + p * ld + c + n * kLanes);
#pragma GCC unroll 8
    for (int t = 0; t < kTileRows; ++t) {
      const double x = w[p * ld + r + t];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[t][n] += x * column[n];
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTileRows; ++t)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      double* const to = a + (r + t) * ld + c + n * kLanes;
      store(to, load(to) - acc[t][n]);
    }
}

// Rows and columns from `first` on of the upper triangle; `first` may be anything, rows reach to `rows`, a multiple of
// 8, and numbers left of the diagonal are spoilt.
inline void update(double* a, int64_t ld, const double* u, const double* w, int64_t count, int64_t first,
                   int64_t rows) {
  for (int64_t r = first / kTileRows * kTileRows; r < rows; r += kTileRows)
    for (int64_t c = r / kLanes * kLanes; c < rows;) {
      const int64_t left = (rows - c) / kLanes;
      if (left >= kTileVectors) {
        update_tile<kTileVectors>(a, ld, u, w, count, r, c);
        c += kTileVectors * kLanes;
      } else {
        update_tile<1>(a, ld, u, w, count, r, c);
        c += kLanes;
      }
    }
}

inline void swap_numbers(double& a, double& b) {
  const double old = a;
  a = b;
  b = old;
}

// The largest |x[i]| for j <= i < m, and the first i that has it. From m to the next vector's end x is 0.
inline double largest_at(const double* x, int64_t j, int64_t m, int64_t* at) {
  V high = V{} - 1.0;
  M where = {};
  for (int64_t i = j / kLanes * kLanes; i < m; i += kLanes) {
    const M index = lane_numbers() + i;
    V size = magnitude(load(x + i));
    size = index >= j ? size : V{} - 1.0;
    where = size > high ? index : where;
    high = size > high ? size : high;
  }
  double most = -1;
  for (int l = 0; l < kLanes; ++l)
    if (high[l] > most || (high[l] == most && where[l] < *at)) most = high[l], *at = where[l];
  return most;
}

// Of A (the upper triangle of G - shift I in rows of stride ld, destroyed; rows and columns from m to the next multiple
// of 8 are 0): #{D > 0}, and by how much in the 2-norm P^T L D L^T P may differ from A. Numbers of A are at most 1.
// scratch: (kMostPanel + 4) ld.
inline double count_positive(double* a, int64_t ld, int64_t m, int64_t* positive, double* scratch) {
  const int64_t panel = panel_of(m);
  double *const w = scratch, *const diagonal = w + panel * ld, *const x = diagonal + ld, *const y = x + ld,
               *const pivots = y + ld;
  const int64_t rows = ceil_div(m, 8) * 8;
  for (int64_t i = 0; i < m; ++i) diagonal[i] = a[i * ld + i];
  for (int64_t i = m; i < rows; ++i) diagonal[i] = 0;
  for (int64_t j = 0; j < panel * ld; ++j) w[j] = 0;
  *positive = 0;
  double dropped = 0;
  int64_t done = 0;
  bool noise = false;
  while (done < m && !noise) {
    const int64_t first = done, end = first + panel < m ? first + panel : m;
    int64_t j = first;
    for (; j < end; ++j) {
      int64_t q = 0;
      const double most = largest_at(diagonal, j, m, &q);
      if (!(most > kNoise)) {
        noise = true;
        break;
      }
      if (q != j) {
        for (int64_t i = 0; i < j; ++i) swap_numbers(a[i * ld + j], a[i * ld + q]);
        for (int64_t p = 0; p < j - first; ++p) swap_numbers(w[p * ld + j], w[p * ld + q]);
        swap_numbers(a[j * ld + j], a[q * ld + q]);
        swap_numbers(diagonal[j], diagonal[q]);
        for (int64_t i = j + 1; i < q; ++i) swap_numbers(a[j * ld + i], a[i * ld + q]);
        for (int64_t i = q + 1; i < m; ++i) swap_numbers(a[j * ld + i], a[q * ld + i]);
      }
      double* const row = a + j * ld;
      const double pivot = diagonal[j];
      pivots[j] = pivot;
      *positive += pivot > 0;
      const double inverse = 1 / pivot;
      const int64_t from = (j + 1) / kLanes * kLanes;
      double* const weighted = w + (j - first) * ld;
      for (int64_t c = from; c < rows; c += kLanes) {
        V s = {};
        for (int64_t p = first; p < j; ++p) s += w[(p - first) * ld + j] * load(a + p * ld + c);
        const V top = load(row + c) - s, u = top * inverse, back = pivot * u;
        store(row + c, u);
        store(weighted + c, back);
        store(diagonal + c, load(diagonal + c) - back * u);
      }
      for (int64_t c = from; c <= j; ++c) weighted[c] = 0;
      row[j] = 1;
    }
    done = j;
    if (done == m || done == first) continue;
    // The tiles may begin above row `done`, in rows that are finished.
    for (int64_t p = 0; p < done - first; ++p)
      for (int64_t c = done / 8 * 8; c < done; ++c) w[p * ld + c] = 0;
    update(a, ld, a + first * ld, w, done - first, done, rows);
    // Not the running values: their roundings would grow with m.
    for (int64_t i = done; i < m; ++i) diagonal[i] = a[i * ld + i];
  }
  // What was not factorised counts as 0: its row sums bound its norm.
  if (done < m) {
    for (int64_t i = done; i < m; ++i) x[i] = 0;
    for (int64_t i = done; i < m; ++i) {
      x[i] += fabs(a[i * ld + i]);
      for (int64_t c = i + 1; c < m; ++c) {
        x[i] += fabs(a[i * ld + c]);
        x[c] += fabs(a[i * ld + c]);
      }
    }
    for (int64_t i = done; i < m; ++i) dropped = x[i] > dropped || x[i] != x[i] ? x[i] : dropped;
  }
  // The spectral radius of M = |L| |D| |L^T| is at most max (M x)_i / x_i for every positive x (Collatz); x after a few
  // products with M is close to the best.
  double radius = 0;
  for (int64_t i = 0; i < rows; ++i) x[i] = i < m;
  for (int round = 0; round < 3; ++round) {
    for (int64_t i = 0; i < rows; ++i) y[i] = 0;
    for (int64_t p = 0; p < done; ++p) {
      const double* const row = a + p * ld;
      const int64_t whole = ceil_div(p + 1, kLanes) * kLanes, edge = whole < m ? whole : m;
      double s = 0;
      for (int64_t c = p; c < edge; ++c) s += fabs(row[c]) * x[c];
      V some = {};
      for (int64_t c = whole; c < m; c += kLanes) some += magnitude(load(row + c)) * load(x + c);
      s = (s + sum(some)) * fabs(pivots[p]);
      for (int64_t c = p; c < edge; ++c) y[c] += fabs(row[c]) * s;
      for (int64_t c = whole; c < m; c += kLanes) store(y + c, load(y + c) + magnitude(load(row + c)) * s);
    }
    double most = 0, largest = 0;
    for (int64_t i = 0; i < m; ++i) {
      const double ratio = y[i] / x[i];
      most = ratio > most || ratio != ratio ? ratio : most;
      largest = y[i] > largest ? y[i] : largest;
    }
    radius = round == 0 || most < radius ? most : radius;
    // Small numbers keep x positive, and stop a zero from dividing.
    for (int64_t i = 0; i < m; ++i) x[i] = y[i] / largest + 0x1p-20;
    if (!(largest > 0)) break;
  }
  // DevNotes.md, "inertia": the roundings of one number of A.
  const double k = static_cast<double>(2 * panel + ceil_div(m, panel) + 10);
  const double slack = 1.01 * (k * kU * radius + dropped + kU) + 0x1p-500;
  return slack == slack ? slack : INFINITY;
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
