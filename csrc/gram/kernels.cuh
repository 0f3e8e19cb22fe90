// Device code of the Gram products (gram.h). Launch code is in cuda.cu; this file needs only CUDA C++ itself, so a
// test can compile it with a host compiler and a stand-in for the CUDA built-ins.
//
// One block owns one 64 x 64 tile of the lower triangle and one range of rows ("split"). With a single split it adds
// to C itself; else it writes its tile to the workspace and gram_reduce adds the splits in order. No atomics: the
// result is the same bits in every run.
#pragma once

#include <stdint.h>

#include "gram/gram.h"
#include "gram/tile.cuh"

namespace fastrank {
namespace gram {
namespace device {

constexpr int kTile = 64;      // side of a tile of C
constexpr int kStep = 16;      // rows staged in shared memory at a time
constexpr int kPitch = kTile + 2;  // keeps 16-byte alignment and spreads the columns over the banks
constexpr int kThreads = 256;  // each owns 4 x 4 numbers of the tile
constexpr int64_t kSplitRows = 2048;  // rows of a split at least: a tile of partial sums costs 64 * 64 * 8 bytes once
constexpr int64_t kMaxSplits = 64;

// The cut depends on the shape alone, so results do not depend on the device.
struct Cut {
  int64_t tile_rows, tiles, splits, rows_per_split;
  Cut(int64_t rows, int64_t columns) {
    tile_rows = ceil_div(columns, kTile);
    tiles = tile_rows * (tile_rows + 1) / 2;
    const int64_t wanted = ceil_div(rows, kSplitRows);
    const int64_t per = ceil_div(rows, wanted < 1 ? 1 : wanted > kMaxSplits ? kMaxSplits : wanted);
    rows_per_split = ceil_div(per < 1 ? 1 : per, kFastChunk) * kFastChunk;  // a multiple of kStep too
    splits = rows ? ceil_div(rows, rows_per_split) : 0;
  }
  Depth depth(int64_t rows, bool fast) const {
    if (rows == 0) return {0, 0};
    const int64_t longest = rows < rows_per_split ? rows : rows_per_split;
    return {(fast ? ceil_div(longest, kFastChunk) + 1 : longest) + (splits > 1 ? splits : 0), 1};
  }
  // Partial tiles, then partial column sums.
  int64_t workspace() const { return splits > 1 ? splits * (tiles * kTile * kTile + tile_rows * kTile) : 0; }
};

struct Problem {
  Matrix a;
  const double* shift;  // or null
  double* c;
  int64_t ldc;
  double* total;        // or null
  double* partial;      // workspace when splits > 1
  int64_t tiles, tile_rows, splits, rows_per_split;
};

// T is the type of the products: double (exact) or float (fast; flushed to double every kFastChunk rows).
template <class In, class T>
__global__ void __launch_bounds__(kThreads, 2) gram_tiles(const Problem p) {
  __shared__ T rows_of_c[kStep][kPitch];
  __shared__ T columns_of_c[kStep][kPitch];
  int64_t ti, tj;
  tile_of(blockIdx.x, ti, tj);
  const bool diagonal = ti == tj;
  const int64_t first = blockIdx.y * p.rows_per_split;
  const int64_t last = first + p.rows_per_split < p.a.rows ? first + p.rows_per_split : p.a.rows;
  const int t = threadIdx.x;

  // Staging: each thread reads one row of the step and every 16th column. Neighbouring threads run along whichever
  // direction is contiguous in memory.
  const bool along_columns = p.a.stride_column == 1;
  const int my_row = along_columns ? t / 16 : t % 16, my_column = along_columns ? t % 16 : t / 16;
  int64_t outer = (first + my_row) / p.a.inner, inner = (first + my_row) % p.a.inner;
  double shift_r[kTile / 16], shift_c[kTile / 16];
#pragma unroll
  for (int q = 0; q < kTile / 16; ++q) {
    const int64_t r = ti * kTile + my_column + 16 * q, c = tj * kTile + my_column + 16 * q;
    shift_r[q] = p.shift && r < p.a.columns ? p.shift[r] : 0.0;
    shift_c[q] = p.shift && c < p.a.columns ? p.shift[c] : 0.0;
  }

  const int r0 = t / 16 * 4, c0 = t % 16 * 4;
  double sum[4][4] = {};
  T block[4][4] = {};
  double column_sum = 0.0;  // of column t of the tile, in the diagonal tiles' first 64 threads
  int steps = 0;
  for (int64_t k = first; k < last; k += kStep) {
    const In* source = static_cast<const In*>(p.a.data) + outer * p.a.stride_outer + inner * p.a.stride_inner;
    const bool row_valid = k + my_row < last;
#pragma unroll
    for (int q = 0; q < kTile / 16; ++q) {
      const int column = my_column + 16 * q;
      const int64_t r = ti * kTile + column, c = tj * kTile + column;
      const double y = row_valid && r < p.a.columns ? widen(source[r * p.a.stride_column]) - shift_r[q] : 0.0;
      rows_of_c[my_row][column] = static_cast<T>(y);
      if (!diagonal) {
        const double z = row_valid && c < p.a.columns ? widen(source[c * p.a.stride_column]) - shift_c[q] : 0.0;
        columns_of_c[my_row][column] = static_cast<T>(z);
      }
    }
    for (inner += kStep; inner >= p.a.inner; inner -= p.a.inner) ++outer;
    __syncthreads();
    const T(*const other)[kPitch] = diagonal ? rows_of_c : columns_of_c;
#pragma unroll 4
    for (int s = 0; s < kStep; ++s) {
      T left[4], right[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) left[q] = rows_of_c[s][r0 + q];
#pragma unroll
      for (int q = 0; q < 4; ++q) right[q] = other[s][c0 + q];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) block[i][j] += left[i] * right[j];
    }
    if (diagonal && p.total && t < kTile)
      for (int s = 0; s < kStep; ++s) column_sum += static_cast<double>(rows_of_c[s][t]);
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
    __syncthreads();
  }

  double* const tile = p.partial + (blockIdx.y * p.tiles + blockIdx.x) * (kTile * kTile);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const double value = sum[i][j] + static_cast<double>(block[i][j]);
      const int64_t r = ti * kTile + r0 + i, c = tj * kTile + c0 + j;
      if (p.splits > 1)
        tile[(r0 + i) * kTile + c0 + j] = value;
      else if (r < p.a.columns && c <= r)
        p.c[r * p.ldc + c] += value;
    }
  if (diagonal && p.total && t < kTile) {
    const int64_t column = ti * kTile + t;
    if (p.splits > 1)
      p.partial[p.splits * p.tiles * (kTile * kTile) + blockIdx.y * p.tile_rows * kTile + column] = column_sum;
    else if (column < p.a.columns)
      p.total[column] += column_sum;
  }
}

// Adds the splits of one tile in order; the diagonal tiles' blocks also add the column sums.
static __global__ void __launch_bounds__(kThreads) gram_reduce(const Problem p) {
  int64_t ti, tj;
  tile_of(blockIdx.x, ti, tj);
  for (int e = threadIdx.x; e < kTile * kTile; e += kThreads) {
    const int64_t r = ti * kTile + e / kTile, c = tj * kTile + e % kTile;
    if (r >= p.a.columns || c > r) continue;
    double value = 0.0;
    for (int64_t s = 0; s < p.splits; ++s) value += p.partial[(s * p.tiles + blockIdx.x) * (kTile * kTile) + e];
    p.c[r * p.ldc + c] += value;
  }
  const int64_t column = ti * kTile + threadIdx.x;
  if (ti == tj && p.total && threadIdx.x < kTile && column < p.a.columns) {
    double value = 0.0;
    for (int64_t s = 0; s < p.splits; ++s)
      value += p.partial[p.splits * p.tiles * (kTile * kTile) + s * p.tile_rows * kTile + column];
    p.total[column] += value;
  }
}

// Copies the lower triangle of a contiguous [size, size] matrix to the upper.
static __global__ void __launch_bounds__(kThreads) gram_mirror(double* c, int64_t size) {
  __shared__ double tile[32][33];
  int64_t ti, tj;
  tile_of(blockIdx.x, ti, tj);
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  for (int r = y; r < 32; r += kThreads / 32) {
    const int64_t i = ti * 32 + r, j = tj * 32 + x;
    if (i < size && j < size) tile[r][x] = c[i * size + j];
  }
  __syncthreads();
  for (int r = y; r < 32; r += kThreads / 32) {
    const int64_t i = ti * 32 + x, j = tj * 32 + r;  // tile[x][r] is C[i][j]; it goes to C[j][i]
    if (i < size && j < i) c[j * size + i] = tile[x][r];
  }
}

}  // namespace device
}  // namespace gram
}  // namespace fastrank
