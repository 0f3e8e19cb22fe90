// Sums over whole matrices: of squares, of squared differences, and of partial results.
#pragma once

#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Of T's own squares at most kTerms join one sum, so that they err by (kTerms + 1) 2^-24, the norm by half of that.
template <class T>
double squares(const void* data, int64_t lda, int64_t rows, int64_t columns, double scale) {
  constexpr int64_t L = kLanes<T>, kChains = 4, kTerms = 4;
  using V = Vector<T, L>;
  using Wide = Vector<double, L>;
  const T unit = static_cast<T>(scale);
  Wide total = {};
  double rest = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const T* const a = static_cast<const T*>(data) + i * lda;
    int64_t j = 0;
    for (; j + kTerms * kChains * L <= columns; j += kTerms * kChains * L) {
      V sums[kChains] = {};
#pragma GCC unroll 4
      for (int64_t t = 0; t < kTerms; ++t)
#pragma GCC unroll 4
        for (int64_t c = 0; c < kChains; ++c) {
          const V x = load<V>(a + j + (t * kChains + c) * L) * every<V>(unit);
          sums[c] = fma(x, x, sums[c]);
        }
#pragma GCC unroll 4
      for (int64_t c = 0; c < kChains; ++c) total += __builtin_convertvector(sums[c], Wide);
    }
    for (; j + L <= columns; j += L) {
      const V x = load<V>(a + j) * every<V>(unit);
      total += __builtin_convertvector(x * x, Wide);
    }
    for (; j < columns; ++j) rest += static_cast<double>(a[j]) * scale * (static_cast<double>(a[j]) * scale);
  }
  for (int64_t l = 0; l < L; ++l) rest += total[l];
  return rest;
}

// As `squares`.
template <class T>
void distance(const void* left, int64_t ldx, const void* right, int64_t ldy, int64_t rows, int64_t columns,
              double* found) {
  constexpr int64_t L = kLanes<T>, kChains = 2, kTerms = 4;
  using V = Vector<T, L>;
  using Wide = Vector<double, L>;
  Wide apart = {}, norm = {};
  for (int64_t i = 0; i < rows; ++i) {
    const T* const x = static_cast<const T*>(left) + i * ldx;
    const T* const y = static_cast<const T*>(right) + i * ldy;
    int64_t j = 0;
    for (; j + kTerms * kChains * L <= columns; j += kTerms * kChains * L) {
      V between[kChains] = {}, size[kChains] = {};
#pragma GCC unroll 4
      for (int64_t t = 0; t < kTerms; ++t)
#pragma GCC unroll 2
        for (int64_t c = 0; c < kChains; ++c) {
          const int64_t at = j + (t * kChains + c) * L;
          const V a = load<V>(x + at), b = a - load<V>(y + at);
          between[c] = fma(b, b, between[c]);
          size[c] = fma(a, a, size[c]);
        }
#pragma GCC unroll 2
      for (int64_t c = 0; c < kChains; ++c) {
        apart += __builtin_convertvector(between[c], Wide);
        norm += __builtin_convertvector(size[c], Wide);
      }
    }
    for (; j < columns; ++j) {
      const double a = static_cast<double>(x[j]), b = a - static_cast<double>(y[j]);
      found[0] += b * b;
      found[1] += a * a;
    }
  }
  for (int64_t l = 0; l < L; ++l) found[0] += apart[l], found[1] += norm[l];
}

template <class T>
void sum(const void* from, int64_t parts, int64_t stride, int64_t count, void* to) {
  const T* const x = static_cast<const T*>(from);
  T* const y = static_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) {
    T total = x[i];
    for (int64_t p = 1; p < parts; ++p) total += x[p * stride + i];
    y[i] = total;
  }
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
