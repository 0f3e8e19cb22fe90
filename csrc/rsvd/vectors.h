// What the kernels do with vectors, and the sizes of tiles; included by cpu.cpp's parts alone.
#pragma once

#include <stdint.h>

#include "common/simd.h"
#include "common/vectors.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// A tile of kRows x kVectors vectors: 16 accumulators, 2 vectors and a broadcast of AVX-512's 32 registers, 8 of 16 else.
#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 2, kColumns = 12;
#elif defined(__AVX2__)
constexpr int kRows = 4, kVectors = 2, kColumns = 6;
#else
constexpr int kRows = 4, kVectors = 2, kColumns = 6;
#endif

// The first `count` of p, and zeros.
template <class T>
inline Vector<T, kLanes<T>> load_some(const T* p, int64_t count) {
  constexpr int64_t L = kLanes<T>;
  using V = Vector<T, L>;
  if (count >= L) return load<V>(p);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << (count > 0 ? count : 0)) - 1;
  if constexpr (sizeof(T) == 4) return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
  else return (V)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
#else
  T some[L] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = p[i];
  return load<V>(some);
#endif
}

// The first `count` of v to p.
template <class T, class V>
inline void store_some(T* p, V v, int64_t count) {
  constexpr int64_t L = static_cast<int64_t>(sizeof(V) / sizeof(T));
  if (count >= L) return store(p, v);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << (count > 0 ? count : 0)) - 1;
  if constexpr (sizeof(V) == 32) _mm256_mask_storeu_ps(p, static_cast<__mmask8>(mask), (__m256)v);
  else if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), (__m512)v);
  else _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), (__m512d)v);
#else
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
#endif
}

// Every lane x. (A difference: x - 0 is x, so that it is a broadcast alone; 0 + x is not where x is -0, and would take
// an addition for each number of A.)
template <class V, class T>
inline V every(T x) {
  return x - V{};
}

// a b + c, fused where the processor can.
template <class V>
inline V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(c[0]) == 8) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  else return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  if constexpr (sizeof(c[0]) == 8) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  else return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// A vector of T from as many S. GCC splits __builtin_convertvector of floats into halves, which took a quarter of times().
template <class S, class T>
inline Vector<T, kLanes<T>> widened(const S* from) {
  constexpr int64_t L = kLanes<T>;
#if defined(__AVX512F__)
  // The unmasked form makes GCC 12 warn about its own header.
  if constexpr (sizeof(S) == 4 && sizeof(T) == 8)
    return (Vector<T, L>)_mm512_maskz_cvtps_pd(0xff, (__m256)load<Vector<S, L>>(from));
#endif
  using V = Vector<T, L>;
  return __builtin_convertvector(load<Vector<S, L>>(from), V);
}

// to[count] = from, widened where T is wider.
template <class S, class T>
inline void widen_run(const S* from, int64_t count, T* to) {
  constexpr int64_t L = kLanes<T>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, widened<S, T>(from + i));
  for (; i < count; ++i) to[i] = static_cast<T>(from[i]);
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
