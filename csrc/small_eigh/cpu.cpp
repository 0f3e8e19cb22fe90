// Eigenvalues and counts of one matrix, compiled once per instruction set (see common/simd.h).
#include "small_eigh/small_eigh.h"

#include <math.h>

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
      const V x = load(row + j), size = keep(x, M{} + INT64_MAX);
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
  const int64_t step = leading(m), rows = ceil_div(m, 8) * 8;
  double* const a = workspace;
  double* const scratch = a + rows * step;
  double norm2 = 0;
  for (int64_t i = 0; i < rows; ++i) {
    double* const to = a + i * step;
    double squares = 0;
    if (i < m) {
      const double* const from = g + i * ld;
      for (int64_t j = 0; j <= i; ++j) to[j] = from[j] * once * twice;
      V s = {};
      int64_t j = 0;
      for (; j + kLanes <= i; j += kLanes) s += load(to + j) * load(to + j);
      squares = sum(s);
      for (; j < i; ++j) squares += to[j] * to[j];
      norm2 += 2 * squares + to[i] * to[i];
    }
    for (int64_t j = i < m ? i + 1 : 0; j < step; ++j) to[j] = 0;
  }
  const int64_t length = ceil_div(m, 8) * 8 + 8;
  double *const d = scratch, *const e = d + length;
  const double reduced = tridiagonalize(a, step, m, norm2, d, e + 1, e + length);
  e[0] = 0;
  for (int64_t i = 1; i < m; ++i) e[i] = e[i] * e[i] > kLeast ? e[i] * e[i] : kLeast;
  const double found = bisect(d, e, m, out, e + length);
  for (int64_t i = 0; i < m; ++i) out[i] = ldexp(out[i], exponent);
  // What scaling lost to underflow, of G and of the values, is less than the last term.
  return ldexp(1.01 * (reduced + found), exponent) + static_cast<double>(m) * 0x1p-1022;
}

}  // namespace

extern const Kernels kKernels = {values};

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
