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
inline M load(const int64_t* p) {
  M v;
  __builtin_memcpy(&v, p, sizeof(M));
  return v;
}
inline void store(int64_t* p, M v) { __builtin_memcpy(p, &v, sizeof(M)); }

// log2(kLanes) roundings.
inline double sum(V v) {
  double x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) x[l] += x[l + half];
  return x[0];
}
constexpr int kSumRoundings = kLanes == 8 ? 3 : kLanes == 4 ? 2 : 1;

// The sums of kLanes vectors, of the same roundings each.
inline V sums(const V* v) {
#if defined(__AVX512F__)
  V u[4], w[2];
  for (int t = 0; t < 4; ++t)
    u[t] = __builtin_shuffle(v[2 * t], v[2 * t + 1], M{0, 8, 2, 10, 4, 12, 6, 14}) +
           __builtin_shuffle(v[2 * t], v[2 * t + 1], M{1, 9, 3, 11, 5, 13, 7, 15});
  for (int t = 0; t < 2; ++t)
    w[t] = __builtin_shuffle(u[2 * t], u[2 * t + 1], M{0, 1, 8, 9, 4, 5, 12, 13}) +
           __builtin_shuffle(u[2 * t], u[2 * t + 1], M{2, 3, 10, 11, 6, 7, 14, 15});
  return __builtin_shuffle(w[0], w[1], M{0, 1, 2, 3, 8, 9, 10, 11}) +
         __builtin_shuffle(w[0], w[1], M{4, 5, 6, 7, 12, 13, 14, 15});
#else
  V s = {};
  for (int l = 0; l < kLanes; ++l) s[l] = sum(v[l]);
  return s;
#endif
}

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
