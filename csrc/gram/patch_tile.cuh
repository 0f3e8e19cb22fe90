// What both kernels of patch products share: 64 x 64 tiles of sums, kept in registers and fed through shared memory.
#pragma once

#include <stdint.h>

#include "gram/gram.h"
#include "gram/problem.cuh"

namespace fastrank {
namespace gram {
namespace patches {

using device::ceil_div;
using device::triangle_row;
using device::widen;

constexpr int kTile = 64;          // side of a tile
constexpr int kStep = 16;          // positions staged at a time
constexpr int kPitch = kTile + 4;  // 4 rows x 4 columns of fp64 fall on all 32 banks, and rows start on 16 bytes
constexpr int kThreads = 256;      // each owns 4 x 4 numbers of the tile

template <class T>
struct alignas(16) Stage {
  T left[kStep][kPitch], right[kStep][kPitch];
};

// The shift of a channel, and a number of x less it. In fp32 the shift has two parts, so that nothing is lost where x is
// near it: with fp32 x, nothing is nearer to the shift than `high`, so |low| is at most |x - shift|, and what is rounded
// (low; x - high, exact within a factor of two; the difference) errs by at most 4 fp32 roundings of x - shift.
template <class T>
struct Shift {
  double value;
  __device__ __forceinline__ void set(double shift) { value = shift; }
  template <class In>
  __device__ __forceinline__ T from(const In& x) const { return static_cast<T>(widen(x) - value); }
};
template <>
struct Shift<float> {
  float high, low;
  __device__ __forceinline__ void set(double shift) {
    high = static_cast<float>(shift);
    low = static_cast<float>(shift - static_cast<double>(high));
  }
  template <class In>
  __device__ __forceinline__ float from(const In& x) const { return static_cast<float>(widen(x)) - high - low; }
};

// Which numbers of a step a thread stages: its row, and every 16th column from its first. Along the columns 16
// neighbours read one row; along the rows 8 neighbours of 4 columns do, whose stores meet no bank twice.
struct Place {
  int row, column;
};
__device__ __forceinline__ Place place(bool along_columns) {
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  if (along_columns) return {t / 16, t % 16};
  return {lane % 4 + lane / 16 * 4 + warp % 2 * 8, lane / 4 % 4 + warp / 2 * 4};
}

// Number n of a walk over images, their groups and a rectangle of positions; `advance` moves on by `step`.
struct Walk {
  int x, y, group, image;
  int width, height, groups;
  int step_x, step_y, step_group, step_image;

  __device__ __forceinline__ Walk(int64_t n, int step, int width, int height, int groups)
      : width(width), height(height), groups(groups) {
    x = static_cast<int>(n % width), n /= width;
    y = static_cast<int>(n % height), n /= height;
    group = static_cast<int>(n % groups), image = static_cast<int>(n / groups);
    step_x = step % width, step /= width;
    step_y = step % height, step /= height;
    step_group = step % groups, step_image = step / groups;
  }
  __device__ __forceinline__ void advance() {
    x += step_x, y += step_y, group += step_group, image += step_image;
    if (x >= width) x -= width, ++y;
    if (y >= height) y -= height, ++group;
    if (group >= groups) group -= groups, ++image;
  }
};

// A thread's numbers of the tile. T is the type of the products: double (exact) or float (fast; flushed to double every
// kFastChunk positions).
template <class T>
struct Sums {
  double sum[4][4] = {};
  T block[4][4] = {};
  int steps = 0;

  __device__ __forceinline__ void add_step(const T (*left)[kPitch], const T (*right)[kPitch]) {
    const int r0 = threadIdx.x / 16 * 4, c0 = threadIdx.x % 16 * 4;
#pragma unroll 4
    for (int s = 0; s < kStep; ++s) {
      T a[4], b[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) a[q] = left[s][r0 + q];
#pragma unroll
      for (int q = 0; q < 4; ++q) b[q] = right[s][c0 + q];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) block[i][j] += a[i] * b[j];
    }
    if (sizeof(T) == 4 && ++steps == kFastChunk / kStep) {
      steps = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[i][j] += static_cast<double>(block[i][j]);
          block[i][j] = T(0);
        }
    }
  }

  // put(row, column, value) for each of the thread's numbers.
  template <class Put>
  __device__ __forceinline__ void each(Put put) const {
    const int r0 = threadIdx.x / 16 * 4, c0 = threadIdx.x % 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) put(r0 + i, c0 + j, sum[i][j] + static_cast<double>(block[i][j]));
  }
};

}  // namespace patches
}  // namespace gram
}  // namespace fastrank
