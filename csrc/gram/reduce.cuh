// What follows the tiles: the splits added up.
#pragma once

#include "common/tensor.cuh"
#include "gram/problem.cuh"

namespace fastrank {
namespace gram {
namespace device {

// Of kCount numbers `stride` apart, those of the first `count`, in a tree; what is missing is 0.
template <int kCount>
__device__ __forceinline__ double tree_sum(const double* from, int64_t stride, int64_t count) {
  if constexpr (kCount == 1) {
    return count > 0 ? *from : 0.0;
  } else {
    constexpr int kHalf = kCount / 2;
    return tree_sum<kHalf>(from, stride, count) + tree_sum<kHalf>(from + kHalf * stride, stride, count - kHalf);
  }
}

// A block owns kReduceThreads / ways numbers of a problem's partial sums, tiles and column sums alike. Each of the
// `ways` parts of the block adds up kReduceSplits splits of them; then the parts are added, in a tree.
static __global__ void __launch_bounds__(kReduceThreads, 2) gram_reduce(const Group group) {
  __shared__ Problem p;
  __shared__ double parts[kReduceThreads];
  const int64_t block = find_problem<&Problem::first_reduce_block>(group, p);
  const int t = threadIdx.x, width = kReduceThreads / static_cast<int>(p.ways), part = t / width;
  const int64_t size = p.tile * p.tile, e = block * width + t % width, tile = e / size;
  int64_t r, c = -1;  // of column sums, r is the column
  bool mine;
  if (tile < p.tiles) {
    tile_of(tile, p.tile_rows, r, c);
    r = r * p.tile + e % size / p.tile;
    c = c * p.tile + e % p.tile;
    mine = r < p.a.columns && c <= r;
  } else {
    r = e - p.tiles * size;
    mine = p.total && r < p.a.columns;
  }
  const int64_t first = part * kReduceSplits;
  const double* const from = in_global(p.partial) + first * p.partial_size + e;
  parts[t] = mine ? tree_sum<kReduceSplits>(from, p.partial_size, p.splits - first) : 0.0;
  for (int apart = width; apart < kReduceThreads; apart *= 2) {  // from neighbours to halves: the order of the splits
    __syncthreads();
    const bool left = t / apart % 2 == 0 && t % apart < width;
    if (left) parts[t] += parts[t + apart];
  }
  if (part > 0 || !mine) return;
  if (tile >= p.tiles) {
    in_global(p.total)[r] += parts[t];
    return;
  }
  double* const to = in_global(p.c);
  const double value = to[r * p.ldc + c] + parts[t];
  to[r * p.ldc + c] = value;
  if (p.symmetric) to[c * p.ldc + r] = value;
}

}  // namespace device
}  // namespace gram
}  // namespace fastrank
