// What both kernels of patch products share: how a tile of sums is fed through shared memory, one step of positions at
// a time, with the shift subtracted on the way. How it is multiplied is products.cuh's.
#pragma once

#include <stdint.h>

#include "gram/gram.h"
#include "gram/products.cuh"

namespace fastrank {
namespace gram {
namespace patches {

using device::ceil_div;
using device::triangle_row;
using device::widen;

constexpr int kTile = device::kSmall;  // side of a tile
constexpr int kStep = 8;               // positions staged at a time
constexpr int kPitch = kTile + 4;      // 4 rows x 4 columns of fp64 fall on all 32 banks, and rows start on 16 bytes
constexpr int kTileThreads = 2 * kTile;
constexpr int kThreads = 256;          // of blocks that own no tile
constexpr int kStaged = kTile * kStep / kTileThreads;  // numbers of a panel that a thread stages

template <class T>
struct alignas(16) Stage {
  T left[kStep][kPitch], right[kStep][kPitch];
};

// The shift of a channel, and a number of x less it. In fp32 the shift has two parts, so that nothing is lost where x
// is near it: no fp32 number is nearer to the shift than `high`, so |low| is at most |x - shift|, and what is rounded
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
  const int t = threadIdx.x, lane = t % 32;
  if (along_columns) return {t / 16, t % 16};
  return {lane % 4 + lane / 16 * 4, lane / 4 % 4 + t / 32 * 4};
}

// A walk over images, their groups and a rectangle of positions, so many at a time. In shared memory: a block's threads
// walk alike, and registers are what they have least of.
struct Stride {
  int width, height, groups;
  int x, y, group, image;  // of one step

  __device__ __forceinline__ void set(int step, int w, int h, int64_t all_groups) {
    width = w, height = h, groups = static_cast<int>(all_groups);
    x = step % width, step /= width;
    y = step % height, step /= height;
    group = step % groups, image = step / groups;
  }
};
struct Walk {
  int x, y, group, image;

  // From number n on.
  __device__ __forceinline__ Walk(int64_t n, const Stride& by) {
    x = static_cast<int>(n % by.width), n /= by.width;
    y = static_cast<int>(n % by.height), n /= by.height;
    group = static_cast<int>(n % by.groups), image = static_cast<int>(n / by.groups);
  }
  __device__ __forceinline__ void advance(const Stride& by) {
    x += by.x, y += by.y, group += by.group, image += by.image;
    if (x >= by.width) x -= by.width, ++y;
    if (y >= by.height) y -= by.height, ++group;
    if (group >= by.groups) group -= by.groups, ++image;
  }
};

// The types of x and of the products, double (exact) or float (fast), of a way to multiply.
template <class Products>
struct Types;
template <class X>
struct Types<device::Exact<X, kTile>> {
  using In = X;
  using T = double;
};
template <class X, class Real>
struct Types<device::Fast<X, kTile, Real>> {
  using In = X;
  using T = Real;
};

// A block's sums of one tile.
template <class Products>
struct Sums {
  using T = typename Types<Products>::T;
  Products products;
  const int row0 = threadIdx.x / 32 % 2 * (kTile / 2), column0 = threadIdx.x / 64 * 32;  // of the warp
  const bool multiplies;

  // `lower`: nobody asks for what is above the tile's diagonal, and a warp whose numbers are all there does nothing.
  __device__ __forceinline__ explicit Sums(bool lower) : multiplies(!lower || column0 < row0 + kTile / 2) {}
  // `done`: positions with this step's.
  __device__ __forceinline__ void step(const T (*left)[kPitch], const T (*right)[kPitch], int done) {
    if (multiplies) products.step(&left[0][0] + row0, &right[0][0] + column0);
    if (Products::kFast && done % kFastChunk == 0) products.flush();
  }
  // put(row, column, value) for each of the thread's numbers.
  template <class Put>
  __device__ __forceinline__ void finish(Put put) {
    products.flush();
#pragma unroll
    for (int i = 0; i < kTile / 16; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) put(row0 + products.row(i), column0 + products.column(j), products.sum[i][j]);
  }
};

}  // namespace patches
}  // namespace gram
}  // namespace fastrank
