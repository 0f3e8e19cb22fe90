// y = a x, of x in padded rows.
#pragma once

#include "rsvd/rsvd.h"
#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Where the rows of a tile are: two pointers and two strides, which all addresses follow from. Of a pointer for each row
// the compiler would keep half in vector registers, and fetch them from there, in the place of products, for each term.
template <class T, int R>
struct Rows {
  const char *low, *high;
  int64_t one, three;
  Rows(const T* a, int64_t lda)
      : low(reinterpret_cast<const char*>(a)), one(lda * static_cast<int64_t>(sizeof(T))), three(3 * one) {
    high = R > 4 ? low + 4 * one : low;
  }
  void move(int64_t terms) {
    low += terms * static_cast<int64_t>(sizeof(T)), high += terms * static_cast<int64_t>(sizeof(T));
    __asm__("" : "+r"(low), "+r"(high));  // or they become a pointer for each row again
  }
  T at(int r, int term) const {
    const char* const p = (r < 4 ? low : high) + (r % 4 == 0 ? 0 : r % 4 == 1 ? one : r % 4 == 2 ? 2 * one : three);
    return reinterpret_cast<const T*>(p)[term];
  }
};

// A tile one vector wide has as many sums at work: of every other term. Numbers that are narrower than T are widened a
// line at a time, into memory that stays in the cache. `ahead`: what follows a's rows in the order of times(), asked for
// while these are worked on; rows are read in pieces too short for the processor to see what comes.
template <class S, class T, int R, int N>
inline void times_tile(const S* a, int64_t lda, int64_t depth, const T* x, int64_t width, T* y, bool add,
                       const S* ahead) {
  constexpr int64_t L = kLanes<T>, line = 64 / static_cast<int64_t>(sizeof(S));
  constexpr int C = kVectors / N;
  constexpr bool same = sizeof(S) == sizeof(T);
  using V = Vector<T, L>;
  V acc[C][R][N] = {};
  alignas(64) T wide[same ? 1 : R * line];
  for (int64_t first = 0; first < depth; first += line) {
    const int64_t terms = depth - first < line ? depth - first : line;
    if (ahead)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) __builtin_prefetch(ahead + r * lda + first, 0, 2);
    const T* from;
    if constexpr (same) {
      from = a + first;
    } else {
      if (terms == line)  // a count that the compiler knows
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) widen_run(a + r * lda + first, line, wide + r * line);
      else
        for (int r = 0; r < R; ++r) widen_run(a + r * lda + first, terms, wide + r * line);
      from = wide;
    }
    Rows<T, R> rows(from, same ? lda : line);
    const T* b = x + first * width;
    const auto term = [&](int k, V (&sums)[R][N]) __attribute__((always_inline)) {
      V factor[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) factor[n] = load<V>(b + n * L);
      b += width;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V each = every<V>(rows.at(r, k));
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sums[r][n] = fma(each, factor[n], sums[r][n]);
      }
    };
    int64_t k = 0;
    for (; k + 2 <= terms; k += 2, rows.move(2)) {
      term(0, acc[0]);
      term(1, acc[C - 1]);
    }
    if (k < terms) term(0, acc[0]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      T* const to = y + r * width + n * L;
      V total = acc[0][r][n];
#pragma GCC unroll 2
      for (int c = 1; c < C; ++c) total += acc[c][r][n];
      store(to, add ? load<V>(to) + total : total);
    }
}

template <class S, class T, int R>
inline void times_rows(const S* a, int64_t lda, int64_t depth, const T* x, int64_t width, T* y, bool add,
                       const S* ahead) {
  constexpr int64_t L = kLanes<T>;
  int64_t j = 0;
  for (; j + kVectors * L <= width; j += kVectors * L) {
    times_tile<S, T, R, kVectors>(a, lda, depth, x + j, width, y + j, add, ahead);
    ahead = nullptr;
  }
  for (; j < width; j += L) {
    times_tile<S, T, R, 1>(a, lda, depth, x + j, width, y + j, add, ahead);
    ahead = nullptr;
  }
}

template <class S, class T>
void times(const void* data, int64_t lda, int64_t rows, int64_t depth, const void* block, int64_t width, void* result,
           bool add) {
  const S* const a = static_cast<const S*>(data);
  const T* const x = static_cast<const T*>(block);
  T* const y = static_cast<T*>(result);
  for (int64_t k = 0; k < depth || k == 0; k += kDepth) {
    const int64_t terms = depth - k < kDepth ? depth - k : kDepth;
    // The next terms of these rows, or the first of those below (where there are none, nothing comes of it).
    const S* const ahead = a + (k + kDepth < depth ? k + kDepth : rows * lda);
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows)
      times_rows<S, T, kRows>(a + i * lda + k, lda, terms, x + k * width, width, y + i * width, add || k,
                              ahead + i * lda);
    for (; i < rows; ++i)
      times_rows<S, T, 1>(a + i * lda + k, lda, terms, x + k * width, width, y + i * width, add || k, ahead + i * lda);
  }
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
