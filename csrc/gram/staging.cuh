// How the two panels of a tile come into shared memory, step by step: the columns of X for C's rows, and those for its
// columns. On the diagonal they are one panel.
//
// Both classes here are used the same way, in every turn: `arrive`, a barrier, `fetch` of the step kAhead turns later,
// the products, `keep` of what was fetched. One barrier a turn is enough: what is fetched goes to a buffer that was
// read for the last time before it.
#pragma once

#include "common/tensor.cuh"
#include "gram/problem.cuh"

namespace fastrank {
namespace gram {
namespace device {

// Neighbours in memory, 16 bytes of them.
template <class In>
struct alignas(16) Chunk {
  static constexpr int kCount = 16 / sizeof(In);
  In x[kCount];
};

// Where a thread reads: chunks of one step that lie in one row of X (along columns) or in one column (along rows), and
// its position among the rows. The 2 kTile columns of both panels count through.
template <class In, int kTile, int kStep>
struct Reader {
  static constexpr int kThreads = 2 * kTile, kCount = Chunk<In>::kCount;
  static constexpr int kChunks = 2 * kTile * kStep / kCount / kThreads;  // a thread's

  const Block& block;
  const Problem& p;
  bool diagonal;
  int my_row, my_column, next_column;  // within the step; the thread's chunks are next_column apart
  int64_t inner;                       // the row's number within its image
  const In* row;

  __device__ __forceinline__ explicit Reader(const Block& b)
      : block(b), p(b.p), diagonal(b.columns[0] == b.columns[1]) {
    const int t = threadIdx.x;
    constexpr int kThreadsARow = kThreads / kStep, kThreadsAColumn = kStep / kCount;
    my_row = p.along_columns ? t / kThreadsARow : t % kThreadsAColumn * kCount;
    my_column = p.along_columns ? t % kThreadsARow * kCount : t / kThreadsAColumn;
    next_column = p.along_columns ? kThreadsARow * kCount : kThreads / kThreadsAColumn;
    const int64_t outer = (b.first + my_row) / p.a.inner;
    inner = (b.first + my_row) % p.a.inner;
    row = in_global(static_cast<const In*>(p.a.data)) + outer * p.a.stride_outer + inner * p.a.stride_inner;
  }

  __device__ __forceinline__ int64_t column_of(int within) const {
    return block.columns[within >= kTile] + within % kTile;
  }
  // Whether all of the chunk at row k and `column` is there to be copied at once.
  __device__ __forceinline__ bool whole(int64_t k, int64_t column) const {
    const int64_t rows = p.along_columns ? 1 : kCount, columns = p.along_columns ? kCount : 1;
    return p.vectors && k + rows <= block.last && column + columns <= p.a.columns;
  }
  // A chunk number by number; zeros where X ends.
  __device__ __forceinline__ void gather(int64_t k, int64_t column, Chunk<In>& chunk) const {
    const In* from = in_global(row);
    int64_t within = inner;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const int64_t my_k = p.along_columns ? k : k + e, c = p.along_columns ? column + e : column;
      chunk.x[e] = my_k < block.last && c < p.a.columns ? from[c * p.a.stride_column] : In(0.0f);
      if (p.along_columns) continue;
      from += p.a.stride_inner;
      if (++within == p.a.inner) within = 0, from += p.a.stride_outer - p.a.inner * p.a.stride_inner;
    }
  }
  __device__ __forceinline__ void advance() {
    row += kStep * p.a.stride_inner;
    for (inner += kStep; inner >= p.a.inner; inner -= p.a.inner)
      row += p.a.stride_outer - p.a.inner * p.a.stride_inner;
  }
};

// Converts to T and subtracts the shift on the way, through registers: the next step's numbers are on their way from
// global memory while this one's are multiplied. The subtraction is fp64 for every T.
template <class In, class T, int kTile>
struct Converted {
  static constexpr int kStep = 8, kAhead = 1;
  static constexpr int kPitch = kTile + 4;  // rows start on 16 bytes; no two fragments of a warp in one bank
  using Panel = T[kStep][kPitch];
  struct Shared {
    Panel panels[2][2];
    double shift[2 * kTile];
  };
  using Source = Reader<In, kTile, kStep>;

  Source source;
  Shared& shared;
  Chunk<In> chunks[Source::kChunks];
  int into = 0;  // buffer that they go to

  __device__ __forceinline__ Converted(Shared& s, const Block& b) : source(b), shared(s) {
    const int64_t column = source.column_of(threadIdx.x);
    shared.shift[threadIdx.x] = b.p.shift && column < b.p.a.columns ? in_global(b.p.shift)[column] : 0.0;
    __syncthreads();
  }

  __device__ __forceinline__ void fetch(int64_t k) {
    if (k >= source.block.last) return;
#pragma unroll
    for (int u = 0; u < Source::kChunks; ++u) {
      const int within = source.my_column + u * source.next_column;
      if (source.diagonal && within >= kTile) continue;
      const int64_t column = source.column_of(within), mine = k + source.my_row;
      if (source.whole(mine, column))
        chunks[u] = *reinterpret_cast<const Chunk<In>*>(in_global(source.row + column * source.p.a.stride_column));
      else
        source.gather(mine, column, chunks[u]);
    }
    source.advance();
  }

  __device__ __forceinline__ void keep(int64_t k) {
    if (k >= source.block.last) return;
#pragma unroll
    for (int u = 0; u < Source::kChunks; ++u) {
      const int within = source.my_column + u * source.next_column;
      if (source.diagonal && within >= kTile) continue;
      Panel& panel = shared.panels[into][within >= kTile];
      const int to = within % kTile;
      Chunk<In>& chunk = chunks[u];
      if (source.p.along_columns) {
        Chunk<T> converted[Chunk<In>::kCount / Chunk<T>::kCount];
#pragma unroll
        for (int e = 0; e < Chunk<In>::kCount; ++e)
          converted[e / Chunk<T>::kCount].x[e % Chunk<T>::kCount] =
              convert(chunk.x[e], within + e, k + source.my_row);
#pragma unroll
        for (int e = 0; e < Chunk<In>::kCount; e += Chunk<T>::kCount)
          *reinterpret_cast<Chunk<T>*>(&panel[source.my_row][to + e]) = converted[e / Chunk<T>::kCount];
      } else {
#pragma unroll
        for (int e = 0; e < Chunk<In>::kCount; ++e)
          panel[source.my_row + e][to] = convert(chunk.x[e], within, k + source.my_row + e);
      }
    }
    into ^= 1;
  }

  __device__ __forceinline__ T convert(const In& x, int within, int64_t k) const {
    if (k >= source.block.last) return T(0.0);  // not minus the shift
    return source.p.shift ? static_cast<T>(widen(x) - shared.shift[within]) : static_cast<T>(widen(x));
  }

  __device__ __forceinline__ void arrive() const {}
  // The step after the barrier lies in the buffer that is not filled next.
  __device__ __forceinline__ const T* left() const { return &shared.panels[into ^ 1][0][0][0]; }
  __device__ __forceinline__ const T* right() const { return &shared.panels[into ^ 1][!source.diagonal][0][0]; }
  __device__ __forceinline__ double number(int k, int column) const {
    return static_cast<double>(shared.panels[into ^ 1][0][k][column]);
  }
};

// Copies 16-bit numbers as they lie, past the registers, two steps ahead. Along rows a panel lies transposed, as X.
template <class In, int kTile, bool kAlongColumns>
struct Copied {
  static constexpr int kStep = 16, kAhead = 2, kStages = 3;
  static constexpr int kPanelRows = kAlongColumns ? kStep : kTile, kPanelColumns = kAlongColumns ? kTile : kStep;
  static constexpr int kPitch = kPanelColumns + 8;  // rows start on 16 bytes; no two of ldmatrix's in one bank
  using Panel = In[kPanelRows][kPitch];
  struct alignas(16) Shared {
    Panel panels[kStages][2];
  };
  using Source = Reader<In, kTile, kStep>;

  Source source;
  Shared& shared;
  int into = 0;  // buffer that the next fetch goes to

  __device__ __forceinline__ Copied(Shared& s, const Block& b) : source(b), shared(s) {}

  __device__ __forceinline__ void fetch(int64_t k) {
    if (k < source.block.last) {
#pragma unroll
      for (int u = 0; u < Source::kChunks; ++u) {
        const int within = source.my_column + u * source.next_column;
        if (source.diagonal && within >= kTile) continue;
        const int64_t column = source.column_of(within), mine = k + source.my_row;
        In* const to = place(shared.panels[into][within >= kTile], source.my_row, within % kTile);
        if (source.whole(mine, column)) {
          copy_async_16(to, source.row + column * source.p.a.stride_column, 16);
        } else {
          Chunk<In> chunk;
          source.gather(mine, column, chunk);
          *reinterpret_cast<Chunk<In>*>(to) = chunk;
        }
      }
      source.advance();
    }
    commit_copies();  // also where nothing was fetched: arrive() counts
    into = into + 1 < kStages ? into + 1 : 0;
  }
  __device__ __forceinline__ void keep(int64_t) const {}
  __device__ __forceinline__ void arrive() const { wait_copies<kAhead - 1>(); }

  // After a fetch, the step after the barrier lies in the buffer that the next one goes to.
  __device__ __forceinline__ const In* left() const { return &shared.panels[into][0][0][0]; }
  __device__ __forceinline__ const In* right() const { return &shared.panels[into][!source.diagonal][0][0]; }
  __device__ __forceinline__ double number(int k, int column) const {
    return widen(*place(shared.panels[into][0], k, column));
  }
  static __device__ __forceinline__ In* place(Panel& panel, int k, int column) {
    return kAlongColumns ? &panel[k][column] : &panel[column][k];
  }
};

}  // namespace device
}  // namespace gram
}  // namespace fastrank
