// Kernels that no op has yet, to prove the instructions that later ones are made of: exchanges within a warp, atomics,
// flags between blocks. Compiled by g++ for the emulator and by nvcc.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "common/tensor.cuh"

namespace fastrank {
namespace tensor {

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __nv_bfloat16) {
  multiply_bf16(d[0], d[1], d[2], d[3], a, b[0], b[1]);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
  multiply_fp16(d[0], d[1], d[2], d[3], a, b[0], b[1]);
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
