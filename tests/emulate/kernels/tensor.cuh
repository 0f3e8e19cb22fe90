// Kernels that no op has yet, to prove the instructions that later ones are made of: cp.async, ldmatrix, mma in bf16,
// fp16 and fp64, shuffles, atomics, flags between blocks. Compiled by g++ for the emulator and by nvcc.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "common/tensor.cuh"

namespace fastrank {
namespace tensor {

constexpr int kTile = 64, kStep = 32, kPitch = kTile + 8, kThreads = 128;
constexpr int kPanel = kStep * kPitch;                   // numbers of one staged panel
constexpr int kSharedBytes = 2 * 2 * kPanel * 2;         // two stages of two panels of 16-bit numbers

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  multiply_bf16(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  multiply_fp16(d, a, b);
}

// lower(C) += X^T X, X [n, d] contiguous, C [d, d] fp32. Two stages: one is filled while the other is multiplied.
template <class In>
__global__ void __launch_bounds__(kThreads) gram_16bit(const In* x, float* c, int n, int d) {
  In* const shared = dynamic_shared<In>();
  int ti = 0, tj = blockIdx.x;
  while (tj > ti) tj -= ++ti;
  const int t = threadIdx.x, lane = t % 32, row0 = t / 64 * 32, column0 = t / 32 % 2 * 32;
  const bool vectors = d % 8 == 0;  // rows start on 16 bytes
  float sum[2][4][4] = {};

  const auto stage = [&](int s, int k0) {
    for (int e = t; e < 2 * kStep * kTile / 8; e += kThreads) {
      const int panel = e / (kStep * kTile / 8), k = e / (kTile / 8) % kStep, column = e % (kTile / 8) * 8;
      const int from = (panel ? tj : ti) * kTile + column;
      In* const to = shared + (s * 2 + panel) * kPanel + k * kPitch + column;
      const In* const source = x + static_cast<int64_t>(k0 + k) * d + from;
      if (vectors) {
        const bool inside = k0 + k < n && from < d;
        copy_async_16(to, inside ? source : x, inside ? 16 : 0);
      } else {
        for (int u = 0; u < 8; ++u) to[u] = k0 + k < n && from + u < d ? source[u] : In(0.0f);
      }
    }
    commit_copies();
  };

  stage(0, 0);
  for (int k0 = 0, s = 0; k0 < n; k0 += kStep, s ^= 1) {
    if (k0 + kStep < n) {
      stage(s ^ 1, k0 + kStep);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    const In* const left = shared + s * 2 * kPanel;
    const In* const right = left + kPanel;
    for (int k = 0; k < kStep; k += 16) {
      uint32_t a[2][4], b[4][2];
      for (int i = 0; i < 2; ++i)
        load_matrix_transposed(a[i], left + (k + (lane & 7) + (lane & 16 ? 8 : 0)) * kPitch + row0 + i * 16 + (lane & 8));
      for (int j = 0; j < 4; ++j) load_matrix_transposed(b[j], right + (k + (lane & 15)) * kPitch + column0 + j * 8);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j) multiply(sum[i][j], a[i], b[j], In());
    }
    __syncthreads();  // the stage just read is filled next
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < 4; ++e) {
        const int r = ti * kTile + row0 + i * 16 + lane / 4 + e / 2 * 8;
        const int column = tj * kTile + column0 + j * 8 + lane % 4 * 2 + e % 2;
        if (r < d && column <= r) c[static_cast<int64_t>(r) * d + column] += sum[i][j][e];
      }
}

// C = A B^T, A [m, 16], B [8, 16] in 16 bits, with A through ldmatrix as it lies: one warp per 16 rows.
template <class In>
__global__ void __launch_bounds__(32) product_16bit(const In* a, const In* b, float* c, int m) {
  __shared__ __align__(16) In staged[16][24];  // 48-byte rows: aligned, and no two rows in one bank
  const int lane = threadIdx.x, first = blockIdx.x * 16;
  for (int e = lane; e < 256; e += 32) {
    const int r = e / 16, k = e % 16;
    staged[r][k] = first + r < m ? a[(first + r) * 16 + k] : In(0.0f);
  }
  __syncwarp();
  uint32_t left[4], right[2];
  load_matrix(left, &staged[lane % 16][lane / 16 * 8]);
  for (int h = 0; h < 2; ++h) {
    const In* const pair = b + lane / 4 * 16 + h * 8 + lane % 4 * 2;
    right[h] = *reinterpret_cast<const uint32_t*>(pair);
  }
  float sum[4] = {};
  multiply(sum, left, right, In());
  for (int e = 0; e < 4; ++e) {
    const int r = first + lane / 4 + e / 2 * 8;
    if (r < m) c[r * 8 + lane % 4 * 2 + e % 2] = sum[e];
  }
}

// lower(C) += X^T X in fp64, 8 x 8 numbers a warp, straight from global memory.
static __global__ void __launch_bounds__(32) gram_fp64(const double* x, double* c, int n, int d) {
  int ti = 0, tj = blockIdx.x;
  while (tj > ti) tj -= ++ti;
  const int lane = threadIdx.x, r = ti * 8 + lane / 4, column = tj * 8 + lane / 4;
  double sum[2] = {};
  for (int k0 = 0; k0 < n; k0 += 4) {
    const int k = k0 + lane % 4;
    multiply_fp64(sum, k < n && r < d ? x[k * d + r] : 0.0, k < n && column < d ? x[k * d + column] : 0.0);
  }
  for (int e = 0; e < 2; ++e) {
    const int to = tj * 8 + lane % 4 * 2 + e;
    if (r < d && to <= r) c[r * d + to] += sum[e];
  }
}

// total[0] += sum of x, and largest[0] = max; the last block to finish writes the number of blocks to total[1].
static __global__ void __launch_bounds__(128) reduce(const float* x, int n, float* total, unsigned* largest,
                                                     unsigned* finished) {
  __shared__ float of_warp[4];
  __shared__ bool last;
  float sum = 0.0f;
  unsigned most = 0;
  for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) {
    sum += x[i];
    const unsigned bits = static_cast<unsigned>(x[i]);
    most = bits > most ? bits : most;
  }
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  atomicMax(largest, most);
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(total, of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3]);
    __threadfence();
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) total[1] = static_cast<float>(gridDim.x);
}

}  // namespace tensor
}  // namespace fastrank
