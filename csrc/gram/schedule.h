// How a CPU Gram product is cut into tasks. The cut depends on the shape and the mode only, never on the number of
// threads, and every number of C is added up in one fixed order: results are the same bits at any thread count.
//
// Narrow (columns <= kNarrow): the packed chunk fits in a core's L2, so a task owns a range of rows ("split"), packs
// and multiplies it chunk by chunk into a triangle of its own, and the triangles are added in order.
// Wide: a slab of chunks is packed into one shared buffer, then tasks own square blocks of C and run through the
// slab's chunks; C itself is the accumulator, so memory does not grow with the number of tasks.
#pragma once


#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "common/workspace.h"
#include "gram/gram.h"

namespace fastrank {
namespace gram {

constexpr int64_t kNarrow = 256;               // 256 columns x 256 rows x 8 bytes = 512 KiB, a quarter of a 2 MiB L2
constexpr int64_t kSplitChunks = 4;            // chunks of a split: enough to pay for adding its triangle up
// In the exact mode, where a chunk takes longest, two pay as well: up to so many splits are of two chunks. An even number
// of splits leaves two threads as much to do each.
constexpr int64_t kShortSplits = 4;
constexpr int64_t kMaxSplits = 16;             // at most 16 triangles of 256^2 fp64: 8 MiB
constexpr int64_t kBlock = 144;  // wide: side of a block of C; a multiple of each tile's columns (48 fp32 of AVX-512)
constexpr int64_t kPackPanels = 4;             // wide: panels packed by one task
constexpr int64_t kSlabBytes = int64_t{4} << 20;
constexpr int64_t kSerialWork = int64_t{1} << 20;  // below this rows * columns^2 one thread is faster (some 50 us)

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  bool narrow;
  int64_t chunk, chunks, chunks_per_task, tasks;  // tasks: splits (narrow) or slabs (wide), of so many chunks at most

  Plan(const Kernels& kernels, int64_t rows, int64_t columns) {
    chunk = kernels.chunk;
    chunks = ceil_div(rows, chunk);
    narrow = columns <= kNarrow;
    if (narrow) {
      tasks = ceil_div(chunks, kSplitChunks);
      if (kernels.element_size == 8) tasks = std::max(tasks, std::min(ceil_div(chunks, 2), kShortSplits));
      tasks = std::clamp(tasks > 1 ? ceil_div(tasks, 2) * 2 : tasks, int64_t{1}, kMaxSplits);
      chunks_per_task = ceil_div(chunks, tasks);
    } else {
      const int64_t chunk_bytes = chunk * columns * kernels.element_size;
      chunks_per_task = std::max<int64_t>(1, kSlabBytes / chunk_bytes);
      tasks = ceil_div(chunks, chunks_per_task);
    }
  }

  // The first chunk of a split: none has more than one more than another.
  int64_t begin(int64_t split) const { return split * chunks / tasks; }

  Depth depth(const Kernels& kernels, int64_t rows) const {
    // A chunk of fp32 sums or of integers is rounded to fp64 once at most, which counts as one of the additions.
    const int64_t in_chunk = kernels.element_size == 8 ? std::min(rows, chunk) : kernels.rounded ? 1 : 0;
    if (narrow && tasks > 1) return {in_chunk + chunks_per_task - 1 + tasks - 1, 1};
    return {in_chunk, chunks};
  }
};

struct Output {
  double* c;       // [columns, columns], lower triangle, row stride ldc
  int64_t ldc;
  double* total;   // [columns] += sum_k a(k, i), or null
  double* rounded = nullptr;  // += the square of what rounding A changed, at most; null: it may not be rounded
  bool whole = false;  // C, contiguous, is written rather than added to, and its upper triangle too
};

// Copies rows [first, last) of the lower triangle of a contiguous matrix to the upper.
inline void mirror(double* c, int64_t size, int64_t first, int64_t last) {
  // Where rows lie a power of two apart, no more of them than this stay in L1.
  constexpr int64_t tile = 8;
  for (int64_t i0 = first; i0 < last; i0 += tile)
    for (int64_t j0 = 0; j0 < std::min(last, i0 + tile); j0 += tile)
      for (int64_t j = j0; j < j0 + tile; ++j)
        for (int64_t i = std::max(i0, j + 1); i < std::min(last, i0 + tile); ++i) c[j * size + i] = c[i * size + j];
}

// pack(row, count, first, last, packed, panel_stride, sums): as in Kernels, of whatever has `rows` rows.
template <class Pack>
void run_narrow(const Kernels& kernels, const Plan& plan, int64_t rows, int64_t columns, const Pack& pack,
                const Output& out, int threads) {
  static thread_local Workspace partial_space;
  const int64_t m = columns, panels = ceil_div(m, kernels.lanes), stride = plan.chunk * kernels.lanes;
  const bool direct = plan.tasks == 1;  // then C itself is the triangle
  const int64_t partial_size = m * m + m;  // a triangle and, after it, column sums
  // One thread alone adds each split to the first as it comes, in the same order: two triangles instead of all.
  const bool alone = threads == 1;
  const int64_t held = alone ? std::min<int64_t>(plan.tasks, 2) : plan.tasks;
  // A task's own chunk sums come first: [held, m].
  double* const chunk_sums = static_cast<double*>(
      partial_space.get(static_cast<int64_t>(sizeof(double)) * held * (m + (direct ? m : partial_size))));
  double* const partials = chunk_sums + held * m;
  // The first triangle is that which takes the others up: C where nothing is in it.
  double* const first = out.whole ? out.c : partials;
  const int64_t first_stride = out.whole ? out.ldc : m;
  std::vector<double> rounded(static_cast<size_t>(plan.tasks), 0.0);
  // Row i of the first triangle takes that of another up.
  const auto take_up = [&](const double* triangle, int64_t i) {
    double* const to = first + i * first_stride;
    const double* const from = triangle + i * m;
    for (int64_t j = 0; j <= i; ++j) to[j] += from[j];
  };
  const auto take_up_sums = [&](const double* triangle) {
    double* const sums = partials + m * m;
    for (int64_t i = 0; i < m; ++i) sums[i] += triangle[m * m + i];
  };

  parallel_for(plan.tasks, threads, [&](int64_t task) {
    static thread_local Workspace pack_space;
    void* packed = pack_space.get(panels * stride * kernels.element_size);
    const int64_t place = std::min(task, held - 1);
    double* const mine = partials + place * partial_size;
    double* const c = direct ? out.c : task ? mine : first;
    const int64_t ldc = direct ? out.ldc : task ? m : first_stride;
    double* const sums = direct ? partials : mine + m * m;
    double* const chunk_sum = out.total ? chunk_sums + place * m : nullptr;
    std::fill(sums, sums + m, 0.0);
    const int64_t begin = plan.begin(task);
    for (int64_t chunk = begin; chunk < plan.begin(task + 1); ++chunk) {
      const int64_t row = chunk * plan.chunk, count = std::min(plan.chunk, rows - row);
      pack(row, count, 0, panels, packed, stride, chunk_sum);
      if (kernels.rounded) rounded[static_cast<size_t>(task)] += kernels.rounded(packed, stride, panels);
      if (chunk_sum)
        for (int64_t i = 0; i < m; ++i) sums[i] += chunk_sum[i];
      kernels.multiply(packed, stride, count, 0, m, 0, m, c, ldc, chunk > begin || (direct && !out.whole));
    }
    if (alone && task) {
      for (int64_t i = 0; i < m; ++i) take_up(mine, i);
      take_up_sums(mine);
    }
  });

  if (kernels.rounded)
    for (const double of_task : rounded) *out.rounded += of_task;
  if (out.total) {
    double* const sums = direct ? partials : partials + m * m;
    for (int64_t task = 1; task < plan.tasks && !alone; ++task) take_up_sums(partials + task * partial_size);
    for (int64_t i = 0; i < m; ++i) out.total[i] += sums[i];
  }
  if (!direct) {
    constexpr int64_t rows_per_task = 32;
    const int64_t blocks = ceil_div(m, rows_per_task);
    parallel_for(blocks, threads, [&](int64_t task) {
      const int64_t block = blocks - 1 - task;  // the longest first
      for (int64_t i = block * rows_per_task; i < std::min(m, (block + 1) * rows_per_task); ++i) {
        for (int64_t of = 1; of < plan.tasks && !alone; ++of) take_up(partials + of * partial_size, i);
        const double* const to = first + i * first_stride;
        for (int64_t j = 0; j <= i && !out.whole; ++j) out.c[i * out.ldc + j] += to[j];  // once
      }
    });
  }
  if (out.whole) mirror(out.c, m, 0, m);
  partial_space.trim();
}

template <class Pack>
void run_wide(const Kernels& kernels, const Plan& plan, int64_t rows, int64_t columns, const Pack& pack,
              const Output& out, int threads) {
  static thread_local Workspace space;
  const int64_t m = columns, panels = ceil_div(m, kernels.lanes), stride = plan.chunk * kernels.lanes;
  const int64_t chunk_bytes = panels * stride * kernels.element_size;
  const int64_t slab_chunks = std::min(plan.chunks, plan.chunks_per_task);
  char* const packed = static_cast<char*>(
      space.get(slab_chunks * (chunk_bytes + static_cast<int64_t>(sizeof(double)) * m)));
  double* const sums = reinterpret_cast<double*>(packed + slab_chunks * chunk_bytes);  // [slab_chunks, m]
  const int64_t pack_tasks = ceil_div(panels, kPackPanels), blocks = ceil_div(m, kBlock);

  for (int64_t first = 0; first < plan.chunks; first += slab_chunks) {
    const int64_t chunks = std::min(slab_chunks, plan.chunks - first);
    auto rows_of = [&](int64_t chunk) { return std::min(plan.chunk, rows - (first + chunk) * plan.chunk); };
    parallel_for(chunks * pack_tasks, threads, [&](int64_t task) {
      const int64_t chunk = task / pack_tasks, panel = task % pack_tasks * kPackPanels;
      pack((first + chunk) * plan.chunk, rows_of(chunk), panel, std::min(panels, panel + kPackPanels),
           packed + chunk * chunk_bytes, stride, out.total ? sums + chunk * m : nullptr);
    });
    if (out.total)
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t i = 0; i < m; ++i) out.total[i] += sums[chunk * m + i];
    for (int64_t chunk = 0; kernels.rounded && chunk < chunks; ++chunk)
      *out.rounded += kernels.rounded(packed + chunk * chunk_bytes, stride, panels);
    parallel_for(blocks * (blocks + 1) / 2, threads, [&](int64_t task) {
      int64_t i = 0, j = task;  // row by row through the triangle of blocks
      while (j > i) j -= ++i;
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        kernels.multiply(packed + chunk * chunk_bytes, stride, rows_of(chunk), i * kBlock,
                         std::min(m, (i + 1) * kBlock), j * kBlock, std::min(m, (j + 1) * kBlock), out.c, out.ldc,
                         !out.whole || first + chunk > 0);
    });
  }
  if (out.whole)
    parallel_for(blocks, threads, [&](int64_t task) {
      const int64_t block = blocks - 1 - task;  // the longest first
      mirror(out.c, m, block * kBlock, std::min(m, (block + 1) * kBlock));
    });
  space.trim();
}

template <class Pack>
void accumulate(const Kernels& kernels, int64_t rows, int64_t columns, const Pack& pack, const Output& out,
                int threads) {
  if (rows == 0 || columns == 0) return;
  const Plan plan(kernels, rows, columns);
  if (columns * columns < kSerialWork / std::min(rows, kSerialWork)) threads = 1;
  plan.narrow ? run_narrow(kernels, plan, rows, columns, pack, out, threads)
              : run_wide(kernels, plan, rows, columns, pack, out, threads);
}

inline void accumulate(const Kernels& kernels, const Matrix& a, const double* shift, const Output& out, int threads) {
  accumulate(
      kernels, a.rows, a.columns,
      [&](int64_t row, int64_t count, int64_t first, int64_t last, void* packed, int64_t panel_stride, double* sums) {
        kernels.pack(a, shift, row, count, first, last, packed, panel_stride, sums);
      },
      out, threads);
}

// One of many products A^T A of one call; `out` is whole.
struct Dual {
  Matrix a;
  Output out;
  bool fast;

  // About the time it takes: a number is packed in the time of some 16 products.
  double work() const { return static_cast<double>(a.rows) * static_cast<double>(a.columns) * (a.columns + 16.0); }
};

// Those that take no more than a fair share of the time are one task each; the others are spread over all threads, one
// after another. Either way a product is cut by its own shape alone, so that it does not depend on its company.
template <class KernelsOf>
void dual_many(const KernelsOf& kernels_of, std::vector<Dual>& items, int threads) {
  std::sort(items.begin(), items.end(), [](const Dual& a, const Dual& b) { return a.work() > b.work(); });
  double rest = 0;
  for (const Dual& item : items) rest += item.work();
  if (rest < static_cast<double>(kSerialWork)) threads = 1;
  const auto run = [&](const Dual& item, int of_threads) {
    accumulate(kernels_of(item.fast, item.out.rounded), item.a, nullptr, item.out, of_threads);
  };
  size_t large = 0;
  for (; large < items.size() && items[large].work() * threads > rest; ++large) {
    run(items[large], threads);
    rest -= items[large].work();
  }
  parallel_for(static_cast<int64_t>(items.size() - large), threads,
               [&](int64_t task) { run(items[large + static_cast<size_t>(task)], 1); });
}

}  // namespace gram
}  // namespace fastrank
