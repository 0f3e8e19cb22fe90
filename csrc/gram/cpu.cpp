// Packing and the micro-kernel, compiled once per instruction set (see common/simd.h: C headers and intrinsics only).
//
// Written with the compiler's vector types, so one text serves every set: only the register-tile constants differ.
// Both operands of a Gram product come from the same matrix, so one packed form serves both: a panel of `lanes`
// columns is read as vectors where it stands for columns of C, and number by number where it stands for rows.
#include "gram/gram.h"

#include "common/simd.h"
#include "common/vectors.h"
#include "gram/patches.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastrank {
namespace gram {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Register tile: kRows rows (broadcast) times up to kVectors vectors of columns. 8 x 3 accumulators, 3 column vectors
// and a broadcast fill 28 of AVX-512's 32 registers; 4 x 3 + 4 fill AVX2's 16; 4 x 2 + 3 fit SSE2 and NEON.
#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 3;
#elif defined(__AVX2__)
constexpr int kRows = 4, kVectors = 3;
#else
constexpr int kRows = 4, kVectors = 2;
#endif

// Packing works on units of as many columns as a vector holds doubles: shift and sums are fp64 in both modes.
constexpr int U = kLanes<double>;

// Converts the U numbers of a unit. GCC splits __builtin_convertvector between these types into halves, which took a
// third of the packing time.
template <class To, class V>
inline Vector<To, U> convert(V v) {
  if constexpr (sizeof(V) == U * sizeof(To)) {
    return v;
  } else {
#if defined(__AVX512F__)
    // The unmasked forms make GCC 12 warn about its own header.
    if constexpr (sizeof(To) == 8) return (Vector<To, U>)_mm512_maskz_cvtps_pd(0xff, (__m256)v);
    else return (Vector<To, U>)_mm512_maskz_cvtpd_ps(0xff, (__m512d)v);
#elif defined(__AVX2__)
    if constexpr (sizeof(To) == 8) return (Vector<To, U>)_mm256_cvtps_pd((__m128)v);
    else return (Vector<To, U>)_mm256_cvtpd_ps((__m256d)v);
#else
    return __builtin_convertvector(v, Vector<To, U>);
#endif
  }
}

// ---- reading: every element type gives `Wide`, which holds it exactly ----

struct Bf16 { uint16_t bits; };
struct F16 { uint16_t bits; };

inline float widen(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
inline float widen(F16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude < 0x0400u) {  // zero and subnormals: a multiple of 2^-24
    const float f = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -f : f;
  }
  const uint32_t exponent = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const uint32_t bits = sign | ((magnitude << 13) + exponent);
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
#endif
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

template <class In>
using Wide = decltype(widen(In{}));

template <class In>
inline Vector<Wide<In>, U> load_wide(const In* p) {
  return load<Vector<Wide<In>, U>>(p);
}
template <>
inline Vector<float, U> load_wide(const Bf16* p) {
  const auto bits = __builtin_convertvector(load<Vector<uint16_t, U>>(p), Vector<uint32_t, U>) << 16;
  return load<Vector<float, U>>(&bits);
}
template <>
inline Vector<float, U> load_wide(const F16* p) {
#if defined(__AVX512F__)
  return (Vector<float, U>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__F16C__)
  return (Vector<float, U>)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  Vector<float, U> v;
  for (int l = 0; l < U; ++l) v[l] = widen(p[l]);
  return v;
#endif
}

// The first `count` of U numbers, the others 0; nothing behind them is read.
template <class In>
inline Vector<Wide<In>, U> load_wide_some(const In* p, int count) {
  Vector<Wide<In>, U> v = {};
  for (int l = 0; l < count; ++l) v[l] = widen(p[l]);
  return v;
}
#if defined(__AVX512F__)
inline __mmask8 first_lanes(int count) { return static_cast<__mmask8>((1u << count) - 1); }
template <>
inline Vector<double, U> load_wide_some(const double* p, int count) {
  return (Vector<double, U>)_mm512_maskz_loadu_pd(first_lanes(count), p);
}
template <>
inline Vector<float, U> load_wide_some(const float* p, int count) {
  return (Vector<float, U>)_mm256_maskz_loadu_ps(first_lanes(count), p);
}
#endif

// ---- transposing a U x U block, for matrices whose rows are the contiguous direction ----

#if defined(__clang__)
#define FASTRANK_SHUFFLE(a, b, M, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FASTRANK_SHUFFLE(a, b, M, ...) __builtin_shuffle(a, b, (M){__VA_ARGS__})
#endif

// One butterfly: swaps the off-diagonal H x H blocks of every 2H x 2H block.
#define FASTRANK_BUTTERFLY(H, LOW, HIGH)                                  \
  for (int r = 0; r < U; ++r)                                             \
    if (!(r & (H))) {                                                     \
      const V a = v[r], b = v[r + (H)];                                   \
      v[r] = FASTRANK_SHUFFLE(a, b, M, FASTRANK_UNWRAP LOW);              \
      v[r + (H)] = FASTRANK_SHUFFLE(a, b, M, FASTRANK_UNWRAP HIGH);       \
    }
#define FASTRANK_UNWRAP(...) __VA_ARGS__

template <class W>
struct IntegerLike { typedef int32_t type; };
template <>
struct IntegerLike<double> { typedef int64_t type; };

template <class W>
inline void transpose(Vector<W, U> (&v)[U]) {
  using V = Vector<W, U>;
  using M = Vector<typename IntegerLike<W>::type, U>;
#if defined(__AVX512F__)
  static_assert(U == 8, "the masks below are for 8 lanes");
  FASTRANK_BUTTERFLY(1, (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15))
  FASTRANK_BUTTERFLY(2, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
  FASTRANK_BUTTERFLY(4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
#elif defined(__AVX2__)
  static_assert(U == 4, "the masks below are for 4 lanes");
  FASTRANK_BUTTERFLY(1, (0, 4, 2, 6), (1, 5, 3, 7))
  FASTRANK_BUTTERFLY(2, (0, 1, 4, 5), (2, 3, 6, 7))
#else
  static_assert(U == 2, "the masks below are for 2 lanes");
  FASTRANK_BUTTERFLY(1, (0, 2), (1, 3))
#endif
}

// ---- packing ----

// Takes the U columns of one unit through shift, sum and conversion into the packed row.
template <class T, bool kAffine>
struct Sink {
  Vector<double, U> shift, sum;

  template <class V>  // V: a vector of U floats or doubles
  inline void put(V x, T* out) {
    if constexpr (kAffine) {
      const Vector<double, U> y = convert<double>(x) - shift;
      sum += y;
      store(out, convert<T>(y));
    } else {
      store(out, convert<T>(x));
    }
  }
};

// Packs `run` rows that are stride_inner apart; `valid` of the unit's U columns exist, the others become zeros.
template <class T, bool kAffine, class In>
inline void pack_run(const In* p, int64_t run, int64_t stride_inner, int64_t stride_column, int valid, T* out,
                     Sink<T, kAffine>& sink) {
  constexpr int64_t L = kLanes<T>;
  using V = Vector<Wide<In>, U>;
  int64_t k = 0;
  if (stride_column == 1) {
    if (valid == U)
      for (; k < run; ++k) sink.put(load_wide(p + k * stride_inner), out + k * L);
    for (; k < run; ++k) sink.put(load_wide_some(p + k * stride_inner, valid), out + k * L);
  } else if (valid == U && stride_inner == 1) {
    for (; k + U <= run; k += U) {
      V v[U];
      for (int l = 0; l < U; ++l) v[l] = load_wide(p + k + l * stride_column);
      transpose<Wide<In>>(v);
      for (int l = 0; l < U; ++l) sink.put(v[l], out + (k + l) * L);
    }
  }
  for (; k < run; ++k) {
    V v = {};
    for (int l = 0; l < valid; ++l) v[l] = widen(p[k * stride_inner + l * stride_column]);
    sink.put(v, out + k * L);
  }
}

// Units packed side by side, where the matrix's rows are contiguous: whole cache lines of a row are used up before the
// next row, on another page as often as not, is touched. Their shifts and sums fit in the registers.
constexpr int kUnits = kVectorBytes == 64 ? 8 : 4;

template <class T, bool kAffine, class In>
inline void pack_rows(const In* p, int64_t run, int64_t stride_inner, T* const (&out)[kUnits],
                      Sink<T, kAffine> (&sinks)[kUnits], int64_t at) {
  for (int64_t k = 0; k < run; ++k, p += stride_inner) {
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u) sinks[u].put(load_wide(p + u * U), out[u] + (at + k) * kLanes<T>);
  }
}

template <class T, bool kAffine, class In>
void pack_typed(const Matrix& a, const double* shift, int64_t row, int64_t count, int64_t first, int64_t last,
                T* packed, int64_t panel_stride, double* sums) {
  constexpr int64_t L = kLanes<T>;
  int64_t column = first * L;
  if (a.stride_column == 1) {
    const int64_t whole = last * L < a.columns ? last * L : a.columns;
    for (; column + kUnits * U <= whole; column += kUnits * U) {
      T* out[kUnits];
      Sink<T, kAffine> sinks[kUnits] = {};
      for (int u = 0; u < kUnits; ++u) {
        out[u] = packed + (column + u * U) / L * panel_stride + (column + u * U) % L;
        if (kAffine && shift) sinks[u].shift = load<Vector<double, U>>(shift + column + u * U);
      }
      for (int64_t k = 0; k < count;) {
        const int64_t outer = (row + k) / a.inner, inner = (row + k) % a.inner;
        const int64_t run = count - k < a.inner - inner ? count - k : a.inner - inner;
        const In* p = static_cast<const In*>(a.data) + outer * a.stride_outer + inner * a.stride_inner;
        pack_rows(p + column, run, a.stride_inner, out, sinks, k);
        k += run;
      }
      if (kAffine && sums)
        for (int u = 0; u < kUnits; ++u) store(sums + column + u * U, sinks[u].sum);
    }
  }
  for (; column < last * L; column += U) {
    T* const out = packed + column / L * panel_stride + column % L;
    const int64_t left = a.columns - column;
    const int valid = static_cast<int>(left >= U ? U : left > 0 ? left : 0);
    Sink<T, kAffine> sink = {};
    if (kAffine && shift)
      for (int l = 0; l < valid; ++l) sink.shift[l] = shift[column + l];
    for (int64_t k = 0; k < count;) {
      const int64_t outer = (row + k) / a.inner, inner = (row + k) % a.inner;
      const int64_t run = count - k < a.inner - inner ? count - k : a.inner - inner;
      const In* p = static_cast<const In*>(a.data) + outer * a.stride_outer + inner * a.stride_inner;
      pack_run(p + column * a.stride_column, run, a.stride_inner, a.stride_column, valid, out + k * L, sink);
      k += run;
    }
    if (kAffine && sums)
      for (int l = 0; l < valid; ++l) sums[column + l] = sink.sum[l];
  }
}

template <class T>
void pack(const Matrix& a, const double* shift, int64_t row, int64_t count, int64_t first, int64_t last, void* packed,
          int64_t panel_stride, double* sums) {
  T* out = static_cast<T*>(packed);
  const bool affine = shift || sums;
  switch (a.dtype) {
#define FASTRANK_PACK(TAG, In)                                                                            \
  case DType::TAG:                                                                                        \
    return affine ? pack_typed<T, true, In>(a, shift, row, count, first, last, out, panel_stride, sums)   \
                  : pack_typed<T, false, In>(a, shift, row, count, first, last, out, panel_stride, sums);
    FASTRANK_PACK(f64, double)
    FASTRANK_PACK(f32, float)
    FASTRANK_PACK(bf16, Bf16)
    FASTRANK_PACK(f16, F16)
#undef FASTRANK_PACK
  }
}

// As pack_typed. Patches overlap, but every number of them is read from the image on its own: at stride 1 the kernel of
// patch_schedule.h packs the image itself.
template <class T, class In>
void pack_patches_typed(const Patches& a, const double* shift, int64_t row, int64_t count, int64_t first, int64_t last,
                        T* packed, int64_t panel_stride, double* sums) {
  constexpr int64_t L = kLanes<T>, kRun = 128;
  using W = Wide<In>;
  using V = Vector<W, U>;
  const int64_t columns = a.columns(), taps = a.taps(), height = a.outputs(0), width = a.outputs(1);
  for (int64_t column = first * L; column < last * L; column += U) {
    T* const out = packed + column / L * panel_stride + column % L;
    const int64_t left = columns - column;
    const int valid = static_cast<int>(left >= U ? U : left > 0 ? left : 0);
    Sink<T, true> sink = {};
    int64_t channel[U] = {}, dy[U] = {}, dx[U] = {};
    for (int l = 0; l < valid; ++l) {
      const int64_t tap = (column + l) % taps;
      channel[l] = (column + l) / taps;
      dy[l] = tap / a.kernel[1] * a.dilation[0] - a.pad[0];
      dx[l] = tap % a.kernel[1] * a.dilation[1] - a.pad[1];
      if (shift) sink.shift[l] = shift[column + l];
    }
    W numbers[U][kRun] = {};
    for (int64_t k = 0; k < count;) {
      const int64_t ox = (row + k) % width, oy = (row + k) / width % height, slot = (row + k) / width / height;
      const int64_t group = slot % a.groups, image = slot / a.groups;
      int64_t run = count - k < width - ox ? count - k : width - ox;
      if (run > kRun) run = kRun;
      for (int l = 0; l < valid; ++l) {
        const int64_t y = oy * a.step[0] + dy[l], x = ox * a.step[1] + dx[l];
        const In* p = static_cast<const In*>(a.data) + image * a.stride_image +
                      (group * a.channels + channel[l]) * a.stride_channel + y * a.stride[0];
        for (int64_t t = 0; t < run; ++t) {
          const int64_t at = x + t * a.step[1];
          numbers[l][t] = y >= 0 && y < a.size[0] && at >= 0 && at < a.size[1] ? widen(p[at * a.stride[1]]) : W(0);
        }
      }
      int64_t t = 0;
      for (; t + U <= run; t += U) {
        V v[U];
        for (int l = 0; l < U; ++l) v[l] = load<V>(&numbers[l][t]);
        transpose<W>(v);
        for (int l = 0; l < U; ++l) sink.put(v[l], out + (k + t + l) * L);
      }
      for (; t < run; ++t) {
        V v;
        for (int l = 0; l < U; ++l) v[l] = numbers[l][t];
        sink.put(v, out + (k + t) * L);
      }
      k += run;
    }
    if (sums)
      for (int l = 0; l < valid; ++l) sums[column + l] = sink.sum[l];
  }
}

template <class T>
void pack_patches(const Patches& a, const double* shift, int64_t row, int64_t count, int64_t first, int64_t last,
                  void* packed, int64_t panel_stride, double* sums) {
  T* out = static_cast<T*>(packed);
  switch (a.dtype) {
    case DType::f64: return pack_patches_typed<T, double>(a, shift, row, count, first, last, out, panel_stride, sums);
    case DType::f32: return pack_patches_typed<T, float>(a, shift, row, count, first, last, out, panel_stride, sums);
    case DType::bf16: return pack_patches_typed<T, Bf16>(a, shift, row, count, first, last, out, panel_stride, sums);
    case DType::f16: return pack_patches_typed<T, F16>(a, shift, row, count, first, last, out, panel_stride, sums);
  }
}

// ---- multiplying ----

template <class T, int N>
inline void add_products(const T* rows, const T* columns, int64_t panel_stride, int64_t k, Vector<T, kLanes<T>> (&acc)[kRows][N]) {
  constexpr int64_t L = kLanes<T>;
  using V = Vector<T, L>;
  V b[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) b[n] = load<V>(columns + n * panel_stride + k * L);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const T a = rows[r / L * panel_stride + k * L + r % L];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[r][n] += a * b[n];
  }
}

// Rows [i, i + kRows) of C times N vectors of columns from j on; rows at or beyond `edge` are not stored.
template <class T, int N>
inline void tile(const T* rows, const T* columns, int64_t panel_stride, int64_t count, int64_t i, int64_t j,
                 int64_t edge, double* c, int64_t ldc, bool add) {
  constexpr int64_t L = kLanes<T>;
  using V = Vector<T, L>;
  V acc[kRows][N] = {};
  int64_t k = 0;
  if (i + kRows <= edge && count >= kRows) {
    double* out = c + i * ldc + j;
    for (; k < kRows; ++k, out += ldc) {
#pragma GCC unroll 8
      for (int n = 0; n < N * L / 8; ++n) __builtin_prefetch(out + n * 8, 1);
      add_products<T, N>(rows, columns, panel_stride, k, acc);
    }
  }
  for (; k < count; ++k) add_products<T, N>(rows, columns, panel_stride, k, acc);
  T buffer[kRows][N * L];
  __builtin_memcpy(buffer, acc, sizeof(buffer));
  const bool whole = i + kRows <= edge && i - j + 1 >= N * L;
  for (int r = 0; r < kRows && i + r < edge; ++r) {
    double* out = c + (i + r) * ldc + j;
    if (whole) {  // of a width that the compiler knows
      if (add)
        for (int64_t l = 0; l < N * L; ++l) out[l] += static_cast<double>(buffer[r][l]);
      else
        for (int64_t l = 0; l < N * L; ++l) out[l] = static_cast<double>(buffer[r][l]);
      continue;
    }
    const int64_t width = i + r - j + 1 < N * L ? i + r - j + 1 : N * L;  // up to the diagonal
    if (add)
      for (int64_t l = 0; l < width; ++l) out[l] += static_cast<double>(buffer[r][l]);
    else
      for (int64_t l = 0; l < width; ++l) out[l] = static_cast<double>(buffer[r][l]);
  }
}

template <class T>
void multiply(const void* packed, int64_t panel_stride, int64_t count, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
              double* c, int64_t ldc, bool add) {
  constexpr int64_t L = kLanes<T>;
  const T* panels = static_cast<const T*>(packed);
  for (int64_t i = i0; i < i1; i += kRows) {
    const T* rows = panels + i / L * panel_stride + i % L;
    const int64_t j_end = j1 < i + kRows ? j1 : i + kRows;
    for (int64_t j = j0; j < j_end;) {
      const T* columns = panels + j / L * panel_stride;
      const int64_t left = (j_end - j + L - 1) / L;
      if (left >= kVectors) {
        tile<T, kVectors>(rows, columns, panel_stride, count, i, j, i1, c, ldc, add);
        j += kVectors * L;
      } else if (left == 2) {
        tile<T, 2>(rows, columns, panel_stride, count, i, j, i1, c, ldc, add);
        j += 2 * L;
      } else {
        tile<T, 1>(rows, columns, panel_stride, count, i, j, i1, c, ldc, add);
        j += L;
      }
    }
  }
}

// ---- positions of images ----

// Positions jump from row to row of an image, which the processor's own prefetching does not follow.
constexpr int64_t kAhead = 8;

template <class T, int N>
inline void add_tile_of(const T* rows, const T* columns, int64_t panel_stride, const int32_t* at, int64_t count,
                        double* out) {
  constexpr int64_t L = kLanes<T>;
  using V = Vector<T, L>;
  V acc[kRows][N] = {};
  for (int64_t k = 0; k < count; ++k) {
    const int64_t p = at[k] * L;
    if (k + kAhead < count) {
      const int64_t next = at[k + kAhead] * L;
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) __builtin_prefetch(columns + n * panel_stride + next);
      __builtin_prefetch(rows + next);
    }
    V b[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) b[n] = load<V>(columns + n * panel_stride + p);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T a = rows[r / L * panel_stride + p + r % L];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[r][n] += a * b[n];
    }
  }
  T buffer[kRows][N * L];
  __builtin_memcpy(buffer, acc, sizeof(buffer));
  for (int r = 0; r < kRows; ++r)
    for (int64_t l = 0; l < N * L; ++l) out[r * N * L + l] += static_cast<double>(buffer[r][l]);
}

template <class T>
void add_tile(const void* packed, int64_t panel_stride, const int32_t* at, int64_t count, int64_t delta, int64_t i,
              int64_t j, int64_t panels, double* tile) {
  constexpr int64_t L = kLanes<T>;
  const T* const rows = static_cast<const T*>(packed) + i / L * panel_stride + i % L;
  const T* const columns = static_cast<const T*>(packed) + j / L * panel_stride + delta * L;
  if (panels == 1) return add_tile_of<T, 1>(rows, columns, panel_stride, at, count, tile);
  if (panels == 2) return add_tile_of<T, 2>(rows, columns, panel_stride, at, count, tile);
  return add_tile_of<T, kVectors>(rows, columns, panel_stride, at, count, tile);
}

template <class T>
void add_sums(const void* packed, int64_t panel_stride, const int32_t* at, int64_t count, int64_t j, double* sums) {
  constexpr int64_t L = kLanes<T>;
  const T* const column = static_cast<const T*>(packed) + j / L * panel_stride;
  double sum[L] = {};
  for (int64_t k = 0; k < count; ++k)
    for (int64_t l = 0; l < L; ++l) sum[l] += static_cast<double>(column[at[k] * L + l]);
  for (int64_t l = 0; l < L; ++l) sums[l] += sum[l];
}

inline void sum(const double* const* terms, int64_t count, int64_t size, double* to) {
  using V = Vector<double, U>;
  for (int64_t q = 0; q < size; q += U) {
    V total = {};
    for (int64_t t = 0; t < count; ++t) total += load<V>(terms[t] + q);
    store(to + q, total);
  }
}

template <class T>
constexpr Kernels kKernels = {kLanes<T>,       sizeof(T),   sizeof(T) == 8 ? kExactChunk : kFastChunk,
                              kRows,           kVectors,    pack<T>,
                              pack_patches<T>, multiply<T>, add_tile<T>, add_sums<T>, sum, nullptr};

}  // namespace

extern const Kernels kExact = kKernels<double>;
extern const Kernels kFast = kKernels<float>;

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace gram
}  // namespace fastrank
