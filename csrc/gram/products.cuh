// What a warp does with a staged step: three ways to multiply, one for each precision and type of data. A warp owns
// kTile / 2 rows and 32 columns of a tile, and a lane kTile / 16 x 8 numbers of that: row(i) and column(j) say which.
// offset(c) is where column c of a panel begins.
#pragma once

#include "common/tensor.cuh"
#include "gram/staging.cuh"

namespace fastrank {
namespace gram {
namespace device {

// Exact: fp64 tensor cores. A product and its addition are one fused multiply-add each, rounded to nearest, so the
// roundings are those of a sum in order.
template <class In, int kTile>
struct Exact {
  using Staging = Converted<In, double, kTile>;
  static constexpr int kRows = kTile / 16, kPitch = Staging::kPitch;
  static constexpr bool kFast = false;
  double sum[kRows][8] = {};

  // Neighbours in two 8 x 8 fragments are neighbours in a panel, so that a lane loads both at once.
  static __device__ __forceinline__ int row(int i) { return i / 2 * 16 + threadIdx.x % 32 / 4 * 2 + i % 2; }
  static __device__ __forceinline__ int column(int j) { return j / 4 * 16 + threadIdx.x % 4 * 4 + j % 4; }

  __device__ __forceinline__ void step(const double* left, const double* right) {
    const int lane = threadIdx.x % 32, at = lane % 4 * kPitch + lane / 4 * 2;
    double a[kRows / 2][4];
#pragma unroll
    for (int m = 0; m < kRows / 2; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const auto both = *reinterpret_cast<const Chunk<double>*>(left + at + 4 * h * kPitch + 16 * m);
        a[m][2 * h] = both.x[0];
        a[m][2 * h + 1] = both.x[1];
      }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      double b[2][2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const auto both = *reinterpret_cast<const Chunk<double>*>(right + at + 4 * h * kPitch + 16 * n);
        b[0][h] = both.x[0];
        b[1][h] = both.x[1];
      }
#pragma unroll
      for (int q = 0; q < 2; ++q)
#pragma unroll
        for (int m = 0; m < kRows / 2; ++m)
          multiply_fp64(sum[2 * m][4 * n + q], sum[2 * m][4 * n + 2 + q], sum[2 * m + 1][4 * n + q],
                        sum[2 * m + 1][4 * n + 2 + q], a[m], b[q]);
    }
  }
  __device__ __forceinline__ void flush() {}
  static __device__ __forceinline__ int offset(int column) { return column; }
};

// What the two ways of mode "fast" share: fp32 sums of kFastChunk rows, added up in fp64.
template <class T, int kRows>
struct Flushed {
  static constexpr bool kFast = true;
  double sum[kRows][8] = {};
  T block[kRows][8] = {};
  __device__ __forceinline__ void flush() {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sum[i][j] += static_cast<double>(block[i][j]);
        block[i][j] = T(0.0);
      }
  }
};

// Fast: fp32 fused multiply-adds, never TF32. T is float; a test counts with another.
template <class In, int kTile, class T = float>
struct Fast : Flushed<T, kTile / 16> {
  using Staging = Converted<In, T, kTile>;
  static constexpr int kRows = kTile / 16, kPitch = Staging::kPitch;

  static __device__ __forceinline__ int row(int i) { return i / 4 * 32 + threadIdx.x % 32 / 4 * 4 + i % 4; }
  static __device__ __forceinline__ int column(int j) { return j / 4 * 16 + threadIdx.x % 4 * 4 + j % 4; }

  __device__ __forceinline__ void step(const T* left, const T* right) {
    left += row(0);
    right += column(0);
#pragma unroll kTile == kSmall ? 4 : 1  // the wide tile has no registers left to look ahead
    for (int k = 0; k < Staging::kStep; ++k) {
      Chunk<T> a[kRows / 4], b[2];
#pragma unroll
      for (int q = 0; q < kRows / 4; ++q) a[q] = *reinterpret_cast<const Chunk<T>*>(left + k * kPitch + 32 * q);
#pragma unroll
      for (int q = 0; q < 2; ++q) b[q] = *reinterpret_cast<const Chunk<T>*>(right + k * kPitch + 16 * q);
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) this->block[i][j] += a[i / 4].x[i % 4] * b[j / 4].x[j % 4];
    }
  }
  static __device__ __forceinline__ int offset(int column) { return column; }
};

__device__ __forceinline__ void multiply_16bit(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4],
                                               uint32_t b0, uint32_t b1, __nv_bfloat16) {
  multiply_bf16(d0, d1, d2, d3, a, b0, b1);
}
__device__ __forceinline__ void multiply_16bit(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4],
                                               uint32_t b0, uint32_t b1, __half) {
  multiply_fp16(d0, d1, d2, d3, a, b0, b1);
}

// Fast, 16-bit data without a shift: tensor cores, whose products of 16-bit numbers are exact. (With a shift x - s is
// no 16-bit number: that goes the way of Fast.) How they add is kernels/gram/bound.py's concern.
template <class In, int kTile, bool kAlongColumns>
struct Half : Flushed<float, kTile / 16> {
  using Staging = Copied<In, kTile, kAlongColumns>;
  static constexpr int kRows = kTile / 16, kPitch = Staging::kPitch;

  static __device__ __forceinline__ int row(int i) { return i / 2 * 16 + threadIdx.x % 32 / 4 + i % 2 * 8; }
  static __device__ __forceinline__ int column(int j) { return j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }

  __device__ __forceinline__ void step(const In* left, const In* right) {
    const int lane = threadIdx.x % 32;
    uint32_t a[kRows / 2][4];
#pragma unroll
    for (int m = 0; m < kRows / 2; ++m) {
      if (kAlongColumns)
        load_matrix_transposed(a[m], left + (lane % 8 + lane / 16 * 8) * kPitch + 16 * m + lane / 8 % 2 * 8);
      else
        load_matrix(a[m], left + (16 * m + lane % 16) * kPitch + lane / 16 * 8);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      uint32_t b[4];  // of two neighbouring 16 x 8 factors
      if (kAlongColumns)
        load_matrix_transposed(b, right + lane % 16 * kPitch + 16 * n + lane / 16 * 8);
      else
        load_matrix(b, right + (16 * n + lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8);
#pragma unroll
      for (int q = 0; q < 2; ++q)
#pragma unroll
        for (int m = 0; m < kRows / 2; ++m)
          multiply_16bit(this->block[2 * m][4 * n + 2 * q], this->block[2 * m][4 * n + 2 * q + 1],
                         this->block[2 * m + 1][4 * n + 2 * q], this->block[2 * m + 1][4 * n + 2 * q + 1], a[m],
                         b[2 * q], b[2 * q + 1], In());
    }
  }
  static __device__ __forceinline__ int offset(int column) { return kAlongColumns ? column : column * kPitch; }
};

}  // namespace device
}  // namespace gram
}  // namespace fastrank
