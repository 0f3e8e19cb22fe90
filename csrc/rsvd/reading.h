// Rows of a matrix of any type in T, blocks with their padding put on or taken off, and the largest number.
#pragma once

#include "common/philox.h"
#include "rsvd/rsvd.h"
#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

inline float from_bf16(uint16_t bits) { return philox::as_float(static_cast<uint32_t>(bits) << 16); }
inline float from_f16(uint16_t x) {
#if defined(__F16C__)
  return _cvtsh_ss(x);
#else
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16, magnitude = x & 0x7fffu;
  if (magnitude < 0x0400u) {  // zero and subnormals: a multiple of 2^-24
    const float f = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -f : f;
  }
  const uint32_t exponent = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  return philox::as_float(sign | ((magnitude << 13) + exponent));
#endif
}

template <class T>
void widen(const Matrix& a, int64_t row, int64_t count, void* to) {
  T* out = static_cast<T*>(to);
  for (int64_t i = row; i < row + count; ++i, out += a.columns) {
    const int64_t at = i * a.stride;
    const uint16_t* const bits = static_cast<const uint16_t*>(a.data) + at;
    switch (a.dtype) {
      case DType::f64:
        for (int64_t j = 0; j < a.columns; ++j) out[j] = static_cast<T>(static_cast<const double*>(a.data)[at + j]);
        break;
      case DType::f32:
        for (int64_t j = 0; j < a.columns; ++j) out[j] = static_cast<T>(static_cast<const float*>(a.data)[at + j]);
        break;
      case DType::bf16:
        for (int64_t j = 0; j < a.columns; ++j) out[j] = static_cast<T>(from_bf16(bits[j]));
        break;
      case DType::f16: {
        int64_t j = 0;
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4)
          for (; j + 16 <= a.columns; j += 16)
            _mm512_storeu_ps(out + j, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)(bits + j))));
#endif
        for (; j < a.columns; ++j) out[j] = static_cast<T>(from_f16(bits[j]));
        break;
      }
    }
  }
}

template <class T>
void copy(const void* block, int64_t ld, int64_t rows, int64_t columns, void* result, int64_t width) {
  [[maybe_unused]] constexpr int64_t L = kLanes<T>;
  const T* from = static_cast<const T*>(block);
  T* to = static_cast<T*>(result);
  for (int64_t i = 0; i < rows; ++i, from += ld, to += width) {
#if defined(__AVX512F__)
    for (int64_t j = 0; j < width; j += L) store_some(to + j, load_some(from + j, columns - j), width - j);
#else
    __builtin_memcpy(to, from, static_cast<uint64_t>(columns) * sizeof(T));
    for (int64_t j = columns; j < width; ++j) to[j] = 0;
#endif
  }
}

template <class In>
inline double largest_of(const In* p, int64_t count, double so_far) {
  for (int64_t j = 0; j < count; ++j) {
    const double x = static_cast<double>(p[j] < 0 ? -p[j] : p[j]);
    if (!(x <= so_far)) so_far = x <= 0x1.fffffffffffffp1023 ? x : __builtin_inf();
  }
  return so_far;
}

double largest(const Matrix& a, int64_t row, int64_t count) {
  double found = 0;
  for (int64_t i = row; i < row + count; ++i) {
    const int64_t at = i * a.stride;
    if (a.dtype == DType::f64) {
      found = largest_of(static_cast<const double*>(a.data) + at, a.columns, found);
    } else if (a.dtype == DType::f32) {
      found = largest_of(static_cast<const float*>(a.data) + at, a.columns, found);
    } else {
      for (int64_t j = 0; j < a.columns; ++j) {
        const uint16_t bits = static_cast<const uint16_t*>(a.data)[at + j];
        const float x = a.dtype == DType::bf16 ? from_bf16(bits) : from_f16(bits);
        found = largest_of(&x, 1, found);
      }
    }
  }
  return found;
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
