// Launches of the Gram kernels on the caller's stream: no synchronisation, no allocation.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/launch.cuh"
#include "gram/gram.h"
#include "gram/kernels.cuh"

namespace fastrank {
namespace gram {
namespace {

using device::Cut;
using device::Group;
using device::Problem;

// A kernel is named by how it multiplies, what, and the width of its tiles.
enum Way : int { kExact = 0, kFast = 1, kHalfAlongColumns = 2, kHalfAlongRows = 3 };
constexpr int kKernels = 4 * 4 * 2;  // ways, dtypes, widths

template <class In, int kTile>
void launch_tiles(int way, int64_t blocks, cudaStream_t stream, const Group& group) {
  using namespace device;
  const auto start = [&](auto kernel) {
    launch("gram_tiles", kernel, static_cast<unsigned>(blocks), 2 * kTile, stream, group);
  };
  if constexpr (sizeof(In) == 2) {
    if (way == kHalfAlongColumns) return start(gram_tiles<Half<In, kTile, true>, kTile>);
    if (way == kHalfAlongRows) return start(gram_tiles<Half<In, kTile, false>, kTile>);
  }
  if constexpr (sizeof(In) < 8)
    if (way == kFast) return start(gram_tiles<Fast<In, kTile>, kTile>);
  start(gram_tiles<Exact<In, kTile>, kTile>);
}

template <class In>
void launch_tiles(int kernel, int64_t blocks, cudaStream_t stream, const Group& group) {
  kernel % 2 ? launch_tiles<In, device::kWide>(kernel / 8, blocks, stream, group)
             : launch_tiles<In, device::kSmall>(kernel / 8, blocks, stream, group);
}

void launch_tiles(int kernel, int64_t blocks, cudaStream_t stream, const Group& group) {
  switch (static_cast<DType>(kernel / 2 % 4)) {
    case DType::f64: return launch_tiles<double>(kernel, blocks, stream, group);
    case DType::f32: return launch_tiles<float>(kernel, blocks, stream, group);
    case DType::bf16: return launch_tiles<__nv_bfloat16>(kernel, blocks, stream, group);
    case DType::f16: return launch_tiles<__half>(kernel, blocks, stream, group);
  }
}

void launch_reduce(int64_t blocks, cudaStream_t stream, const Group& group) {
  launch("gram_reduce", device::gram_reduce, static_cast<unsigned>(blocks), device::kReduceThreads, stream, group);
}

int64_t element_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Whether 16 bytes along the faster direction can be read at once wherever X has them.
bool reads_vectors(const Matrix& a, bool along_columns) {
  const int64_t count = 16 / element_size(a.dtype);
  const bool images = a.inner < a.rows;
  if (reinterpret_cast<uintptr_t>(a.data) % 16 || (images && a.stride_outer % count)) return false;
  if (along_columns) return a.stride_column == 1 && a.stride_inner % count == 0;
  return a.stride_inner == 1 && a.stride_column % count == 0 && (!images || a.inner % count == 0);
}

// What the kernels are told of a product, and which of them.
Problem describe(const Product& x, double* workspace, int& kernel) {
  const Cut cut(x.a.rows, x.a.columns);
  Problem p = {};
  p.a = x.a, p.shift = x.shift, p.c = x.c, p.ldc = x.ldc, p.total = x.total, p.nonfinite = x.nonfinite;
  p.partial = workspace, p.symmetric = x.symmetric;
  p.tile = cut.tile, p.tile_rows = cut.tile_rows, p.tiles = cut.tiles, p.splits = cut.splits;
  p.rows_per_split = cut.rows_per_split, p.partial_size = cut.partial_size(), p.ways = cut.ways();
  p.along_columns = x.a.stride_column <= x.a.stride_inner;
  p.vectors = reads_vectors(x.a, p.along_columns);
  int way = kExact;
  if (x.fast && x.a.dtype != DType::f64) {
    way = kFast;
    if (!x.shift && element_size(x.a.dtype) == 2) way = p.along_columns ? kHalfAlongColumns : kHalfAlongRows;
  }
  kernel = (way * 4 + static_cast<int>(x.a.dtype)) * 2 + (cut.tile == device::kWide);
  return p;
}

bool empty(const Product& x) { return x.a.rows == 0 || x.a.columns == 0; }

// The table of a group: this, then a Problem for every product that is not empty, those of one kernel side by side.
struct alignas(16) Header {
  int64_t problems, reduce_blocks;
  struct {
    int64_t problems, blocks;
  } kernels[kKernels];
};

}  // namespace

int64_t workspace_cuda(int64_t rows, int64_t columns) { return Cut(rows, columns).workspace(); }

Depth depth_cuda(int64_t rows, int64_t columns, bool fast) { return Cut(rows, columns).depth(rows, fast); }

void accumulate_cuda(const Product& product, double* workspace, void* stream_address) {
  if (empty(product)) return;
  const auto stream = static_cast<cudaStream_t>(stream_address);
  int kernel;
  const Group group = {describe(product, workspace, kernel), nullptr, 1};
  launch_tiles(kernel, group.one.tiles * group.one.splits, stream, group);
  const Cut cut(product.a.rows, product.a.columns);
  if (cut.splits > 1) launch_reduce(cut.reduce_blocks(), stream, group);
}

int64_t group_bytes(int64_t count) { return sizeof(Header) + count * sizeof(Problem); }

int64_t group_workspace(const Product* products, int64_t count) {
  int64_t size = 0;
  for (int64_t i = 0; i < count; ++i)
    if (!empty(products[i])) size += workspace_cuda(products[i].a.rows, products[i].a.columns);
  return size;
}

void group_fill(const Product* products, int64_t count, double* workspace, void* table) {
  Header& header = *static_cast<Header*>(table);
  Problem* const problems = reinterpret_cast<Problem*>(&header + 1);
  header = {};
  for (int wanted = 0; wanted < kKernels; ++wanted)
    for (int64_t i = 0; i < count; ++i) {
      if (empty(products[i])) continue;
      int kernel;
      Problem p = describe(products[i], workspace, kernel);
      if (kernel != wanted) continue;
      const Cut cut(p.a.rows, p.a.columns);
      auto& mine = header.kernels[kernel];
      p.first_block = mine.blocks;
      p.first_reduce_block = header.reduce_blocks;
      mine.blocks += cut.tiles * cut.splits;
      ++mine.problems;
      header.reduce_blocks += cut.reduce_blocks();
      workspace += cut.workspace();
      problems[header.problems++] = p;
    }
}

void group_launch(const void* table, const void* device_table, void* stream_address) {
  const auto stream = static_cast<cudaStream_t>(stream_address);
  const Header& header = *static_cast<const Header*>(table);
  const Problem* problems = reinterpret_cast<const Problem*>(static_cast<const Header*>(device_table) + 1);
  const Group all = {{}, problems, header.problems};
  for (int kernel = 0; kernel < kKernels; ++kernel) {
    const auto& mine = header.kernels[kernel];
    if (mine.problems == 0) continue;
    launch_tiles(kernel, mine.blocks, stream, {{}, problems, mine.problems});
    problems += mine.problems;
  }
  if (header.reduce_blocks) launch_reduce(header.reduce_blocks, stream, all);
}

}  // namespace gram
}  // namespace fastrank
