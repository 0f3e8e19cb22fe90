// Test matrices, with the bits of common/philox.h.
#pragma once

#include "common/philox.h"
#include "rsvd/rsvd.h"
#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

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

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
