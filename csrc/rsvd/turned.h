// z += a^T x, of x in padded rows.
#pragma once

#include "rsvd/rsvd.h"
#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

template <class T, int R, int N>
inline void turned_tile(const T* a, int64_t lda, int64_t rows, const T* x, int64_t width, T* z) {
  constexpr int64_t L = kLanes<T>;
  using V = Vector<T, L>;
  V acc[R][N] = {};
  for (int64_t i = 0; i < rows; ++i) {
    V b[N];
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) b[n] = load<V>(x + i * width + n * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V factor = every<V>(a[i * lda + r]);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) acc[r][n] = fma(factor, b[n], acc[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      T* const to = z + r * width + n * L;
      store(to, load<V>(to) + acc[r][n]);
    }
}

template <class T, int R>
inline void turned_rows(const T* a, int64_t lda, int64_t rows, const T* x, int64_t width, T* z) {
  constexpr int64_t L = kLanes<T>;
  int64_t j = 0;
  for (; j + kVectors * L <= width; j += kVectors * L)
    turned_tile<T, R, kVectors>(a, lda, rows, x + j, width, z + j);
  for (; j < width; j += L) turned_tile<T, R, 1>(a, lda, rows, x + j, width, z + j);
}

template <class S, class T>
void turned(const void* data, int64_t lda, int64_t rows, int64_t depth, const void* block, int64_t width,
            void* result) {
  const S* const a = static_cast<const S*>(data);
  const T* const x = static_cast<const T*>(block);
  T* const z = static_cast<T*>(result);
  if constexpr (sizeof(S) == sizeof(T)) {
    int64_t k = 0;
    for (; k + kRows <= depth; k += kRows) turned_rows<T, kRows>(a + k, lda, rows, x, width, z + k * width);
    for (; k < depth; ++k) turned_rows<T, 1>(a + k, lda, rows, x, width, z + k * width);
  } else {
    // A line of each row at a time, and what comes next of all of them, which is more than the processor looks ahead for.
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(S)), lines = 4;
    alignas(64) T wide[kBlockRows * line];
    for (int64_t first = 0; first < depth; first += line) {
      const int64_t columns = depth - first < line ? depth - first : line;
      for (int64_t i = 0; i < rows; ++i) {
        __builtin_prefetch(a + i * lda + first + lines * line, 0, 2);
        widen_run(a + i * lda + first, columns, wide + i * line);
      }
      turned<T, T>(wide, line, rows, columns, x, width, z + first * width);
    }
  }
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
