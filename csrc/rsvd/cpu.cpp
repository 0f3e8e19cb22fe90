// Products with narrow blocks and test matrices, compiled once per instruction set (see common/simd.h: C headers and
// intrinsics only) and without contraction (see common/philox.h): where a fused multiply-add is wanted, it is asked for.
#include "rsvd/rsvd.h"

#include "common/philox.h"
#include "common/simd.h"
#include "rsvd/limits.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// A tile of kRows x kVectors vectors: 16 accumulators, 2 vectors and a broadcast of AVX-512's 32 registers, 8 of 16 else.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRows = 8, kVectors = 2, kColumns = 12;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRows = 4, kVectors = 2, kColumns = 6;
#else
constexpr int kVectorBytes = 16, kRows = 4, kVectors = 2, kColumns = 6;
#endif

template <class T, int64_t N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int64_t N>
using Vector = typename VectorOf<T, N>::type;
template <class T>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <class V, class T>
inline V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T>
inline void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

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

// (a, b) = (c a - s b, s a + c b)
inline void rotate(double* a, double* b, double c, double s, int64_t ld) {
  using V = Vector<double, kLanes<double>>;
  const V cosine = every<V>(c), sine = every<V>(s);
  for (int64_t i = 0; i < ld; i += kLanes<double>) {
    const V x = load<V>(a + i), y = load<V>(b + i);
    store(a + i, fma(cosine, x, -sine * y));
    store(b + i, fma(sine, x, cosine * y));
  }
}

#include "rsvd/small.h"

// ---- reading ----

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

// ---- y = a x ----

// to[count] = from, widened where T is wider.
template <class S, class T>
inline void widen_run(const S* from, int64_t count, T* to) {
  constexpr int64_t L = kLanes<T>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, __builtin_convertvector(load<Vector<S, L>>(from + i), Vector<T, L>));
  for (; i < count; ++i) to[i] = static_cast<T>(from[i]);
}

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

// ---- y = a x in float, of x in fours ----

// A vector of x has four terms each of L / 4 columns. So one load of four numbers of A serves all vectors of x, where a
// tile of times() that is one vector wide loads a number for each product; and columns are padded to L / 4 instead of L.
// Four vectors (or the N < 4 that are left) are the columns [j, j + L) (or N L / 4 of them): lanes 4 c + [0, 4) of vector
// n are column j + 4 c + n (or j + N c + n), which sums() brings into their order.

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

// ---- y = a x of packed x: in fours, or of doubles in padded rows (a vector may have but two of them) ----

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

// ---- z += a^T x ----

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

// ---- z = or += x^T a ----

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

// ---- tall blocks and small matrices, in double ----

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

// ---- test matrices ----

constexpr int64_t kRun = 16;  // counters at a time

inline void words(uint64_t seed, uint32_t stream, const uint64_t* rows, const uint32_t* quarters, uint32_t (*w)[kRun]) {
#if defined(__AVX512F__)
  // Products of even and of odd lanes: of 64-bit numbers the compiler would multiply all bits.
  using Wide = Vector<uint64_t, 8>;
  alignas(64) uint32_t low[kRun], high[kRun];
  for (int64_t i = 0; i < kRun; ++i) low[i] = static_cast<uint32_t>(rows[i]), high[i] = static_cast<uint32_t>(rows[i] >> 32);
  __m512i c[4] = {_mm512_load_si512(low), _mm512_load_si512(high), _mm512_loadu_si512(quarters),
                  _mm512_set1_epi32(static_cast<int>(stream))};
  const __m512i of[2] = {_mm512_set1_epi64(0xD2511F53), _mm512_set1_epi64(0xCD9E8D57)};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round, key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u) {
    __m512i bottom[2], top[2];
    for (int i = 0; i < 2; ++i) {
      const Wide even = (Wide)_mm512_maskz_mul_epu32(0xff, c[2 * i], of[i]);
      const Wide odd = (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)((Wide)c[2 * i] >> 32), of[i]);
      bottom[i] = _mm512_mask_blend_epi32(0xAAAA, (__m512i)even, (__m512i)(odd << 32));
      top[i] = _mm512_mask_blend_epi32(0xAAAA, (__m512i)(even >> 32), (__m512i)odd);
    }
    c[0] = _mm512_xor_si512(_mm512_xor_si512(top[1], c[1]), _mm512_set1_epi32(static_cast<int>(key[0])));
    c[2] = _mm512_xor_si512(_mm512_xor_si512(top[0], c[3]), _mm512_set1_epi32(static_cast<int>(key[1])));
    c[1] = bottom[1], c[3] = bottom[0];
  }
  for (int j = 0; j < 4; ++j) _mm512_storeu_si512(w[j], c[j]);
#else
  for (int64_t i = 0; i < kRun; ++i) {
    const philox::Words x = philox::words(seed, stream, rows[i], quarters[i]);
    w[0][i] = x.w[0], w[1][i] = x.w[1], w[2][i] = x.w[2], w[3][i] = x.w[3];
  }
#endif
}

inline void pairs(const uint32_t* length, const uint32_t* angle, float* first, float* second) {
  for (int64_t i = 0; i < kRun; ++i) {
    const philox::Pair pair = philox::normal_pair(length[i], angle[i]);
    first[i] = pair.first, second[i] = pair.second;
  }
}

template <class T>
void normal_or_sign(int64_t first, int64_t rows, int64_t columns, uint64_t seed, uint32_t stream, bool normal, T* to,
                    int64_t ld) {
  // Counters, row after row, kRun at a time: each step is a loop over them, which vectorises.
  const int64_t quarters = (columns + 3) / 4;
  int64_t row = 0, quarter = 0;
  while (row < rows) {
    int64_t place[kRun], left[kRun], count = 0;
    uint64_t rows_of[kRun] = {};
    uint32_t quarters_of[kRun] = {}, w[4][kRun];
    for (; count < kRun && row < rows; ++count) {
      place[count] = row * ld + 4 * quarter, left[count] = columns - 4 * quarter;
      rows_of[count] = static_cast<uint64_t>(first + row), quarters_of[count] = static_cast<uint32_t>(quarter);
      if (++quarter == quarters) quarter = 0, ++row;
    }
    words(seed, stream, rows_of, quarters_of, w);
    float found[4][kRun];
    if (normal) {
      pairs(w[0], w[1], found[0], found[1]);
      pairs(w[2], w[3], found[2], found[3]);
    } else {
      for (int64_t j = 0; j < 4; ++j)
        for (int64_t i = 0; i < kRun; ++i) found[j][i] = philox::sign(w[j][i]);
    }
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < 4 && j < left[i]; ++j) to[place[i] + j] = static_cast<T>(found[j][i]);
  }
}

template <class T>
void test_matrix(int64_t first, int64_t rows, int64_t columns, uint64_t seed, uint32_t stream, Kind kind, void* to,
                 int64_t ld) {
  T* const out = static_cast<T*>(to);
  if (columns == 0) return;
  if (kind != Kind::sparse_sign) {
    normal_or_sign(first, rows, columns, seed, stream, kind == Kind::gaussian, out, ld);
    return;
  }
  const int64_t blocks = philox::sparse_blocks(columns);
  const float value = static_cast<float>(1 / __builtin_sqrt(static_cast<double>(blocks)));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < columns; ++j) out[row * ld + j] = 0;
    for (int64_t quarter = 0; 4 * quarter < blocks; ++quarter) {
      const philox::Words x =
          philox::words(seed, stream, static_cast<uint64_t>(first + row), static_cast<uint32_t>(quarter));
      for (int64_t b = 4 * quarter; b < blocks && b < 4 * quarter + 4; ++b) {
        const int64_t start = philox::sparse_edge(b, columns), wide = philox::sparse_edge(b + 1, columns) - start;
        const uint32_t word = x.w[b % 4];
        out[row * ld + start + static_cast<int64_t>(word >> 1) % wide] = static_cast<T>(word & 1 ? -value : value);
      }
    }
  }
}

template <class T>
constexpr Kernels kKernels = {
    kLanes<T>, sizeof(T), widen<T>, copy<T>, times<T, T>, pack<T>, times_packed<T>, turned_columns<T>, upright<T>,
    turned<T, T>, times<float, T>, turned<float, T>, gram<T>, product<T>, difference<T>, residual<T>, squares<T>,
    distance<T>, sum<T>, largest, test_matrix<T>, orthonormaliser, eigen, congruence, multiply};

}  // namespace

extern const Kernels kDouble = kKernels<double>;
extern const Kernels kFloat = kKernels<float>;

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
