// Random numbers that are a function of their place alone: Philox 4x32-10 (Salmon, Moraes, Dror & Shaw, Parallel random
// numbers: as easy as 1, 2, 3, SC 2011), and test matrices from it with the same bits on every device.
//
// Everything after the integers is float32 multiplications, additions and square roots, each rounded on its own: no
// fused multiply-add may join two of them (the host compiles this with -ffp-contract=off, the device names the rounded
// operations). kernels/rsvd/reference.py is the same in torch; a test holds the two to bit equality.
//
// Every function is static and always inlined: a copy compiled for one instruction set must not serve another.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define FASTRANK_HD static __host__ __device__ __forceinline__
#else
#define FASTRANK_HD static inline __attribute__((always_inline))
#endif

namespace fastrank {
namespace philox {

struct Words {
  uint32_t w[4];
};

FASTRANK_HD Words philox4x32(Words counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.w[0], c1 = counter.w[1], c2 = counter.w[2], c3 = counter.w[3];
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The words of columns [4 quarter, 4 quarter + 4) of a row.
FASTRANK_HD Words words(uint64_t seed, uint32_t stream, uint64_t row, uint32_t quarter) {
  return philox4x32({{static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), quarter, stream}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// ---- one rounding each ----

FASTRANK_HD float mul(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
FASTRANK_HD float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
FASTRANK_HD float root(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return __builtin_sqrtf(a);
#endif
}
FASTRANK_HD float as_float(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
FASTRANK_HD uint32_t as_bits(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return bits;
}

// ---- the standard normal distribution: two numbers from two words (Box & Muller 1958) ----

// sqrt(-2 ln u) for u = (whole + 1) 2^-24 in (0, 1]. The polynomials are those of kernels/rsvd/config.py.
FASTRANK_HD float radius(uint32_t word) {
  const uint32_t bits = as_bits(static_cast<float>(static_cast<int32_t>((word >> 8) + 1)));  // exact
  // u = m 2^e with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
  const int32_t power = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
  const float f = add(as_float(bits - (static_cast<uint32_t>(power) << 23)), -1.0f);
  const float e = static_cast<float>(power - 24);
  const float square = mul(f, f);
  float p = -0x1.4bd700p-4f;
  p = add(mul(p, f), 0x1.04591ap-3f);
  p = add(mul(p, f), -0x1.09abe4p-3f);
  p = add(mul(p, f), 0x1.22dc4cp-3f);
  p = add(mul(p, f), -0x1.54d54ep-3f);
  p = add(mul(p, f), 0x1.99a14cp-3f);
  p = add(mul(p, f), -0x1.0000c8p-2f);
  p = add(mul(p, f), 0x1.555552p-2f);
  float log = mul(mul(p, f), square);
  log = add(log, mul(e, 0x1.0bfbe8p-15f));
  log = add(log, mul(square, -0.5f));
  log = add(log, f);
  log = add(log, mul(e, 0x1.62e000p-1f));
  return root(mul(log, -2.0f));
}

struct Pair {
  float first, second;
};

FASTRANK_HD Pair normal_pair(uint32_t length, uint32_t angle) {
  const float r = radius(length);
  // The angle is 2 pi a / 2^24. In quarters of a turn it lies y / 2 from the nearest whole number, y in [-1, 1).
  const int32_t a = static_cast<int32_t>(angle >> 8);
  const int32_t quarter = (a + (1 << 21)) >> 22;
  const float y = mul(static_cast<float>(a - quarter * (1 << 22)), 0x1p-21f);  // exact
  const float square = mul(y, y);
  float s = -0x1.2d9b7cp-15f;
  s = add(mul(s, square), 0x1.465ec4p-9f);
  s = add(mul(s, square), -0x1.4abbbap-4f);
  s = mul(add(mul(s, square), 0x1.921fb6p-1f), y);
  float c = 0x1.d9c326p-19f;
  c = add(mul(c, square), -0x1.55c57ap-12f);
  c = add(mul(c, square), 0x1.03c1dcp-6f);
  c = add(mul(c, square), -0x1.3bd3ccp-2f);
  c = add(mul(c, square), 1.0f);
  // Turn (c, s) by `quarter` quarters.
  const bool odd = quarter & 1;
  const float x = odd ? s : c, z = odd ? c : s;
  const uint32_t flip_x = static_cast<uint32_t>((quarter + 1) & 2) << 30, flip_z = static_cast<uint32_t>(quarter & 2) << 30;
  return {mul(r, as_float(as_bits(x) ^ flip_x)), mul(r, as_float(as_bits(z) ^ flip_z))};
}

// ---- signs ----

FASTRANK_HD float sign(uint32_t word) { return as_float(0x3f800000u | (word & 0x80000000u)); }

// Blocks of columns of a sparse sign matrix, each with one nonzero in a row; block b is [edge(b), edge(b + 1)).
constexpr int64_t kZeta = 8;
FASTRANK_HD int64_t sparse_blocks(int64_t columns) { return columns < kZeta ? columns : kZeta; }
FASTRANK_HD int64_t sparse_edge(int64_t block, int64_t columns) { return block * columns / sparse_blocks(columns); }

}  // namespace philox
}  // namespace fastrank
