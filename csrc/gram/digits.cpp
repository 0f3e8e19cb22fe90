// Gram products of numbers rounded to 24 bits, on AMX's integer tiles.
//
// A chunk's column is scaled by a power of two so that its largest number is just below 2^23, and rounded to integers.
// Of these three bytes, "digits" of base 256, the first signed, all nine products of digits are summed in int32, which
// holds them exactly, and put together in fp64 with one rounding. So the result is the Gram matrix of the rounded
// numbers, as exact as fp64 sums, and the rounding is an error of the matrix itself: of its singular values, not of
// their squares. kernels/gram/bound.py counts it.
//
// A tile of C is 16 columns by 16, and 64 rows deep. Packed panels hold each digit in the two forms that the tile
// operation reads: `left` [16 columns][64 rows], `right` [16 rows / 4][16 columns][4 rows].
//
// Compiled for AVX-512 and AMX (C headers and intrinsics only, see common/simd.h).
#include <immintrin.h>
#include <stdint.h>

#include "gram/gram.h"

namespace fastrank {
namespace gram {
namespace isa_amx {
namespace {

constexpr int64_t kSide = 16, kDepth = 64, kParts = 3, kWeights = 2 * kParts - 1;
constexpr int64_t kTile = 1024;  // bytes of a tile
constexpr int64_t kTiles = kDigitsChunk / kDepth;
constexpr int64_t kForm = kParts * kTiles * kTile;
// A panel: left, right, [16] units, the square of what rounding changed.
constexpr int64_t kUnits = 2 * kForm, kRounded = kUnits + kSide * 8;
constexpr int64_t kElement = 7;  // bytes of a packed number, and room for the units
static_assert(kRounded + 8 <= kDigitsChunk * kSide * kElement, "a panel holds all that");
constexpr int64_t kTogether = 4;  // panels packed to fp32 at a time: 64 columns are whole cache lines

inline char* panel_at(void* packed, int64_t panel_stride, int64_t panel) {
  return static_cast<char*>(packed) + panel * panel_stride * kElement;
}
inline const char* panel_at(const void* packed, int64_t panel_stride, int64_t panel) {
  return static_cast<const char*>(packed) + panel * panel_stride * kElement;
}

// ---- packing ----

// to[i][k] = from[k][i], 16 x 16 numbers of 32 bits.
inline void transpose(const char* from, char* to) {
  __m512i v[16], w[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = _mm512_load_si512(from + i * 64);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(w[i], w[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(w[i], w[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(w[i + 1], w[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(w[i + 1], w[i + 3]);
  }
  // v[4 g + c] has columns c, 4 + c, 8 + c, 12 + c of rows 4 g .. 4 g + 3, a quarter each.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x88), b = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x88);
    const __m512i e = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xdd), f = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xdd);
    _mm512_store_si512(to + c * 64, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_store_si512(to + (4 + c) * 64, _mm512_shuffle_i32x4(e, f, 0x88));
    _mm512_store_si512(to + (8 + c) * 64, _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_store_si512(to + (12 + c) * 64, _mm512_shuffle_i32x4(e, f, 0xdd));
  }
}

// Byte `low` of each of a's and b's numbers, then byte `high`: a.low b.low a.high b.high in each 32 bits.
inline __m512i pick(int low, int high) {
  alignas(64) uint8_t index[64];
  for (int lane = 0; lane < 16; ++lane) {
    index[4 * lane] = static_cast<uint8_t>(4 * lane + low), index[4 * lane + 1] = static_cast<uint8_t>(64 + 4 * lane + low);
    index[4 * lane + 2] = static_cast<uint8_t>(4 * lane + high);
    index[4 * lane + 3] = static_cast<uint8_t>(64 + 4 * lane + high);
  }
  return _mm512_load_si512(index);
}

// Rounds and packs raw [count, 16] less `shift` (may be null); sums (may be null) gets the 16 column sums of the rounded
// numbers. `inexact`: the differences are off by half an ulp.
void round_panel(float* raw, int64_t count, const float* shift, bool inexact, char* panel, double* sums) {
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512 origin = shift ? _mm512_loadu_ps(shift) : _mm512_setzero_ps();
  for (int64_t k = 0; k < count; ++k) {
    __m512 y = _mm512_loadu_ps(raw + k * kSide);
    if (shift) _mm512_storeu_ps(raw + k * kSide, y = _mm512_sub_ps(y, origin));
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(y), magnitude));
  }
  // largest < 2^(E - 126) for the biased exponent E; the scale 2^(149 - E) brings it below 2^23.
  const __m512i exponent = _mm512_srli_epi32(largest, 23);
  const __mmask16 finite = _mm512_cmplt_epu32_mask(exponent, _mm512_set1_epi32(255));
  const __m512i biased = _mm512_min_epi32(_mm512_sub_epi32(_mm512_set1_epi32(276), exponent), _mm512_set1_epi32(254));
  const __m512 scale = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(finite, biased, 23));

  const __m512i most = _mm512_set1_epi32((1 << 23) - 1), high_half = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i first = pick(2, 1), last = pick(0, 0);
  __m512 off = _mm512_setzero_ps(), all = _mm512_setzero_ps();
  __m512d total[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  const int64_t tiles = (count + kDepth - 1) / kDepth;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    __m512i sum = _mm512_setzero_si512();  // of 64 numbers up to 2^23
    char* const right = panel + kForm + tile * kTile;
    for (int64_t group = 0; group < kSide; ++group) {
      __m512i q[4];
#pragma GCC unroll 4
      for (int64_t r = 0; r < 4; ++r) {
        const int64_t k = tile * kDepth + group * 4 + r;
        const __m512 y = _mm512_mul_ps(k < count ? _mm512_loadu_ps(raw + k * kSide) : _mm512_setzero_ps(), scale);
        q[r] = _mm512_min_epi32(_mm512_cvt_roundps_epi32(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), most);
        const __m512 rest = _mm512_sub_ps(y, _mm512_cvtepi32_ps(q[r]));
        off = _mm512_fmadd_ps(rest, rest, off);
        all = _mm512_fmadd_ps(y, y, all);
        sum = _mm512_add_epi32(sum, q[r]);
      }
      const __m512i a = _mm512_permutex2var_epi8(q[0], first, q[1]), b = _mm512_permutex2var_epi8(q[2], first, q[3]);
      const __m512i c = _mm512_permutex2var_epi8(q[0], last, q[1]), e = _mm512_permutex2var_epi8(q[2], last, q[3]);
      // a's low half, b's low half above it; and so on.
      const __m512i digits[kParts] = {
          _mm512_or_si512(_mm512_andnot_si512(high_half, a), _mm512_slli_epi32(b, 16)),
          _mm512_or_si512(_mm512_srli_epi32(a, 16), _mm512_and_si512(high_half, b)),
          _mm512_or_si512(_mm512_andnot_si512(high_half, c), _mm512_slli_epi32(e, 16))};
#pragma GCC unroll 3
      for (int64_t s = 0; s < kParts; ++s) _mm512_store_si512(right + s * kTiles * kTile + group * 64, digits[s]);
    }
    for (int64_t s = 0; s < kParts; ++s)
      transpose(right + s * kTiles * kTile, panel + (s * kTiles + tile) * kTile);
    total[0] = _mm512_add_pd(total[0], _mm512_cvtepi32_pd(_mm512_castsi512_si256(sum)));
    total[1] = _mm512_add_pd(total[1], _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(sum, 1)));
  }

  // The units 2^(127 - biased); NaN for columns that are not finite, whose digits are zeros.
  double* const units = reinterpret_cast<double*>(panel + kUnits);
  alignas(64) int32_t power[kSide];
  alignas(64) float squares[kSide], norms[kSide];
  _mm512_store_si512(power, biased);
  _mm512_store_ps(squares, off);
  _mm512_store_ps(norms, all);
  double rounded = 0;
  for (int64_t l = 0; l < kSide; ++l) {
    const uint64_t bits = static_cast<uint64_t>(1023 + 127 - power[l]) << 52;
    __builtin_memcpy(units + l, &bits, 8);
    if (!(finite >> l & 1)) {
      units[l] = __builtin_nan("");
      continue;
    }
    // Half an ulp of y is 2^-24 |y| at most; 512 squares in fp32 err by 2^-15 of their sum.
    const double changed =
        __builtin_sqrt(squares[l]) + (inexact ? 0x1p-24 * __builtin_sqrt(static_cast<double>(norms[l])) : 0.0);
    rounded += changed * changed * (1 + 0x1p-14) * units[l] * units[l];
  }
  *reinterpret_cast<double*>(panel + kRounded) = rounded;
  if (sums) {
    alignas(64) double found[kSide];
    _mm512_store_pd(found, total[0]);
    _mm512_store_pd(found + 8, total[1]);
    for (int64_t l = 0; l < kSide; ++l) sums[l] = found[l] * units[l];
  }
}

void pack(const Matrix& a, const double* shift, int64_t row, int64_t count, int64_t first, int64_t last, void* packed,
          int64_t panel_stride, double* sums) {
  alignas(64) float raw[kTogether * kDigitsChunk * kSide];
  for (int64_t at = first; at < last; at += kTogether) {
    const int64_t end = at + kTogether < last ? at + kTogether : last;
    // Panel `at` of the matrix becomes panel 0 of raw: pack() places columns by their absolute number.
    const uintptr_t base = reinterpret_cast<uintptr_t>(raw) - static_cast<uintptr_t>(at * kDigitsChunk * kSide * 4);
    // A shift of float32 numbers is subtracted here, in float32: one rounding, as of the difference in float64.
    float origin[kTogether * kSide] = {};
    bool single = shift != nullptr && a.dtype != DType::f64;
    for (int64_t i = at * kSide; single && i < end * kSide && i < a.columns; ++i)
      single = (origin[i - at * kSide] = static_cast<float>(shift[i])) == shift[i];
    isa_avx512::kFast.pack(a, single ? nullptr : shift, row, count, at, end, reinterpret_cast<void*>(base),
                           kDigitsChunk * kSide, nullptr);
    for (int64_t p = at; p < end; ++p) {
      double found[kSide];
      round_panel(raw + (p - at) * kDigitsChunk * kSide, count, single ? origin + (p - at) * kSide : nullptr,
                  shift != nullptr, panel_at(packed, panel_stride, p), sums ? found : nullptr);
      for (int64_t l = 0; sums && l < kSide && p * kSide + l < a.columns; ++l) sums[p * kSide + l] = found[l];
    }
  }
}

double rounded(const void* packed, int64_t panel_stride, int64_t panels) {
  double sum = 0;
  for (int64_t p = 0; p < panels; ++p)
    sum += *reinterpret_cast<const double*>(panel_at(packed, panel_stride, p) + kRounded);
  return sum;
}

// ---- multiplying ----

// Tiles 0 to 4 sum the products of digits s and t with s + t = 0 .. 4; 5, 6 and 7 are operands. No sum is used again
// within three operations, the time that one takes.
inline void add_products(const char* left, const char* right, int64_t tiles) {
  constexpr int64_t digit = kTiles * kTile;
  for (int64_t t = 0; t < tiles; ++t, left += kTile, right += kTile) {
    _tile_loadd(5, left, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbssd(0, 5, 6);
    _tile_loadd(7, right + digit, 64);
    _tile_dpbsud(1, 5, 7);
    _tile_loadd(5, left + digit, 64);
    _tile_dpbuud(2, 5, 7);
    _tile_loadd(5, left + 2 * digit, 64);
    _tile_dpbuud(3, 5, 7);
    _tile_loadd(7, right + 2 * digit, 64);
    _tile_dpbuud(4, 5, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_loadd(5, left + digit, 64);
    _tile_dpbusd(1, 5, 6);
    _tile_dpbuud(3, 5, 7);
    _tile_loadd(5, left, 64);
    _tile_dpbsud(2, 5, 7);
  }
}

// c[r][l] = or += sum of found[w][r][l] 2^(8 (4 - w)) times both units, for l <= r + diagonal.
inline void store(const int32_t* found, const double* rows, const double* columns, int64_t count, int64_t diagonal,
                  double* c, int64_t ldc, bool add) {
  const __m512d base = _mm512_set1_pd(256.0);
  for (int64_t r = 0; r < count; ++r) {
    const __m512d unit = _mm512_set1_pd(rows[r]);
    const int64_t width = r + diagonal + 1;
    for (int64_t half = 0; half < kSide && half < width; half += 8) {
      const auto number = [&](int64_t w) {
        return _mm512_cvtepi32_pd(
            _mm256_load_si256(reinterpret_cast<const __m256i*>(found + (w * kSide + r) * kSide + half)));
      };
      __m512d sum = number(0);
#pragma GCC unroll 4
      for (int64_t w = 1; w < kWeights; ++w) sum = _mm512_fmadd_pd(sum, base, number(w));
      sum = _mm512_mul_pd(sum, _mm512_mul_pd(unit, _mm512_loadu_pd(columns + half)));
      const __mmask8 mask =
          width - half >= 8 ? static_cast<__mmask8>(0xff) : static_cast<__mmask8>((1 << (width - half)) - 1);
      double* const out = c + r * ldc + half;
      if (add) sum = _mm512_add_pd(sum, _mm512_maskz_loadu_pd(mask, out));
      _mm512_mask_storeu_pd(out, mask, sum);
    }
  }
}

void multiply(const void* packed, int64_t panel_stride, int64_t count, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
              double* c, int64_t ldc, bool add) {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const shapes;
  static_assert(sizeof(shapes) == 64, "as the processor reads it");
  _tile_loadconfig(&shapes);
  alignas(64) int32_t found[kWeights * kSide * kSide];
  const int64_t tiles = (count + kDepth - 1) / kDepth;
  for (int64_t i = i0; i < i1; i += kSide) {
    const char* const left = panel_at(packed, panel_stride, i / kSide);
    const int64_t rows = i1 - i < kSide ? i1 - i : kSide;
    for (int64_t j = j0; j < j1 && j <= i; j += kSide) {
      const char* const right = panel_at(packed, panel_stride, j / kSide);
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      _tile_zero(4);
      add_products(left, right + kForm, tiles);
      _tile_stored(0, found, 64);
      _tile_stored(1, found + 256, 64);
      _tile_stored(2, found + 512, 64);
      _tile_stored(3, found + 768, 64);
      _tile_stored(4, found + 1024, 64);
      store(found, reinterpret_cast<const double*>(left + kUnits), reinterpret_cast<const double*>(right + kUnits),
            rows, i - j, c + i * ldc + j, ldc, add);
    }
  }
  _tile_release();
}

}  // namespace

extern const Kernels kDigits = {kSide,    kElement, kDigitsChunk, 0,       0,       pack,
                                nullptr,  multiply, nullptr,      nullptr, nullptr, rounded};

}  // namespace isa_amx
}  // namespace gram
}  // namespace fastrank
