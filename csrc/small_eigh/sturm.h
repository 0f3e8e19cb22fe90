// Eigenvalues of a symmetric tridiagonal matrix by bisection on Sturm counts, many shifts at a time.
//
// The count comes from signs of the leading principal minors p_i of T - x I, which obey p_i = (d_i - x) p_{i-1} -
// e_{i-1}^2 p_{i-2}: no division. A computed sequence is the exact one of a T whose entries differ by a few roundings
// (DevNotes.md), so each count is exact for a matrix within `sturm_error` of T, and an interval between two counts
// holds the eigenvalue, up to that.
#pragma once

#include <math.h>

#include "small_eigh/vectors.h"

namespace fastrank {
namespace small_eigh {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Vectors of shifts at once, to fill the time that a step of one of them takes.
#if defined(__AVX512F__)
constexpr int kShiftVectors = 4;
#else
constexpr int kShiftVectors = 3;
#endif
constexpr int kShifts = kShiftVectors * kLanes;
// Between two rescalings p neither overflows nor vanishes (DevNotes.md; m <= 2^14).
constexpr int64_t kScaled = 6;
constexpr double kLeast = 0x1p-120;

// count[s] = #{eigenvalues of T below x[s]}. e2[i] couples i - 1 and i; e2[0] is 0.
inline void sturm_counts(const double* d, const double* e2, int64_t m, const double* x, int64_t* count) {
  V shift[kShiftVectors], p[kShiftVectors], before[kShiftVectors];
  M changes[kShiftVectors];
#pragma GCC unroll 4
  for (int s = 0; s < kShiftVectors; ++s) {
    shift[s] = load(x + s * kLanes);
    p[s] = V{} + 1.0;
    before[s] = V{};
    changes[s] = M{};
  }
  for (int64_t first = 0; first < m; first += kScaled) {
    const int64_t last = first + kScaled < m ? first + kScaled : m;
    for (int64_t i = first; i < last; ++i) {
      const double di = d[i], ei = e2[i];
#pragma GCC unroll 4
      for (int s = 0; s < kShiftVectors; ++s) {
        const V q = (di - shift[s]) * p[s] - ei * before[s];
        before[s] = p[s];
        p[s] = q;
        const M crossed = (M)q ^ (M)before[s];
        changes[s] += (crossed >> 63);  // -1 where the sign changed
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < kShiftVectors; ++s) {
      // By a power of two, from the exponent of the larger of the two: 2^(1023 + 1023 - exponent) has field
      // 2046 - field.
      const M exponents = M{} + (int64_t{0x7ff} << 52);
      const M fp = (M)p[s] & exponents, fb = (M)before[s] & exponents;
      const M field = fp > fb ? fp : fb;
      const V scale = (V)((M{} + (int64_t{2046} << 52)) - field);
      p[s] *= scale;
      before[s] *= scale;
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < kShiftVectors; ++s)
    for (int l = 0; l < kLanes; ++l) count[s * kLanes + l] = -changes[s][l];
}

// values[m] of T, ascending; e2 as above, at least kLeast. Returns a bound on |values[i] - lambda_i(T)|. scratch: 2 (m
// + 2 kShifts) numbers.
inline double bisect(const double* d, const double* e2, int64_t m, double* values, double* scratch) {
  double low = d[0], high = d[0], most = 0, e_most = 0;
  for (int64_t i = 0; i < m; ++i) {
    const double left = i ? sqrt(e2[i]) : 0, right = i + 1 < m ? sqrt(e2[i + 1]) : 0, reach = left + right;
    low = d[i] - reach < low ? d[i] - reach : low;
    high = d[i] + reach > high ? d[i] + reach : high;
    most = fabs(d[i]) > most ? fabs(d[i]) : most;
    e_most = right > e_most ? right : e_most;
  }
  // Gershgorin's discs, past their own rounding.
  const double pad = 8 * kU * (most + 2 * e_most) + 0x1p-1000;
  low -= pad;
  high += pad;
  const double extent = fabs(low) > fabs(high) ? fabs(low) : fabs(high);
  const double width = 2 * kU * extent;

  // A grid first, which every eigenvalue shares.
  const int64_t padded = ceil_div(m, kShifts) * kShifts;
  double* const grid = scratch;
  int64_t* const below = reinterpret_cast<int64_t*>(scratch + padded);
  for (int64_t g = 0; g < padded; ++g) grid[g] = low + (high - low) * (static_cast<double>(g + 1) / static_cast<double>(padded + 1));
  for (int64_t g = 0; g < padded; g += kShifts) sturm_counts(d, e2, m, grid + g, below + g);

  double widest = 0;
  int64_t at = 0;
  for (int64_t first = 0; first < m; first += kShifts) {
    double lo[kShifts], hi[kShifts], x[kShifts];
    int64_t count[kShifts];
    for (int s = 0; s < kShifts; ++s) {
      const int64_t k = first + s < m ? first + s : m - 1;
      while (at < padded && below[at] <= k) ++at;
      lo[s] = at ? grid[at - 1] : low;
      hi[s] = at < padded ? grid[at] : high;
    }
    for (int pass = 0; pass < 64; ++pass) {
      bool open = false;
      for (int s = 0; s < kShifts; ++s) {
        x[s] = 0.5 * (lo[s] + hi[s]);
        open |= hi[s] - lo[s] > width && x[s] > lo[s] && x[s] < hi[s];
      }
      if (!open) break;
      sturm_counts(d, e2, m, x, count);
      for (int s = 0; s < kShifts; ++s) {
        const int64_t k = first + s < m ? first + s : m - 1;
        if (count[s] <= k) lo[s] = x[s];
        else hi[s] = x[s];
      }
    }
    for (int s = 0; s < kShifts && first + s < m; ++s) {
      values[first + s] = 0.5 * (lo[s] + hi[s]);
      widest = hi[s] - lo[s] > widest ? hi[s] - lo[s] : widest;
    }
  }
  for (int64_t k = 1; k < m; ++k) values[k] = values[k] < values[k - 1] ? values[k - 1] : values[k];
  return 1.01 * (0.5 * widest + kU * extent + 3 * kU * (most + extent + e_most) + 0x1p-59);
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
