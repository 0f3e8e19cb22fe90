// y = a x of packed x: of doubles in padded rows (a vector may have but two of them), of floats in fours.
//
// In fours, a vector of x has four terms each of L / 4 columns. So one load of four numbers of A serves all vectors of x,
// where a tile of times() that is one vector wide loads a number for each product; and columns are padded to L / 4
// instead of L. Four vectors (or the N < 4 that are left) are the columns [j, j + L) (or N L / 4 of them): lanes
// 4 c + [0, 4) of vector n are column j + 4 c + n (or j + N c + n), which sums() brings into their order.
#pragma once

#include "rsvd/rsvd.h"
#include "rsvd/times.h"
#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

constexpr int kFloats = static_cast<int>(kLanes<float>);
using Floats = Vector<float, kFloats>;
using Places = Vector<int32_t, kFloats>;

inline int64_t vectors_of(int64_t columns) { return (4 * (columns > 0 ? columns : 1) + kFloats - 1) / kFloats; }

// p[0 .. 3], over and over.
inline Floats every_four(const float* p) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(p));
#elif defined(__AVX2__)
  return (Floats)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  return load<Floats>(p);
#endif
}

// In each four lanes: those of a and b at `First`, `Second` and so on; from 4 on they are b's.
template <int First, int Second, int Third, int Fourth>
inline Floats mixed(Floats a, Floats b) {
  constexpr int from[4] = {First, Second, Third, Fourth};
  Places order;
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) order[i] = i / 4 * 4 + from[i % 4] % 4 + from[i % 4] / 4 * kFloats;
  return __builtin_shuffle(a, b, order);
}

// Lane 4 c + n: the four lanes from 4 c on of v[n], added up.
template <int N>
inline Floats sums(const Floats* v) {
  const Floats zero = {};
  const Floats b = N > 1 ? v[N > 1] : zero, c = N > 2 ? v[N > 2 ? 2 : 0] : zero, d = N > 3 ? v[N > 3 ? 3 : 0] : zero;
  const Floats ab = mixed<0, 4, 1, 5>(v[0], b) + mixed<2, 6, 3, 7>(v[0], b);  // a0 b0 a1 b1 + a2 b2 a3 b3
  const Floats cd = mixed<0, 4, 1, 5>(c, d) + mixed<2, 6, 3, 7>(c, d);
  return mixed<0, 1, 4, 5>(ab, cd) + mixed<2, 3, 6, 7>(ab, cd);
}

// Lane 4 c + n becomes lane N c + n, for n < N; behind them zeros.
template <int N>
inline Floats closed(Floats v) {
  Places order;
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) order[i] = i < N * kFloats / 4 ? i / N * 4 + i % N : kFloats;
  return N < 4 ? __builtin_shuffle(v, Floats{}, order) : v;
}

// And back, zeros for n >= N.
template <int N>
inline Floats spread(Floats v) {
  Places order;
#pragma GCC unroll 16
  for (int i = 0; i < kFloats; ++i) order[i] = i % 4 < N ? i / 4 * N + i % 4 : kFloats;
  return N < 4 ? __builtin_shuffle(v, Floats{}, order) : v;
}

// `ahead`: as in times_tile().
template <int R, int N>
inline void fours_tile(const float* a, int64_t lda, int64_t depth, const float* x, int64_t ldx, float* y, int64_t width,
                       bool add, const float* ahead) {
  constexpr int64_t line = 16;
  Floats acc[R][N] = {};
  const auto terms = [&](const float* from, int64_t ld) __attribute__((always_inline)) {
    Floats each[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) each[r] = every_four(from + r * ld);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const Floats factor = load<Floats>(x + n * kFloats);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][n] = fma(each[r], factor, acc[r][n]);
    }
    x += ldx;
  };
  int64_t k = 0;
  for (; k + line <= depth; k += line) {
    if (ahead)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) __builtin_prefetch(ahead + r * lda + k, 0, 2);
#pragma GCC unroll 4
    for (int64_t t = 0; t < line; t += 4) terms(a + k + t, lda);
  }
  for (; k + 4 <= depth; k += 4) terms(a + k, lda);
  if (k < depth) {
    float rest[R * 4] = {};
    for (int r = 0; r < R; ++r)
      for (int64_t t = k; t < depth; ++t) rest[4 * r + t - k] = a[r * lda + t];
    terms(rest, 4);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const Floats total = closed<N>(sums<N>(acc[r]));
    store(y + r * width, add ? load<Floats>(y + r * width) + total : total);
  }
}

template <int R>
inline void fours_rows(const float* a, int64_t lda, int64_t depth, const float* x, int64_t vectors, float* y,
                       int64_t width, bool add, const float* ahead) {
  const int64_t ldx = vectors * kFloats;
  for (; vectors >= 4; vectors -= 4, x += 4 * kFloats, y += kFloats, ahead = nullptr)
    fours_tile<R, 4>(a, lda, depth, x, ldx, y, width, add, ahead);
  if (vectors == 3) fours_tile<R, 3>(a, lda, depth, x, ldx, y, width, add, ahead);
  if (vectors == 2) fours_tile<R, 2>(a, lda, depth, x, ldx, y, width, add, ahead);
  if (vectors == 1) fours_tile<R, 1>(a, lda, depth, x, ldx, y, width, add, ahead);
}

inline void fours(const float* a, int64_t lda, int64_t rows, int64_t depth, const float* x, int64_t vectors, float* y,
                  int64_t width) {
  constexpr int R = kRows / 2;
  for (int64_t k = 0; k < depth || k == 0; k += kDepth) {
    const int64_t terms = depth - k < kDepth ? depth - k : kDepth;
    const float* const ahead = a + (k + kDepth < depth ? k + kDepth : rows * lda);  // as in times()
    const float* const part = x + k / 4 * vectors * kFloats;
    int64_t i = 0;
    for (; i + R <= rows; i += R)
      fours_rows<R>(a + i * lda + k, lda, terms, part, vectors, y + i * width, width, k, ahead + i * lda);
    for (; i < rows; ++i)
      fours_rows<1>(a + i * lda + k, lda, terms, part, vectors, y + i * width, width, k, ahead + i * lda);
  }
}

template <int N>
inline void pack_vectors(const Floats* rows, float* to) {
  Floats x[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) x[r] = spread<N>(rows[r]);
  const Floats low01 = mixed<0, 4, 1, 5>(x[0], x[1]), low23 = mixed<0, 4, 1, 5>(x[2], x[3]);
  const Floats high01 = mixed<2, 6, 3, 7>(x[0], x[1]), high23 = mixed<2, 6, 3, 7>(x[2], x[3]);
  const Floats found[4] = {mixed<0, 1, 4, 5>(low01, low23), mixed<2, 3, 6, 7>(low01, low23),
                           mixed<0, 1, 4, 5>(high01, high23), mixed<2, 3, 6, 7>(high01, high23)};
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) store(to + n * kFloats, found[n]);
}

inline void pack_fours(const float* from, int64_t ld, int64_t rows, int64_t columns, float scale, float* to) {
  const Floats factor = every<Floats>(scale);
  for (int64_t i = 0; i < rows; i += 4) {
    int64_t j = 0;
    for (int64_t vectors = vectors_of(columns); vectors > 0; vectors -= 4, j += kFloats) {
      Floats x[4] = {};
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r)
        if (i + r < rows) x[r] = load_some(from + (i + r) * ld + j, columns - j) * factor;
      if (vectors >= 4) pack_vectors<4>(x, to);
      else if (vectors == 3) pack_vectors<3>(x, to);
      else if (vectors == 2) pack_vectors<2>(x, to);
      else pack_vectors<1>(x, to);
      to += (vectors < 4 ? vectors : 4) * kFloats;
    }
  }
}

template <class T>
void pack(const void* block, int64_t ld, int64_t rows, int64_t columns, double scale, void* packed) {
  const T* const from = static_cast<const T*>(block);
  T* const to = static_cast<T*>(packed);
  if constexpr (sizeof(T) == 4) {
    pack_fours(from, ld, rows, columns, static_cast<float>(scale), to);
  } else {
    constexpr int64_t L = kLanes<T>;
    const int64_t width = columns > 0 ? (columns + L - 1) / L * L : L;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < width; j += L)
        store(to + i * width + j, load_some(from + i * ld + j, columns - j) * every<Vector<T, L>>(scale));
  }
}

template <class T>
void times_packed(const void* a, int64_t lda, int64_t rows, int64_t depth, const void* packed, int64_t columns, void* y,
                  int64_t width) {
  if constexpr (sizeof(T) == 4)
    fours(static_cast<const T*>(a), lda, rows, depth, static_cast<const T*>(packed), vectors_of(columns),
          static_cast<T*>(y), width);
  else times<T, T>(a, lda, rows, depth, packed, width, y, false);
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
