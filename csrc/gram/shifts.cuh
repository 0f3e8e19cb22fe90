// Device code of the patch products (patches.h), the way of shifts, for step 1.
//
// patch_pieces   one block: a tile of channels x channels, a difference of taps, a chunk of one piece of the image. It
//                sums over the positions u of the piece for which u + difference lies in the image: a rectangle again.
// patch_sums     sums of every channel over finer pieces, cut also where a tap meets the padding.
// patch_outside  from these: the column sums, and the sum of each tap's numbers over the outputs where another tap lies
//                in the padding. With P = Y there and -s in the padding,
//                  sum P_k P'_k' = sum Y_k Y'_k' - s' (sum of Y_k where k' is outside) - s (sum of Y'_k' where k is
//                  outside) + s s' (outputs where both are),
//                which adds and never takes away, so that its error is one of the terms that are summed.
// patch_combine  adds the chunks of a piece, the pieces of a window, and what the padding adds, to G; each pair once.
//
// Of a diagonal tile only the differences from 0 on are computed: rows of channel c and columns of channel c' < c take
// the others from the other side of the diagonal, where the difference is the opposite one.
// No atomics: every number is added up in one fixed order.
#pragma once

#include <initializer_list>

#include "gram/patch_tile.cuh"
#include "gram/patches.h"

namespace fastrank {
namespace gram {
namespace patches {

// Positions of a chunk, as powers of two: so many at most, while that makes kWantedBlocks; and at least.
constexpr int kLongChunk = 13, kShortChunk = 9;
constexpr int64_t kMaxChunks = 128;           // of a piece
constexpr int64_t kSpace = int64_t{1} << 23;  // doubles of partial tiles in one launch (64 MiB)
constexpr int kSumChunk = 12;                 // positions of a channel that one warp sums, at least; a power of two
constexpr int64_t kMaxSumChunks = 64;
constexpr int kWarps = kThreads / 32;

// One axis of the image cut at the ends of the windows (as Cuts), and where some tap meets the padding while another
// stands at the cut. Every place where tap k is inside and tap k' outside is then a union of pieces.
struct Fine {
  int pieces;
  int64_t edge[4 * Cuts::kTaps + 2];

  Fine(const Patches& p, int axis) {
    const int64_t size = p.size[axis];
    pieces = 0;
    edge[0] = 0;
    while (edge[pieces] < size) {
      int64_t next = size;
      for (int64_t k = 0; k < p.kernel[axis]; ++k) {
        const int64_t begin = k * p.dilation[axis] - p.pad[axis], far = k * p.dilation[axis];
        // A tap j further back than k meets the padding at (k - j) dilations: all multiples up to kernel - 1.
        for (const int64_t at : {begin, begin + p.outputs(axis), far, size - far})
          if (at > edge[pieces] && at < next) next = at;
      }
      edge[++pieces] = next;
    }
  }
};

struct Shifts {
  Patches x;
  Cuts rows, columns;             // of the image
  Fine fine_rows, fine_columns;
  const double* shift;            // by channel, or null
  double* c;
  int64_t ldc;
  double* total;                  // or null
  double *partial, *sums, *outside, *both;
  int items, chunk, slots, batch, first, sum_chunk;  // see Plan; items [first, first + batch) are at work
  int padded;                     // whether any tap ever meets the padding
};

// Chunks of 2^log positions that `positions` make.
__host__ __device__ inline int64_t chunks(int64_t positions, int log) {
  return (positions + (int64_t{1} << log) - 1) >> log;
}

// How the work is cut: depends on the shape alone, so results do not depend on the device.
struct Plan {
  int64_t tile_rows, tiles, items;  // an item: a tile and a difference
  int chunk, sum_chunk;             // positions of a chunk: their logarithm to base 2
  int64_t slots;                    // partial tiles of an item: the chunks of all pieces
  int64_t most_chunks, pieces;
  int64_t batches, batch;           // items of one launch
  int64_t fine, sum_chunks;
  int64_t channels, taps;

  explicit Plan(const Patches& p) : channels(p.channels), taps(p.taps()) {
    const Cuts rows(p, 0), columns(p, 1);
    const int64_t differences = (2 * p.kernel[0] - 1) * (2 * p.kernel[1] - 1);
    const int64_t images = p.images * p.groups;
    tile_rows = ceil_div(p.channels, kTile);
    tiles = tile_rows * (tile_rows + 1) / 2;
    items = (tiles - tile_rows) * differences + tile_rows * ((differences + 1) / 2);
    pieces = static_cast<int64_t>(rows.pieces) * columns.pieces;
    int64_t largest = 0;
    const auto each_piece = [&](auto visit) {
      for (int y = 0; y < rows.pieces; ++y)
        for (int x = 0; x < columns.pieces; ++x)
          visit(images * (rows.edge[y + 1] - rows.edge[y]) * (columns.edge[x + 1] - columns.edge[x]));
    };
    each_piece([&](int64_t positions) { largest = positions > largest ? positions : largest; });
    chunk = kLongChunk;
    while (chunk > kShortChunk && items * chunks(largest, chunk) < kWantedBlocks) --chunk;
    while (chunks(largest, chunk) > kMaxChunks) ++chunk;
    slots = 0;
    each_piece([&](int64_t positions) { slots += chunks(positions, chunk); });
    most_chunks = chunks(largest, chunk);
    batches = ceil_div(items * slots * kTile * kTile, kSpace);
    if (batches > items) batches = items;
    batch = ceil_div(items, batches);
    batches = ceil_div(items, batch);

    const Fine fine_rows(p, 0), fine_columns(p, 1);
    fine = static_cast<int64_t>(fine_rows.pieces) * fine_columns.pieces;
    const int64_t positions = images * p.size[0] * p.size[1];
    sum_chunk = kSumChunk;
    while (chunks(positions, sum_chunk) > kMaxSumChunks) ++sum_chunk;
    sum_chunks = chunks(positions, sum_chunk);
  }

  int64_t partials() const { return batch * slots * kTile * kTile; }
  int64_t sums() const { return sum_chunks * fine * channels; }
  int64_t workspace() const { return partials() + sums() + (channels + 1) * taps * taps; }

  Depth depth(bool fast) const {
    const int64_t longest = int64_t{1} << chunk;
    const int64_t product = (fast ? ceil_div(longest, kFastChunk) + 1 : longest) + most_chunks + pieces;
    const int64_t outside = (int64_t{1} << sum_chunk) / 32 + 5 + sum_chunks * fine + 1;
    return {(product > outside ? product : outside) + 4, 1};
  }
};

// The tile and the difference of an item. Tiles come row by row, in each its differences.
struct Item {
  int ti, tj, difference;
};
__device__ __forceinline__ int differences_of(const Patches& x) {
  return static_cast<int>((2 * x.kernel[0] - 1) * (2 * x.kernel[1] - 1));
}
// The first item of tile (i, j).
__device__ __forceinline__ int first_item(const Patches& x, int i, int j) {
  const int all = differences_of(x);
  return (i * (i - 1) / 2 + j) * all + i * ((all + 1) / 2);
}
__device__ __forceinline__ Item item_of(const Patches& x, int item) {
  const int all = differences_of(x);
  int i = 0;
  while (first_item(x, i + 1, 0) <= item) ++i;
  const int in_row = item - first_item(x, i, 0), j = in_row / all < i ? in_row / all : i;
  // A diagonal tile begins in the middle, with the difference 0.
  return {i, j, in_row - j * all + (i == j ? all / 2 : 0)};
}

__device__ __forceinline__ int chunks_of(const Shifts& p, int row, int column) {
  const int64_t height = p.rows.edge[row + 1] - p.rows.edge[row];
  const int64_t area = height * (p.columns.edge[column + 1] - p.columns.edge[column]);
  return static_cast<int>(chunks(p.x.images * p.x.groups * area, p.chunk));
}

// Whether any tap k reaches this piece of an axis while k + difference is a tap too.
__device__ __forceinline__ bool needed(const Cuts& cuts, int taps, int difference, int piece) {
  const int first = difference < 0 ? -difference : 0, last = difference < 0 ? taps : taps - difference;
  for (int k = first; k < last; ++k)
    if (cuts.first[k] <= piece && piece < cuts.last[k]) return true;
  return false;
}

template <class Products>
__global__ void __launch_bounds__(kTileThreads, 3) patch_pieces(const __grid_constant__ Shifts p) {
  using In = typename Types<Products>::In;
  using T = typename Types<Products>::T;
  __shared__ Stage<T> stages[2];
  __shared__ Shift<T> shift[2][kTile];
  __shared__ Stride by;
  const int slot = static_cast<int>(blockIdx.x) / p.batch, local = static_cast<int>(blockIdx.x) % p.batch;
  if (p.first + local >= p.items) return;
  const Item item = item_of(p.x, p.first + local);
  int row = 0, column = 0, chunk = slot;
  for (int count; (count = chunks_of(p, row, column)) <= chunk; chunk -= count)
    if (++column == p.columns.pieces) column = 0, ++row;
  const int taps[2] = {static_cast<int>(p.x.kernel[0]), static_cast<int>(p.x.kernel[1])};
  const int across = 2 * taps[1] - 1;
  const int by_row = item.difference / across - (taps[0] - 1), by_column = item.difference % across - (taps[1] - 1);
  if (!needed(p.rows, taps[0], by_row, row) || !needed(p.columns, taps[1], by_column, column)) return;

  const int64_t dy = by_row * p.x.dilation[0], dx = by_column * p.x.dilation[1];
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const auto most = [](int64_t a, int64_t b) { return a > b ? a : b; };
  const int64_t y0 = most(p.rows.edge[row], -dy), y1 = least(p.rows.edge[row + 1], p.x.size[0] - dy);
  const int64_t x0 = most(p.columns.edge[column], -dx), x1 = least(p.columns.edge[column + 1], p.x.size[1] - dx);
  const int height = static_cast<int>(most(y1 - y0, 0)), width = static_cast<int>(most(x1 - x0, 0));
  const int64_t positions = p.x.images * p.x.groups * height * width;
  const int64_t first = static_cast<int64_t>(chunk) << p.chunk;
  const int count = static_cast<int>(most(least(int64_t{1} << p.chunk, positions - first), 0));

  const Place my = place(p.x.stride_channel == 1);
  const int64_t side[2] = {int64_t{item.ti} * kTile, int64_t{item.tj} * kTile};  // the first channel
  // Channels of a side, counted from the thread's first.
  const int valid[2] = {static_cast<int>(p.x.channels - side[0]) - my.column,
                        static_cast<int>(p.x.channels - side[1]) - my.column};
  const int64_t my_channel = int64_t{threadIdx.x < kTile ? item.ti : item.tj} * kTile + threadIdx.x % kTile;
  shift[threadIdx.x / kTile][threadIdx.x % kTile].set(p.shift && my_channel < p.x.channels ? p.shift[my_channel] : 0.0);
  if (threadIdx.x == 0) by.set(kStep, most(width, 1), most(height, 1), p.x.groups);
  __syncthreads();
  Walk at(first + my.row, by);
  const In* const data[2] = {
      static_cast<const In*>(p.x.data) + y0 * p.x.stride[0] + x0 * p.x.stride[1] +
          (side[0] + my.column) * p.x.stride_channel,
      static_cast<const In*>(p.x.data) + (y0 + dy) * p.x.stride[0] + (x0 + dx) * p.x.stride[1] +
          (side[1] + my.column) * p.x.stride_channel};
  In next[2][kStaged];
  const auto load = [&](int k) {
    const int64_t offset = at.image * p.x.stride_image + at.group * (p.x.channels * p.x.stride_channel) +
                           at.y * p.x.stride[0] + at.x * p.x.stride[1];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int q = 0; q < kStaged; ++q)
        next[s][q] = k + my.row < count && 16 * q < valid[s] ? data[s][offset + 16 * q * p.x.stride_channel] : In{};
    at.advance(by);
  };

  load(0);
  Sums<Products> sums(item.ti == item.tj && item.difference == differences_of(p.x) / 2);
  int filled = 0;
  for (int k = 0; k < count; k += kStep) {
    Stage<T>& stage = stages[filled];
    const bool there = k + my.row < count;
#pragma unroll
    for (int q = 0; q < kStaged; ++q) {
      const int c = my.column + 16 * q;
      stage.left[my.row][c] = there ? shift[0][c].from(next[0][q]) : T(0);
      stage.right[my.row][c] = there ? shift[1][c].from(next[1][q]) : T(0);
    }
    __syncthreads();  // with two stages, the one filled next has been read by all when this is passed
    if (k + kStep < count) load(k + kStep);
    sums.step(stage.left, stage.right, k + kStep);
    filled ^= 1;
  }
  double* const tile = p.partial + (static_cast<int64_t>(local) * p.slots + slot) * (kTile * kTile);
  sums.finish([&](int i, int j, double value) { tile[i * kTile + j] = value; });
}

// Block (x, y, z): 8 channels, a fine piece, a chunk of its positions. sums[z][y][channel].
template <class In>
__global__ void __launch_bounds__(kThreads) patch_sums(const __grid_constant__ Shifts p) {
  __shared__ Stride by;
  const int piece = blockIdx.y, row = piece / p.fine_columns.pieces, column = piece % p.fine_columns.pieces;
  const int64_t y0 = p.fine_rows.edge[row], x0 = p.fine_columns.edge[column];
  const int height = static_cast<int>(p.fine_rows.edge[row + 1] - y0);
  const int width = static_cast<int>(p.fine_columns.edge[column + 1] - x0);
  const int64_t positions = p.x.images * p.x.groups * height * width;
  const int64_t first = static_cast<int64_t>(blockIdx.z) << p.sum_chunk, end = first + (int64_t{1} << p.sum_chunk);
  const int64_t last = end < positions ? end : positions;
  if (threadIdx.x == 0) by.set(32, width, height, p.x.groups);
  __syncthreads();
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (channel >= p.x.channels || first >= positions) return;
  const double shift = p.shift ? p.shift[channel] : 0.0;
  const In* const data = static_cast<const In*>(p.x.data) + channel * p.x.stride_channel + y0 * p.x.stride[0] +
                         x0 * p.x.stride[1];
  const int lane = threadIdx.x % 32;
  Walk at(first + lane, by);
  double sum = 0.0;
  for (int64_t n = first + lane; n < last; n += 32) {
    sum += widen(data[at.image * p.x.stride_image + at.group * (p.x.channels * p.x.stride_channel) +
                      at.y * p.x.stride[0] + at.x * p.x.stride[1]]) - shift;
    at.advance(by);
  }
  for (int other = 16; other; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
  if (lane == 0) p.sums[(blockIdx.z * gridDim.y + blockIdx.y) * p.x.channels + channel] = sum;
}

// The positions of tap k on one axis, and of those the ones where tap `other` is inside too.
struct Window {
  int64_t begin, end, inside_begin, inside_end;
};
__device__ __forceinline__ Window window(const Patches& x, int axis, int k, int other) {
  const int64_t size = x.size[axis], begin = k * x.dilation[axis] - x.pad[axis];
  const int64_t end = begin + (size + 2 * x.pad[axis] - x.dilation[axis] * (x.kernel[axis] - 1));  // step 1
  const int64_t difference = (other - k) * x.dilation[axis];
  Window w = {begin > 0 ? begin : 0, end < size ? end : size, 0, 0};
  if (w.end < w.begin) w.end = w.begin;  // it sees padding alone
  w.inside_begin = w.begin > -difference ? w.begin : -difference;
  w.inside_end = w.end < size - difference ? w.end : size - difference;
  if (w.inside_end < w.inside_begin) w.inside_end = w.inside_begin;
  return w;
}

// Block (x, y): a channel; a thread: a tap, and another tap (with `padded`; else the same one).
static __global__ void __launch_bounds__(kThreads) patch_outside(const __grid_constant__ Shifts p) {
  const int across = static_cast<int>(p.x.kernel[1]), taps = static_cast<int>(p.x.kernel[0]) * across;
  const int others = p.padded ? taps : 1;
  const int64_t channel = blockIdx.x;
  const int index = blockIdx.y * kThreads + threadIdx.x;
  if (index >= taps * others) return;
  const int k = index / others, other = p.padded ? index % others : k;
  const Window y = window(p.x, 0, k / across, other / across), x = window(p.x, 1, k % across, other % across);
  const bool total = k == other;
  const int64_t pieces = static_cast<int64_t>(p.fine_rows.pieces) * p.fine_columns.pieces;
  double sum = 0.0;
  for (int row = 0; row < p.fine_rows.pieces; ++row)
    for (int column = 0; column < p.fine_columns.pieces; ++column) {
      const int64_t v = p.fine_rows.edge[row], u = p.fine_columns.edge[column];
      if (v < y.begin || v >= y.end || u < x.begin || u >= x.end) continue;
      if (!total && v >= y.inside_begin && v < y.inside_end && u >= x.inside_begin && u < x.inside_end) continue;
      const int64_t area = (p.fine_rows.edge[row + 1] - v) * (p.fine_columns.edge[column + 1] - u);
      const int64_t count = chunks(p.x.images * p.x.groups * area, p.sum_chunk);
      for (int64_t s = 0; s < count; ++s)
        sum += p.sums[(s * pieces + row * p.fine_columns.pieces + column) * p.x.channels + channel];
    }
  const Window other_y = window(p.x, 0, other / across, k / across);
  const Window other_x = window(p.x, 1, other % across, k % across);
  const auto outputs = [&](int axis) {
    return p.x.size[axis] + 2 * p.x.pad[axis] - p.x.dilation[axis] * (p.x.kernel[axis] - 1);
  };
  // Outputs where both taps are outside.
  const double both = static_cast<double>(
      p.x.images * p.x.groups *
      (outputs(0) * outputs(1) - (y.end - y.begin) * (x.end - x.begin) -
       (other_y.end - other_y.begin) * (other_x.end - other_x.begin) +
       (y.inside_end - y.inside_begin) * (x.inside_end - x.inside_begin)));
  if (p.padded) {
    p.outside[(channel * taps + k) * taps + other] = total ? 0.0 : sum;
    if (channel == 0) p.both[k * taps + other] = both;
  }
  if (total && p.total) {
    const double shift = p.shift ? p.shift[channel] : 0.0;
    p.total[channel * taps + k] += p.padded ? sum - shift * both : sum;
  }
}

// Rows of a tile that blocks of patch_combine own: a single tile may have fewer channels.
__host__ __device__ inline int rows_of_tile(const Patches& x) {
  return x.channels < kTile ? static_cast<int>(x.channels) : kTile;
}

// Block x: a row (a channel) of a tile; the tiles from the one of item `first` on. It owns the rows of G of that
// channel, below the tile's columns; neighbours are written by neighbours.
static __global__ void __launch_bounds__(kThreads) patch_combine(const __grid_constant__ Shifts p) {
  __shared__ int slots[(2 * Cuts::kTaps + 1) * (2 * Cuts::kTaps + 1) + 1];  // the first of each piece
  const Item start = item_of(p.x, p.first);
  int ti = start.ti, tj = start.tj + static_cast<int>(blockIdx.x) / rows_of_tile(p.x);
  while (tj > ti) tj -= ++ti;
  const bool diagonal = ti == tj;
  const int r = static_cast<int>(blockIdx.x) % rows_of_tile(p.x), t = threadIdx.x;
  const int64_t channel = int64_t{ti} * kTile + r;
  if (channel >= p.x.channels) return;
  const int pieces = p.rows.pieces * p.columns.pieces, all = differences_of(p.x), zero = all / 2;
  const int taps[2] = {static_cast<int>(p.x.kernel[0]), static_cast<int>(p.x.kernel[1])};
  const int patch = taps[0] * taps[1], across = 2 * taps[1] - 1;
  if (t == 0) {
    slots[0] = 0;
    for (int i = 0; i < pieces; ++i) slots[i + 1] = slots[i] + chunks_of(p, i / p.columns.pieces, i % p.columns.pieces);
  }
  __syncthreads();
  // Items of this tile that are at work.
  const int base = first_item(p.x, ti, tj);
  const int begin = base > p.first ? base : p.first;
  int end = base + (diagonal ? all - zero : all);
  if (end > p.first + p.batch) end = p.first + p.batch;

  // The chunks of a piece go to its first slot: those numbers that this block reads, and no other. In a diagonal tile
  // it reads its row up to the diagonal, and above the diagonal its column.
  const int e = t % kTile;
  const int mine = diagonal && e > r ? -1 : r * kTile + e, above = diagonal && e < r ? e * kTile + r : -1;
  for (int n = t / kTile; n < (end - begin) * pieces; n += kThreads / kTile) {
    const int piece = n % pieces, count = slots[piece + 1] - slots[piece];
    if (count == 1) continue;
    const int item = begin + n / pieces, difference = item - base + (diagonal ? zero : 0);
    if (!needed(p.rows, taps[0], difference / across - (taps[0] - 1), piece / p.columns.pieces) ||
        !needed(p.columns, taps[1], difference % across - (taps[1] - 1), piece % p.columns.pieces))
      continue;
    double* const tile = p.partial + (static_cast<int64_t>(item - p.first) * p.slots + slots[piece]) * (kTile * kTile);
    const auto gather = [&](int at) {
      double sum = tile[at];
      for (int s = 1; s < count; ++s) sum += tile[s * (kTile * kTile) + at];
      tile[at] = sum;
    };
    if (mine >= 0) gather(mine);
    if (above >= 0) gather(above);
  }
  __syncthreads();

  const double shift = p.shift ? p.shift[channel] : 0.0;
  for (int k = 0; k < patch; ++k)
    for (int i = t; i < kTile * patch; i += kThreads) {
      const int column = i / patch, other = i % patch;
      const int64_t partner = int64_t{tj} * kTile + column;
      if (partner > channel || partner >= p.x.channels || (partner == channel && other > k)) continue;
      const int by_row = other / taps[1] - k / taps[1], by_column = other % taps[1] - k % taps[1];
      const int difference = (by_row + taps[0] - 1) * across + by_column + taps[1] - 1;
      const bool turned = diagonal && difference < zero;  // then in the tile's other half, with the opposite difference
      const int item = base + (diagonal ? (turned ? all - 1 - difference : difference) - zero : difference);
      if (item < begin || item >= end) continue;
      const int tap = turned ? other : k, at = turned ? column * kTile + r : r * kTile + column;
      const double* const tiles = p.partial + static_cast<int64_t>(item - p.first) * p.slots * (kTile * kTile) + at;
      double value = 0.0;
      for (int y = p.rows.first[tap / taps[1]]; y < p.rows.last[tap / taps[1]]; ++y)
        for (int x = p.columns.first[tap % taps[1]]; x < p.columns.last[tap % taps[1]]; ++x)
          value += tiles[slots[y * p.columns.pieces + x] * static_cast<int64_t>(kTile * kTile)];
      if (p.padded) {
        const double partners = p.shift ? p.shift[partner] : 0.0;
        value -= partners * p.outside[(channel * patch + k) * patch + other] +
                 shift * p.outside[(partner * patch + other) * patch + k] -
                 shift * partners * p.both[k * patch + other];
      }
      p.c[(channel * patch + k) * p.ldc + partner * patch + other] += value;
    }
}

}  // namespace patches
}  // namespace gram
}  // namespace fastrank
