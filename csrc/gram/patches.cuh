// Device code of the patch products (patches.h), the general way: tiles of G over the columns of P, whose numbers are
// read from x when they are staged. Any step, dilation and padding. The other way is in shifts.cuh.
//
// One block owns one 64 x 64 tile of the lower triangle and one range of rows ("split"); patch_reduce adds the splits
// in order. No atomics: the result is the same bits in every run.
#pragma once

#include <initializer_list>

#include "gram/patch_tile.cuh"
#include "gram/patches.h"

namespace fastrank {
namespace gram {
namespace patches {

constexpr int64_t kSplitRows = 2048;   // rows of a split at least: a tile of partial sums costs 64 * 64 * 8 bytes once
constexpr int64_t kMaxSplits = 64;
constexpr int64_t kWantedBlocks = 1024;  // several for each place of a large device (some 300), so that few stand idle

// The cut depends on the shape alone, so results do not depend on the device.
struct Cut {
  int64_t rows, tile_rows, tiles, splits, rows_per_split;
  explicit Cut(const Patches& p) : rows(p.rows()) {
    tile_rows = ceil_div(p.columns(), kTile);
    tiles = tile_rows * (tile_rows + 1) / 2;
    int64_t wanted = ceil_div(rows, kSplitRows);
    for (const int64_t most : {kMaxSplits, ceil_div(kWantedBlocks, tiles)})
      if (wanted > most) wanted = most;
    const int64_t per = ceil_div(rows, wanted < 1 ? 1 : wanted);
    rows_per_split = ceil_div(per < 1 ? 1 : per, kFastChunk) * kFastChunk;  // a multiple of kStep too
    splits = ceil_div(rows, rows_per_split);
  }
  Depth depth(bool fast) const {
    const int64_t longest = rows < rows_per_split ? rows : rows_per_split;
    return {(fast ? ceil_div(longest, kFastChunk) + 1 : longest) + (splits > 1 ? splits : 0), 1};
  }
  // Partial tiles, then partial column sums.
  int64_t workspace() const { return splits > 1 ? splits * (tiles * kTile * kTile + tile_rows * kTile) : 0; }
};

struct Problem {
  Patches x;
  int64_t outputs[2];
  const double* shift;  // by channel, or null
  double* c;
  int64_t ldc;
  double* total;    // or null
  double* partial;  // workspace when splits > 1
  int64_t columns, rows, tiles, tile_rows, splits, rows_per_split;
};

// Where a column of P lies: its offset from the number at the patch's origin, and how far from there.
template <class T>
struct Column {
  int64_t offset;
  Shift<T> shift;
  int y, x;
};

template <class Products>
__global__ void __launch_bounds__(kTileThreads, 3) patch_tiles(const Problem p) {
  using In = typename Types<Products>::In;
  using T = typename Types<Products>::T;
  __shared__ Stage<T> stages[2];
  __shared__ Stride by;
  __shared__ Column<T> columns[2][kTile];  // of the tile's rows, then of its columns
  const int64_t ti = triangle_row(blockIdx.x), tj = blockIdx.x - ti * (ti + 1) / 2;
  const bool diagonal = ti == tj;
  const int t = threadIdx.x;
  const int valid[2] = {static_cast<int>(p.columns - ti * kTile), static_cast<int>(p.columns - tj * kTile)};
  {
    const int64_t column = (t < kTile ? ti : tj) * kTile + t % kTile;
    Column<T> mine = {};
    if (column < p.columns) {
      const int taps = static_cast<int>(p.x.kernel[0] * p.x.kernel[1]), tap = static_cast<int>(column % taps);
      const int64_t channel = column / taps;
      mine.y = tap / static_cast<int>(p.x.kernel[1]) * static_cast<int>(p.x.dilation[0]);
      mine.x = tap % static_cast<int>(p.x.kernel[1]) * static_cast<int>(p.x.dilation[1]);
      mine.offset = channel * p.x.stride_channel + mine.y * p.x.stride[0] + mine.x * p.x.stride[1];
      if (p.shift) mine.shift.set(p.shift[channel]);
    }
    columns[t / kTile][t % kTile] = mine;
  }
  if (t == 0) by.set(kStep, static_cast<int>(p.outputs[1]), static_cast<int>(p.outputs[0]), p.x.groups);
  __syncthreads();

  const int64_t first = blockIdx.y * p.rows_per_split;
  const int count = static_cast<int>(p.rows - first < p.rows_per_split ? p.rows - first : p.rows_per_split);
  const Place my = place(p.x.stride_channel == 1);
  Walk at(first + my.row, by);
  In next[2][kStaged];
  const auto load = [&](int k) {
    const int y0 = at.y * static_cast<int>(p.x.step[0]) - static_cast<int>(p.x.pad[0]);
    const int x0 = at.x * static_cast<int>(p.x.step[1]) - static_cast<int>(p.x.pad[1]);
    const In* const origin = static_cast<const In*>(p.x.data) + at.image * p.x.stride_image +
                             at.group * (p.x.channels * p.x.stride_channel) + y0 * p.x.stride[0] + x0 * p.x.stride[1];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      if (side == 1 && diagonal) break;
#pragma unroll
      for (int q = 0; q < kStaged; ++q) {
        const int column = my.column + 16 * q;
        const Column<T>& c = columns[side][column];
        const bool inside = static_cast<unsigned>(y0 + c.y) < static_cast<unsigned>(p.x.size[0]) &&
                            static_cast<unsigned>(x0 + c.x) < static_cast<unsigned>(p.x.size[1]);
        next[side][q] = k + my.row < count && column < valid[side] && inside ? origin[c.offset] : In{};
      }
    }
    at.advance(by);
  };

  load(0);
  Sums<Products> sums(diagonal);
  double column_sum = 0.0;  // of column t of the tile, in the diagonal tiles' first 64 threads
  int filled = 0;
  for (int k = 0; k < count; k += kStep) {
    Stage<T>& stage = stages[filled];
    const bool row_valid = k + my.row < count;
#pragma unroll
    for (int q = 0; q < kStaged; ++q) {
      const int column = my.column + 16 * q;
      stage.left[my.row][column] = row_valid ? columns[0][column].shift.from(next[0][q]) : T(0);
      if (!diagonal)
        stage.right[my.row][column] = row_valid ? columns[1][column].shift.from(next[1][q]) : T(0);
    }
    __syncthreads();  // with two stages, the one filled next has been read by all when this is passed
    if (k + kStep < count) load(k + kStep);
    sums.step(stage.left, diagonal ? stage.left : stage.right, k + kStep);
    if (diagonal && p.total && t < kTile)
      for (int s = 0; s < kStep; ++s) column_sum += static_cast<double>(stage.left[s][t]);
    filled ^= 1;
  }

  double* const tile = p.partial + (blockIdx.y * p.tiles + blockIdx.x) * (kTile * kTile);
  sums.finish([&](int i, int j, double value) {
    const int64_t r = ti * kTile + i, c = tj * kTile + j;
    if (p.splits > 1)
      tile[i * kTile + j] = value;
    else if (r < p.columns && c <= r)
      p.c[r * p.ldc + c] += value;
  });
  if (diagonal && p.total && t < kTile) {
    const int64_t column = ti * kTile + t;
    if (p.splits > 1)
      p.partial[p.splits * p.tiles * (kTile * kTile) + blockIdx.y * p.tile_rows * kTile + column] = column_sum;
    else if (column < p.columns)
      p.total[column] += column_sum;
  }
}

// Adds the splits of one tile in order; the diagonal tiles' blocks also add the column sums.
static __global__ void __launch_bounds__(kThreads) patch_reduce(const Problem p) {
  const int64_t ti = triangle_row(blockIdx.x), tj = blockIdx.x - ti * (ti + 1) / 2;
  for (int e = threadIdx.x; e < kTile * kTile; e += kThreads) {
    const int64_t r = ti * kTile + e / kTile, c = tj * kTile + e % kTile;
    if (r >= p.columns || c > r) continue;
    double value = 0.0;
    for (int64_t s = 0; s < p.splits; ++s) value += p.partial[(s * p.tiles + blockIdx.x) * (kTile * kTile) + e];
    p.c[r * p.ldc + c] += value;
  }
  const int64_t column = ti * kTile + threadIdx.x;
  if (ti == tj && p.total && threadIdx.x < kTile && column < p.columns) {
    double value = 0.0;
    for (int64_t s = 0; s < p.splits; ++s)
      value += p.partial[p.splits * p.tiles * (kTile * kTile) + s * p.tile_rows * kTile + column];
    p.total[column] += value;
  }
}

}  // namespace patches
}  // namespace gram
}  // namespace fastrank
