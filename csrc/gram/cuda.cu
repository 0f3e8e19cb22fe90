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
using device::Problem;

template <class In>
void launch_tiles(const Problem& p, bool fast, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.tiles), static_cast<unsigned>(p.splits));
  if constexpr (sizeof(In) < sizeof(double)) {
    if (fast) {
      launch("gram_tiles", device::gram_tiles<In, float>, grid, device::kThreads, stream, p);
      return;
    }
  }
  launch("gram_tiles", device::gram_tiles<In, double>, grid, device::kThreads, stream, p);
}

}  // namespace

int64_t workspace_cuda(int64_t rows, int64_t columns) { return Cut(rows, columns).workspace(); }

Depth depth_cuda(int64_t rows, int64_t columns, bool fast) { return Cut(rows, columns).depth(rows, fast); }

void accumulate_cuda(const Matrix& a, const double* shift, double* c, int64_t ldc, double* total, bool fast,
                     double* workspace, void* stream_address) {
  const Cut cut(a.rows, a.columns);
  if (a.rows == 0 || a.columns == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_address);
  const Problem p = {a, shift, c, ldc, total, workspace, cut.tiles, cut.tile_rows, cut.splits, cut.rows_per_split};
  switch (a.dtype) {
    case DType::f64: launch_tiles<double>(p, fast, stream); break;
    case DType::f32: launch_tiles<float>(p, fast, stream); break;
    case DType::bf16: launch_tiles<__nv_bfloat16>(p, fast, stream); break;
    case DType::f16: launch_tiles<__half>(p, fast, stream); break;
  }
  if (cut.splits > 1)
    launch("gram_reduce", device::gram_reduce, static_cast<unsigned>(cut.tiles), device::kThreads, stream, p);
}

void mirror_cuda(double* c, int64_t size, void* stream_address) {
  const int64_t side = device::ceil_div(size, 32);
  if (side == 0) return;
  launch("gram_mirror", device::gram_mirror, static_cast<unsigned>(side * (side + 1) / 2), device::kThreads,
         static_cast<cudaStream_t>(stream_address), c, size);
}

}  // namespace gram
}  // namespace fastrank
