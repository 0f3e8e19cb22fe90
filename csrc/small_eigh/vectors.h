// Vectors of doubles, as wide as the instruction set has them; included by cpu.cpp's parts alone.
#pragma once

#include <stdint.h>

#include "common/simd.h"

namespace fastrank {
namespace small_eigh {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

typedef double V __attribute__((vector_size(kLanes * sizeof(double))));
typedef int64_t M __attribute__((vector_size(kLanes * sizeof(int64_t))));  // a mask, or integers

constexpr double kU = 0x1p-53;  // unit roundoff

inline V load(const double* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
inline void store(double* p, V v) { __builtin_memcpy(p, &v, sizeof(V)); }

// log2(kLanes) roundings.
inline double sum(V v) {
  double x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) x[l] += x[l + half];
  return x[0];
}
constexpr int kSumRoundings = kLanes == 8 ? 3 : kLanes == 4 ? 2 : 1;

// 0, 1, 2, ...
inline M lane_numbers() {
  M v = {};
  for (int l = 0; l < kLanes; ++l) v[l] = l;
  return v;
}
// v where the lane's bits are set, else 0.
inline V keep(V v, M mask) {
  M bits;
  __builtin_memcpy(&bits, &v, sizeof(V));
  bits &= mask;
  __builtin_memcpy(&v, &bits, sizeof(V));
  return v;
}

inline V magnitude(V v) { return keep(v, M{} + INT64_MAX); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// a^T b over [0, n), both zero from n to the next vector's end; four running sums, dot_roundings(n) roundings.
inline double dot(const double* a, const double* b, int64_t n) {
  V s[4] = {};
  int64_t j = 0;
  for (; j + 4 * kLanes <= n; j += 4 * kLanes)
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) s[q] += load(a + j + q * kLanes) * load(b + j + q * kLanes);
  for (int q = 0; j < n; j += kLanes, ++q) s[q] += load(a + j) * load(b + j);
  return sum((s[0] + s[1]) + (s[2] + s[3]));
}
inline double dot_roundings(int64_t n) {
  return static_cast<double>(ceil_div(n, 4 * kLanes) + 1 + 2 + kSumRoundings);  // 1: products, where they are not fused
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
