// ldmatrix and mma.sync with the fragment layouts of the PTX ISA. Sums are made in order, in the accumulator's type,
// one rounding each; real tensor cores sum in another order and round differently, so nothing may rely on the last bit.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "memory.h"

namespace emulate {

// ldmatrix.sync.aligned.m8n8.x{Count}[.trans].shared.b16. Lane l passes the address of row l % 8 of matrix l / 8, 16
// bytes; lanes beyond the last matrix pass anything.
template <int Count, bool Transposed>
void load_matrix(uint32_t (&fragment)[Count], const void* row) {
  static_assert(Count == 1 || Count == 2 || Count == 4);
  if (this_thread().lane() < 8 * Count) check_shared(row, 16, 16, "ldmatrix");
  exchange(~0u, Transposed ? "ldmatrix.trans" : "ldmatrix", row, [&](auto get) {
    const unsigned l = this_thread().lane();
    for (int m = 0; m < Count; ++m) {
      uint16_t pair[2];
      for (unsigned e = 0; e < 2; ++e) {
        const unsigned r = Transposed ? 2 * (l % 4) + e : l / 4, c = Transposed ? l / 4 : 2 * (l % 4) + e;
        std::memcpy(&pair[e], static_cast<const char*>(get(8 * m + r)) + 2 * c, 2);
      }
      fragment[m] = pair[0] | uint32_t(pair[1]) << 16;
    }
    return 0;
  });
}

// Numbers of a fragment: two to a register (16-bit types) or one (the others).
struct Bf16 {
  using Register = uint32_t;
  static constexpr int kPerRegister = 2;
  static float widen(uint32_t r, int e) {
    const uint32_t bits = (e ? r >> 16 : r & 0xFFFF) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
};
struct Fp16 {
  using Register = uint32_t;
  static constexpr int kPerRegister = 2;
  static float widen(uint32_t r, int e) {
    const auto bits = static_cast<unsigned short>(e ? r >> 16 : r & 0xFFFF);
    return __half2float(__half(__half_raw{bits}));
  }
};
struct Fp64 {
  using Register = double;
  static constexpr int kPerRegister = 1;
  static double widen(double r, int) { return r; }
};

// mma.sync.aligned.m{M}n8k{K}.row.col: D = A B + D, D in `Sum`.
//
// The fragments of all shapes here are made of one block: a lane l holds, of an 8 x (4 w) block of A, row l / 4 and
// the w columns from w (l % 4) on, w being the numbers in a register; of B the same, transposed; of an 8 x 8 block of
// D, row l / 4 and columns 2 (l % 4), + 1. A's registers go down the rows first (M / 8 blocks), then along k.
template <class In, class Sum, int M, int K>
void multiply_accumulate(Sum (&d)[M / 4], const typename In::Register (&a)[M * K / 32 / In::kPerRegister],
                         const typename In::Register (&b)[K * 8 / 32 / In::kPerRegister]) {
  constexpr int w = In::kPerRegister, kRows = M / 8, kSteps = K / (4 * w);
  struct Fragments {
    typename In::Register a[kRows * kSteps], b[kSteps];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  // Names that differ for every shape and type, so that lanes in different instructions do not meet.
  exchange(~0u, __PRETTY_FUNCTION__, mine, [&](auto get) {
    const int row = this_thread().lane() / 4, quad = this_thread().lane() % 4;
    for (int step = 0; step < kSteps; ++step)
      for (int s = 0; s < 4; ++s) {
        const Fragments left = get(row * 4 + s);
        for (int c = 0; c < 2; ++c) {
          const Fragments right = get((2 * quad + c) * 4 + s);
          for (int e = 0; e < w; ++e)
            for (int r = 0; r < kRows; ++r)
              d[2 * r + c] = std::fma(static_cast<Sum>(In::widen(left.a[step * kRows + r], e)),
                                      static_cast<Sum>(In::widen(right.b[step], e)), d[2 * r + c]);
        }
      }
    return 0;
  });
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Bf16) {
  multiply_accumulate<Bf16, float, 16, 16>(d, a, b);
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Fp16) {
  multiply_accumulate<Fp16, float, 16, 16>(d, a, b);
}
inline void mma_m8n8k4(double (&d)[2], const double (&a)[1], const double (&b)[1]) {
  multiply_accumulate<Fp64, double, 8, 4>(d, a, b);
}
inline void mma_m16n8k8(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
  multiply_accumulate<Fp64, double, 16, 8>(d, a, b);
}

}  // namespace emulate
