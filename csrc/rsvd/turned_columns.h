// z = or += x^T a, the transpose of a^T x, and how it is set upright.
#pragma once

#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Of J columns of x and C vectors of A, which is read in whole lines; or of what is left of its rows, `count` numbers.
template <class T, int J, int C, bool Some>
inline void columns_tile(const T* a, int64_t lda, int64_t count, int64_t rows, const T* x, int64_t width, T* z,
                         int64_t ldz, bool add) {
  constexpr int64_t L = kLanes<T>;
  using V = Vector<T, L>;
  V acc[J][C] = {};
  for (int64_t i = 0; i < rows; ++i) {
    V v[C];
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) v[c] = Some ? load_some(a + i * lda, count) : load<V>(a + i * lda + c * L);
#pragma GCC unroll 12
    for (int j = 0; j < J; ++j) {
      const V factor = every<V>(x[i * width + j]);
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) acc[j][c] = fma(v[c], factor, acc[j][c]);
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
      T* const to = z + j * ldz + c * L;
      store(to, add ? load<V>(to) + acc[j][c] : acc[j][c]);
    }
}

// J columns, of at most Most.
template <class T, int Most, int C, bool Some>
inline void columns_tiles(int64_t J, const T* a, int64_t lda, int64_t count, int64_t rows, const T* x, int64_t width,
                          T* z, int64_t ldz, bool add) {
  if constexpr (Most > 1)
    if (J < Most) return columns_tiles<T, Most - 1, C, Some>(J, a, lda, count, rows, x, width, z, ldz, add);
  columns_tile<T, Most, C, Some>(a, lda, count, rows, x, width, z, ldz, add);
}

template <class T>
void turned_columns(const void* data, int64_t lda, int64_t rows, int64_t depth, const void* block, int64_t width,
                    int64_t columns, void* result, int64_t ldz, bool add) {
  constexpr int64_t L = kLanes<T>;
  const T* const a = static_cast<const T*>(data);
  const T* const x = static_cast<const T*>(block);
  T* const z = static_cast<T*>(result);
  const int64_t groups = (columns + kColumns - 1) / kColumns;
  for (int64_t k = 0; k < depth;) {
    const int64_t left = depth - k;
    for (int64_t group = 0, j = 0; group < groups; ++group) {
      const int64_t some = (columns - j + groups - group - 1) / (groups - group);
      const T *const ak = a + k, *const xj = x + j;
      T* const to = z + j * ldz + k;
      if (left >= 2 * L) columns_tiles<T, kColumns, 2, false>(some, ak, lda, 0, rows, xj, width, to, ldz, add);
      else if (left >= L) columns_tiles<T, kColumns, 1, false>(some, ak, lda, 0, rows, xj, width, to, ldz, add);
      else columns_tiles<T, kColumns, 1, true>(some, ak, lda, left, rows, xj, width, to, ldz, add);
      j += some;
    }
    k += left >= 2 * L ? 2 * L : L;
  }
}

// The transpose of a square of vectors, by exchanging squares of H inside squares of 2 H.
template <class T, int H = static_cast<int>(kLanes<T>) / 2>
inline void transpose(Vector<T, kLanes<T>>* v) {
  constexpr int L = static_cast<int>(kLanes<T>);
  using V = Vector<T, L>;
  decltype(V{} < V{}) low, high;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) low[i] = i & H ? L + i - H : i, high[i] = i & H ? L + i : i + H;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if (i & H) continue;
    const V a = v[i], b = v[i + H];
    v[i] = __builtin_shuffle(a, b, low), v[i + H] = __builtin_shuffle(a, b, high);
  }
  if constexpr (H > 1) transpose<T, H / 2>(v);
}

template <class T>
void upright(const void* from, int64_t ldz, int64_t rows, int64_t columns, void* to, int64_t width) {
  constexpr int64_t L = kLanes<T>;
  const T* const z = static_cast<const T*>(from);
  T* const out = static_cast<T*>(to);
  for (int64_t i = 0; i < rows; i += L)
    for (int64_t j = 0; j < width; j += L) {
      Vector<T, L> v[L];
#pragma GCC unroll 16
      for (int64_t r = 0; r < L; ++r)
        v[r] = j + r < columns ? load<Vector<T, L>>(z + (j + r) * ldz + i) : Vector<T, L>{};
      transpose<T>(v);
#pragma GCC unroll 16
      for (int64_t r = 0; r < L; ++r)
        if (i + r < rows) store(out + (i + r) * width + j, v[r]);
    }
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
