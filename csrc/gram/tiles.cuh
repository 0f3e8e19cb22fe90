// One tile of C over one split of the rows.
#pragma once

#include "gram/products.cuh"

namespace fastrank {
namespace gram {
namespace device {

// The column sums of a diagonal tile, and whether any of its numbers is NaN or Inf: a thread sees every second row of
// one column. 0 x is NaN for those numbers alone, whatever the sum does.
template <class Staging, int kTile>
struct Columns {
  double sum[2 * kTile], zero[2 * kTile];  // in shared memory, a thread's own: registers are short

  __device__ __forceinline__ void start() { sum[threadIdx.x] = zero[threadIdx.x] = 0.0; }
  __device__ __forceinline__ void step(const Staging& staging) {
    double more = 0.0, more_zero = 0.0;
#pragma unroll 4
    for (int k = threadIdx.x / kTile; k < Staging::kStep; k += 2) {
      const double y = staging.number(k, threadIdx.x % kTile);
      more += y;
      more_zero += 0.0 * y;
    }
    sum[threadIdx.x] += more;
    zero[threadIdx.x] += more_zero;
  }
  __device__ __forceinline__ void finish(const Block& b) const {
    const Problem& p = b.p;
    const int t = threadIdx.x;
    if (p.nonfinite && zero[t] != 0.0) *in_global(p.nonfinite) = 1;  // all who write, write the same
    if (!p.total) return;
    __syncthreads();
    const int64_t column = b.columns[0] + t;
    if (t >= kTile || column >= p.a.columns) return;
    const double both = sum[t] + sum[t + kTile];
    if (p.splits > 1)
      in_global(p.partial)[b.split * p.partial_size + p.tiles * (kTile * kTile) + column] = both;
    else
      in_global(p.total)[column] += both;
  }
};

template <class Products, int kTile>
__global__ void __launch_bounds__(2 * kTile, kTile == kSmall ? 3 : 1) gram_tiles(const Group group) {
  using Staging = typename Products::Staging;
  __shared__ Block b;
  __shared__ typename Staging::Shared staged;
  __shared__ Columns<Staging, kTile> columns;
  // Tiles of one split are neighbours: blocks that run together read the same rows.
  const int64_t block = find_problem<&Problem::first_block>(group, b.p);
  if (threadIdx.x == 0) {
    b.tile = block % b.p.tiles;
    b.split = block / b.p.tiles;
    int64_t ti, tj;
    tile_of(b.tile, b.p.tile_rows, ti, tj);
    b.columns[0] = ti * kTile;
    b.columns[1] = tj * kTile;
    b.first = b.split * b.p.rows_per_split;
    b.last = b.first + b.p.rows_per_split < b.p.a.rows ? b.first + b.p.rows_per_split : b.p.a.rows;
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, row0 = warp % 2 * (kTile / 2), column0 = warp / 2 * 32;
  const bool diagonal = b.columns[0] == b.columns[1];
  const bool multiplies = !diagonal || column0 < row0 + kTile / 2;  // else all of the warp's numbers are above
  const bool sums = diagonal && (b.p.total || b.p.nonfinite);

  Staging staging(staged, b);
  Products products;
  columns.start();
  constexpr int kStep = Staging::kStep, kAhead = Staging::kAhead * kStep;
  for (int64_t k = b.first - kAhead; k < b.last; k += kStep) {
    const bool staged = k >= b.first;  // the first turns only fetch
    if (staged) {
      staging.arrive();
      __syncthreads();
    }
    staging.fetch(k + kAhead);
    if (staged) {
      if (multiplies)
        products.step(staging.left() + Products::offset(row0), staging.right() + Products::offset(column0));
      if (sums) columns.step(staging);
      if (Products::kFast && ((k + kStep) % kFastChunk == 0 || k + kStep >= b.last)) products.flush();
    }
    staging.keep(k + kAhead);
  }

  const bool direct = b.p.splits == 1, symmetric = direct && b.p.symmetric;
  const int64_t size = b.p.a.columns, ldc = b.p.ldc, pitch = direct ? ldc : kTile;
  const int64_t top = b.columns[0], left = b.columns[1];
  double* const c = in_global(b.p.c);
  double* const to = direct ? c + top * ldc + left
                            : in_global(b.p.partial) + b.split * b.p.partial_size + b.tile * (kTile * kTile);
#pragma unroll
  for (int i = 0; i < kTile / 16; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int row = row0 + Products::row(i), column = column0 + Products::column(j);
      if (top + row >= size || left + column > top + row) continue;
      double* const place = in_global(to + row * pitch + column);
      const double value = (direct ? *place : 0.0) + products.sum[i][j];
      *place = value;
      if (symmetric) c[(left + column) * ldc + top + row] = value;
    }
  if (sums) columns.finish(b);
}

}  // namespace device
}  // namespace gram
}  // namespace fastrank
