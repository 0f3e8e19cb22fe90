// How a Gram product is cut into blocks on a GPU, and what a block is told.
//
// C is cut into square tiles of its lower triangle, and the rows into `splits`: one block owns one tile and one split.
// With a single split it adds to C itself; else it writes its tile to the workspace, and gram_reduce adds the splits
// up in a tree. No atomics: the result is the same bits in every run. The cut depends on the shape alone, so results
// depend neither on the device nor on what else is in a group.
#pragma once

#include <stdint.h>

#include "gram/gram.h"

namespace fastrank {
namespace gram {
namespace device {

constexpr int kSmall = 64, kWide = 128;     // sides of a tile
// From here on the tiles are wide: each panel is read half as often. Below, wide tiles would leave multiprocessors
// without work. An assumption: not measured.
constexpr int64_t kWideColumns = 1024;
// Blocks that a product is cut into where it has the rows for it: some four (small) or two (wide) for each of 132
// multiprocessors. An assumption: not measured.
constexpr int64_t kSmallBlocks = 512, kWideBlocks = 256;
// Rows of a split at least, in sides of a tile: reading them, in fp32, then takes twice what its partial sums take.
constexpr int64_t kSplitRows = 4;
constexpr int64_t kBand = 8;                // rows of tiles that are walked through together, see tile_of
constexpr int kReduceThreads = 512;
constexpr int64_t kReduceSplits = 16;       // splits that one thread of gram_reduce adds up
static_assert(kSmallBlocks <= kReduceThreads / 16 * kReduceSplits, "gram_reduce sees all splits");

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Roundings of a sum of n numbers in a tree.
inline int64_t tree_depth(int64_t n) {
  int64_t depth = 0;
  while ((int64_t{1} << depth) < n) ++depth;
  return depth;
}

struct Cut {
  int64_t tile, tile_rows, tiles, splits, rows_per_split;
  Cut(int64_t rows, int64_t columns) {
    tile = columns < kWideColumns ? kSmall : kWide;
    tile_rows = ceil_div(columns, tile);
    tiles = tile_rows * (tile_rows + 1) / 2;
    int64_t wanted = tiles ? ceil_div(tile == kSmall ? kSmallBlocks : kWideBlocks, tiles) : 1;
    const int64_t possible = rows / (kSplitRows * tile);
    if (wanted > possible) wanted = possible;
    if (wanted < 1) wanted = 1;
    rows_per_split = ceil_div(ceil_div(rows > 0 ? rows : 1, wanted), kFastChunk) * kFastChunk;
    splits = ceil_div(rows, rows_per_split);
  }
  Depth depth(int64_t rows, bool fast) const {
    if (rows == 0) return {0, 0};
    const int64_t longest = rows < rows_per_split ? rows : rows_per_split;
    return {(fast ? ceil_div(longest, kFastChunk) : longest) + tree_depth(splits), 1};
  }
  // Numbers of one split's partial sums: its tiles, then its column sums.
  int64_t partial_size() const { return tiles * tile * tile + tile_rows * tile; }
  int64_t workspace() const { return splits > 1 ? splits * partial_size() : 0; }
  // Groups of warps in a block of gram_reduce that share one number: a power of two.
  int64_t ways() const { return int64_t{1} << tree_depth(ceil_div(splits, kReduceSplits)); }
  int64_t reduce_blocks() const { return splits > 1 ? ceil_div(partial_size() * ways(), kReduceThreads) : 0; }
};

struct Problem {
  Matrix a;
  const double* shift;  // or null
  double* c;
  int64_t ldc;
  double* total;        // or null
  int* nonfinite;       // or null
  double* partial;      // workspace when splits > 1
  int64_t tile, tile_rows, tiles, splits, rows_per_split, partial_size, ways;
  int64_t first_block, first_reduce_block;  // of this problem in its group's launches
  int64_t symmetric;      // C's upper triangle is written too
  int64_t along_columns;  // neighbours in memory are columns, not rows
  int64_t vectors;        // and start on 16 bytes, 16 bytes at a time
};

// What a launch works on: `table` in device memory, or `one` where that is null.
struct Group {
  Problem one;
  const Problem* table;
  int64_t problems;
};

// What a block of gram_tiles does, in shared memory: registers are what it has least of.
struct Block {
  Problem p;
  int64_t tile, split, first, last;  // rows
  int64_t columns[2];                // the first of C's rows, and of C's columns
};

// The problem of this block into shared memory, and the block's number within it. Every thread finds it by itself.
template <int64_t Problem::*First>
__device__ __forceinline__ int64_t find_problem(const Group& g, Problem& found) {
  static_assert(sizeof(Problem) % sizeof(int64_t) == 0, "copied in words");
  constexpr int kWords = sizeof(Problem) / sizeof(int64_t);
  const int64_t block = blockIdx.x;
  int64_t low = 0, first = 0;
  if (g.table) {
    for (int64_t high = g.problems; high - low > 1;) {  // the last one that begins at or before this block
      const int64_t middle = (low + high) / 2;
      (g.table[middle].*First <= block ? low : high) = middle;
    }
    first = g.table[low].*First;
  }
  int64_t* const to = reinterpret_cast<int64_t*>(&found);
  for (int w = threadIdx.x; w < kWords; w += blockDim.x)
    to[w] = g.table ? reinterpret_cast<const int64_t*>(g.table + low)[w] : reinterpret_cast<const int64_t*>(&g.one)[w];
  __syncthreads();
  return block - first;
}

// Row of the triangle in which its number t lies, counted row by row: (0,0) (1,0) (1,1) (2,0) ...
__device__ __forceinline__ int64_t triangle_row(int64_t t) {
  int64_t i = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) * 0.5);
  while (i * (i + 1) / 2 > t) --i;  // the square root may be off by one either way
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  return i;
}

// Tile t of the lower triangle of tile_rows x tile_rows tiles. Bands of kBand rows follow each other; within one the
// tiles come column by column, so that blocks that run together share few panels: of 132 neighbours some 8 + 17.
__device__ __forceinline__ void tile_of(int64_t t, int64_t tile_rows, int64_t& i, int64_t& j) {
  const int64_t top = triangle_row(t) / kBand * kBand;
  int64_t rows = tile_rows - top < kBand ? tile_rows - top : kBand;
  t -= top * (top + 1) / 2;
  const int64_t full = top + 1;  // columns that all of the band's rows have
  if (t < full * rows) {
    j = t / rows;
    i = top + t % rows;
    return;
  }
  t -= full * rows;
  for (j = full, --rows; t >= rows; ++j) t -= rows--;
  i = j + t;
}

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ double widen(float x) { return static_cast<double>(x); }
__device__ __forceinline__ double widen(__nv_bfloat16 x) { return static_cast<double>(__bfloat162float(x)); }
__device__ __forceinline__ double widen(__half x) { return static_cast<double>(__half2float(x)); }

}  // namespace device
}  // namespace gram
}  // namespace fastrank
