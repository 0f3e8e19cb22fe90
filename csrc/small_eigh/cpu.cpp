// Eigenvalues and counts of one matrix, compiled once per instruction set (see common/simd.h).
#include "small_eigh/small_eigh.h"

#include <math.h>

#include "small_eigh/jacobi.h"
#include "small_eigh/ldlt.h"
#include "small_eigh/sturm.h"
#include "small_eigh/tridiagonal.h"
#include "small_eigh/vectors.h"

namespace fastrank {
namespace small_eigh {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// The largest magnitude in the lower triangle; NaN where a number is not finite.
inline double largest(const double* g, int64_t ld, int64_t m) {
  double most = 0;
  for (int64_t i = 0; i < m; ++i) {
    const double* const row = g + i * ld;
    V high = {}, off = {};
    int64_t j = 0;
    for (; j + kLanes <= i + 1; j += kLanes) {
      const V x = load(row + j), size = magnitude(x);
      high = size > high ? size : high;
      off += x - x;  // NaN of Inf and NaN
    }
    double bad = sum(off);
    for (int l = 0; l < kLanes; ++l) most = high[l] > most ? high[l] : most;
    for (; j <= i; ++j) {
      most = fabs(row[j]) > most ? fabs(row[j]) : most;
      bad += row[j] - row[j];
    }
    if (bad != 0) return NAN;
  }
  return most;
}

double values(const double* g, int64_t ld, int64_t m, double* out, double* workspace) {
  const double most = largest(g, ld, m);
  if (!(most > 0)) {
    for (int64_t i = 0; i < m; ++i) out[i] = most;
    return most;
  }
  if (m == 1) {
    out[0] = g[0];
    return 0;
  }
  // By a power of two, so that squares neither overflow nor vanish.
  int exponent;
  frexp(most, &exponent);
  const int half = exponent / 2;
  const double once = ldexp(1.0, -half), twice = ldexp(1.0, half - exponent);
  const int64_t rows = ceil_div(m, 8) * 8;
  double* const a = workspace;
  double* const scratch = a + packed_size(m);
  double norm2 = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t columns = ceil_div(i + 1, kGroup) * kGroup;
    const double* const from = g + i * ld;
    V s = {};
    double squares = 0, last = 0;
    for (int64_t j = 0; j < columns; j += kLanes) {
      V x = {};
      if (i < m && j + kLanes <= i) {
        x = load(from + j) * once * twice;
        s += x * x;
      } else if (i < m) {
        for (int64_t c = j; c < j + kLanes && c <= i; ++c) {
          last = from[c] * once * twice;
          x[c - j] = last;
          squares += c < i ? last * last : 0;
        }
      }
      store(packed(a, i, j), x);
    }
    norm2 += 2 * (squares + sum(s)) + last * last;
  }
  const int64_t length = ceil_div(m, 8) * 8 + 8;
  double *const d = scratch, *const e = d + length;
  const double reduced = tridiagonalize(a, m, norm2, d, e + 1, e + length);
  e[0] = 0;
  for (int64_t i = 1; i < m; ++i) e[i] = e[i] * e[i] > kLeast ? e[i] * e[i] : kLeast;
  const double found = bisect(d, e, m, out, e + length);
  for (int64_t i = 0; i < m; ++i) out[i] = ldexp(out[i], exponent);
  if (out[0] - out[0] != 0 || out[m - 1] - out[m - 1] != 0) return INFINITY;  // beyond the largest double
  // What scaling lost to underflow, of G and of the values, is less than the last term.
  return ldexp(1.01 * (reduced + found), exponent) + static_cast<double>(m) * 0x1p-1022;
}

double inertia(const double* g, int64_t ld, int64_t m, double shift, int64_t* count, double* workspace) {
  double most = largest(g, ld, m);
  *count = -1;
  if (most != most || shift - shift != 0) return INFINITY;
  most = fabs(shift) > most ? fabs(shift) : most;
  *count = 0;
  if (!(most > 0)) return 0;
  int exponent;
  frexp(most, &exponent);
  ++exponent;  // the diagonal of G - shift I can be twice as large
  const int half = exponent / 2;
  const double once = ldexp(1.0, -half), twice = ldexp(1.0, half - exponent);
  const int64_t step = leading(m), rows = ceil_div(m, 8) * 8;
  double* const a = workspace;
  for (int64_t j = 0; j < rows * step; ++j) a[j] = 0;
  // Transposed in tiles whose rows stay in L1.
  constexpr int64_t kTile = 16;
  for (int64_t i0 = 0; i0 < m; i0 += kTile)
    for (int64_t j0 = 0; j0 <= i0; j0 += kTile)
      for (int64_t i = i0; i < i0 + kTile && i < m; ++i)
        for (int64_t j = j0; j < j0 + kTile && j <= i; ++j) a[j * step + i] = g[i * ld + j] * once * twice;
  const double scaled = shift * once * twice;
  for (int64_t i = 0; i < m; ++i) a[i * step + i] -= scaled;
  const double slack = count_positive(a, step, m, count, a + rows * step);
  return ldexp(slack, exponent) + static_cast<double>(m) * 0x1p-1022;
}

void vectors(const double* g, int64_t ld, int64_t m, double* out, double* q, double* workspace) {
  const double most = largest(g, ld, m);
  if (most != most) {
    for (int64_t i = 0; i < m; ++i) out[i] = NAN;
    for (int64_t i = 0; i < m * m; ++i) q[i] = NAN;
    return;
  }
  int exponent = 0;
  if (most > 0) frexp(most, &exponent);
  const int half = exponent / 2;
  const double once = ldexp(1.0, -half), twice = ldexp(1.0, half - exponent);
  const int64_t step = leading(m);
  double *const a = workspace, *const rows = a + m * step;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = m; j < step; ++j) a[i * step + j] = 0;
    for (int64_t j = 0; j <= i; ++j) a[i * step + j] = a[j * step + i] = g[i * ld + j] * once * twice;
  }
  jacobi(a, rows, step, m);
  int64_t order[kMostVectors];
  for (int64_t i = 0; i < m; ++i) {
    int64_t at = i;
    const double value = a[i * step + i];
    for (; at > 0 && a[order[at - 1] * step + order[at - 1]] > value; --at) order[at] = order[at - 1];
    order[at] = i;
  }
  for (int64_t j = 0; j < m; ++j) {
    out[j] = ldexp(a[order[j] * step + order[j]], exponent);
    for (int64_t i = 0; i < m; ++i) q[i * m + j] = rows[order[j] * step + i];
  }
}

}  // namespace

extern const Kernels kKernels = {values, inertia, vectors};

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
