// Tall blocks, 32 rows at a time in double: Gram matrices, products with small matrices, and norms of the columns that
// those leave.
#pragma once

#include "rsvd/limits.h"
#include "rsvd/times.h"
#include "rsvd/turned.h"
#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

constexpr int64_t kTall = 32;  // rows converted at a time: 32 x 64 doubles are 16 KiB

template <class T>
inline const double* as_double(const T* x, int64_t count, double* space) {
  if constexpr (sizeof(T) == 8) return x;
  widen_run(x, count, space);
  return space;
}

// Rows [k, k + R) of the lower triangle of x^T x: the vectors that begin left of its end.
template <int R>
inline void lower_rows(const double* x, int64_t k, int64_t rows, int64_t width, double* g) {
  constexpr int64_t L = kLanes<double>;
  int64_t j = 0;
  for (; j + L < k + R; j += 2 * L) turned_tile<double, R, 2>(x + k, width, rows, x + j, width, g + k * width + j);
  if (j < k + R) turned_tile<double, R, 1>(x + k, width, rows, x + j, width, g + k * width + j);
}

template <class T>
void gram(const void* block, int64_t rows, int64_t width, int64_t columns, double* g) {
  alignas(64) double space[kTall * kMaxWidth];
  const T* x = static_cast<const T*>(block);
  for (int64_t i = 0; i < rows; i += kTall) {
    const int64_t count = rows - i < kTall ? rows - i : kTall;
    const double* const xd = as_double(x + i * width, count * width, space);
    int64_t k = 0;
    for (; k + kRows / 2 < columns; k += kRows) lower_rows<kRows>(xd, k, count, width, g);  // (widths: whole vectors)
    if (k < columns) lower_rows<kRows / 2>(xd, k, count, width, g);
  }
}

template <class T, int R, int N>
inline void product_tile(const double* x, int64_t ldx, int64_t depth, const double* m, int64_t ld, int64_t columns, T* y,
                         int64_t ldy) {
  constexpr int64_t L = kLanes<double>;
  using V = Vector<double, L>;
  V acc[R][N] = {};
  Rows<double, R> rows(x, ldx);
  for (int64_t k = 0; k < depth; ++k, m += ld, rows.move(1)) {
    V factor[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) factor[n] = load<V>(m + n * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V each = every<V>(rows.at(r, 0));
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) acc[r][n] = fma(each, factor[n], acc[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n)
      store_some(y + r * ldy + n * L, __builtin_convertvector(acc[r][n], Vector<T, L>), columns - n * L);
}

template <class T, int R>
inline void product_rows(const double* x, int64_t ldx, int64_t depth, const double* m, int64_t ld, int64_t columns, T* y,
                         int64_t ldy) {
  constexpr int64_t L = kLanes<double>;
  int64_t j = 0;
  for (; j + L < columns; j += 2 * L) product_tile<T, R, 2>(x, ldx, depth, m + j, ld, columns - j, y + j, ldy);
  if (j < columns) product_tile<T, R, 1>(x, ldx, depth, m + j, ld, columns - j, y + j, ldy);
}

template <class T>
void product(const void* block, int64_t rows, int64_t width, const double* m, int64_t depth, int64_t ld, int64_t columns,
             void* result, int64_t ldy) {
  alignas(64) double space[kTall * kMaxWidth];
  const T* const x = static_cast<const T*>(block);
  T* const y = static_cast<T*>(result);
  for (int64_t i = 0; i < rows; i += kTall) {
    const int64_t count = rows - i < kTall ? rows - i : kTall;
    widen_run(x + i * width, count * width, space);  // doubles too: y may be x
    int64_t r = 0;
    for (; r + kRows <= count; r += kRows)
      product_rows<T, kRows>(space + r * width, width, depth, m, ld, columns, y + (i + r) * ldy, ldy);
    for (; r < count; ++r) product_rows<T, 1>(space + r * width, width, depth, m, ld, columns, y + (i + r) * ldy, ldy);
  }
}

template <class T>
void difference(const void* z, const void* v, int64_t rows, int64_t width, int64_t q, const double* x, const double* y,
                double* sums) {
  alignas(64) T found[kTall * kMaxWidth], first[kMaxWidth * kMaxWidth], second[kMaxWidth * kMaxWidth];
  for (int64_t i = 0; i < width * width; ++i) first[i] = static_cast<T>(x[i]), second[i] = static_cast<T>(-y[i]);
  for (int64_t i = 0; i < rows; i += kTall) {
    const int64_t count = rows - i < kTall ? rows - i : kTall;
    times<T, T>(static_cast<const T*>(z) + i * width, width, count, width, first, width, found, false);
    times<T, T>(static_cast<const T*>(v) + i * q, q, count, q, second, width, found, true);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t j = 0; j < width; ++j) {
        const double error = static_cast<double>(found[r * width + j]);
        sums[j] += error * error;
      }
  }
}

template <class T>
void residual(const void* block, int64_t width, const void* left, const double* s, int64_t rows, int64_t k,
              double* sums) {
  const T* const r = static_cast<const T*>(block);
  const T* const u = static_cast<const T*>(left);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < k; ++j) {
      const double error = static_cast<double>(r[i * width + j]) - static_cast<double>(u[i * k + j]) * s[j];
      sums[j] += error * error;
    }
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
