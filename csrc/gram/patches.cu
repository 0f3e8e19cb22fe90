// Launches of the patch kernels on the caller's stream: no synchronisation, no allocation.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>

#include "common/launch.cuh"
#include "gram/patches.cuh"
#include "gram/shifts.cuh"

namespace fastrank {
namespace gram {
namespace {

using namespace patches;

// Padding, where some tap meets it.
bool padded(const Patches& p) { return p.pad[0] > 0 || p.pad[1] > 0; }

// The way of shifts computes fewer products where its tiles of channels are full enough. Both ways are weighed by the
// positions that their tiles go through; a partial tile of sums, written and read, costs about as much as kPartial.
bool by_shifts(const Patches& p, PatchWay way) {
  constexpr int64_t kPartial = 64;
  const bool can = p.step[0] == 1 && p.step[1] == 1 && p.kernel[0] <= Cuts::kTaps && p.kernel[1] <= Cuts::kTaps;
  if (way == PatchWay::shifts && !can)
    throw std::runtime_error("gram of patches by shifts: expected step 1, small kernels");
  if (way != PatchWay::cheaper) return way == PatchWay::shifts;
  if (!can || p.taps() < 2) return false;
  const Cut general(p);
  const Plan plan(p);
  const int64_t positions = p.images * p.groups * p.size[0] * p.size[1];
  return plan.items * (positions + kPartial * plan.slots) < general.tiles * (p.rows() + kPartial * general.splits);
}

bool empty(const Patches& p) { return p.columns() == 0 || p.outputs(0) <= 0 || p.outputs(1) <= 0 || p.rows() == 0; }

template <class In>
void launch_general(const Problem& p, bool fast, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.tiles), static_cast<unsigned>(p.splits));
  if constexpr (sizeof(In) < sizeof(double)) {
    if (fast) {
      launch("patch_tiles", patch_tiles<device::Fast<In, kTile>>, grid, kTileThreads, stream, p);
      return;
    }
  }
  launch("patch_tiles", patch_tiles<device::Exact<In, kTile>>, grid, kTileThreads, stream, p);
}

template <class In>
void launch_sums(const Shifts& p, const Plan& plan, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(plan.channels, kWarps)), static_cast<unsigned>(plan.fine),
                  static_cast<unsigned>(plan.sum_chunks));
  launch("patch_sums", patch_sums<In>, grid, kThreads, stream, p);
}

template <class In>
void launch_pieces(const Shifts& p, bool fast, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(p.batch) * static_cast<unsigned>(p.slots);
  if constexpr (sizeof(In) < sizeof(double)) {
    if (fast) {
      launch("patch_pieces", patch_pieces<device::Fast<In, kTile>>, grid, kTileThreads, stream, p);
      return;
    }
  }
  launch("patch_pieces", patch_pieces<device::Exact<In, kTile>>, grid, kTileThreads, stream, p);
}

template <class Visit>
void by_type(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::f64: visit(double()); break;
    case DType::f32: visit(float()); break;
    case DType::bf16: visit(__nv_bfloat16()); break;
    case DType::f16: visit(__half()); break;
  }
}

// Rows of tiles up to the one of `item`: tile_of, on the host.
int64_t tile_number(int64_t item, int64_t differences) {
  int64_t i = 0, before = 0;  // row i begins with item `before`
  for (int64_t in_row; (in_row = i * differences + (differences + 1) / 2) <= item - before; ++i) before += in_row;
  const int64_t j = (item - before) / differences;
  return i * (i + 1) / 2 + (j < i ? j : i);
}

void run_shifts(const Patches& x, const double* shift, double* c, int64_t ldc, double* total, bool fast,
                double* workspace, cudaStream_t stream) {
  const Plan plan(x);
  double* const sums = workspace + plan.partials();
  double* const outside = sums + plan.sums();
  double* const both = outside + plan.channels * plan.taps * plan.taps;
  Shifts p = {x, Cuts(x, 0), Cuts(x, 1), Fine(x, 0), Fine(x, 1), shift, c, ldc, total, workspace, sums, outside, both,
              static_cast<int>(plan.items), plan.chunk, static_cast<int>(plan.slots), static_cast<int>(plan.batch), 0,
              plan.sum_chunk, padded(x)};
  if (p.padded || total) {
    by_type(x.dtype, [&](auto in) { launch_sums<decltype(in)>(p, plan, stream); });
    const int64_t pairs = plan.taps * (p.padded ? plan.taps : 1);
    const dim3 grid(static_cast<unsigned>(plan.channels), static_cast<unsigned>(ceil_div(pairs, kThreads)));
    launch("patch_outside", patch_outside, grid, kThreads, stream, p);
  }
  const int64_t differences = (2 * x.kernel[0] - 1) * (2 * x.kernel[1] - 1);
  for (; p.first < plan.items; p.first += p.batch) {
    by_type(x.dtype, [&](auto in) { launch_pieces<decltype(in)>(p, fast, stream); });
    const int64_t end = p.first + p.batch < p.items ? p.first + p.batch : p.items;
    const int64_t tiles = tile_number(end - 1, differences) - tile_number(p.first, differences) + 1;
    launch("patch_combine", patch_combine, static_cast<unsigned>(tiles * rows_of_tile(x)), kThreads, stream, p);
  }
}

}  // namespace

int64_t workspace_patches_cuda(const Patches& p, bool /*fast*/, PatchWay way) {
  if (empty(p)) return 0;
  return by_shifts(p, way) ? Plan(p).workspace() : Cut(p).workspace();
}

Depth depth_patches_cuda(const Patches& p, bool fast, PatchWay way) {
  if (empty(p)) return {0, 0};
  fast = fast && p.dtype != DType::f64;
  return by_shifts(p, way) ? Plan(p).depth(fast) : Cut(p).depth(fast);
}

void patches_cuda(const Patches& x, const double* shift, double* c, int64_t ldc, double* total, bool fast,
                  double* workspace, void* stream_address, PatchWay way) {
  if (empty(x)) return;
  for (const int64_t size : {x.images, x.groups, x.size[0] + 2 * x.pad[0], x.size[1] + 2 * x.pad[1]})
    if (size >= int64_t{1} << 31) throw std::runtime_error("gram of patches: expected sizes below 2^31");
  const auto stream = static_cast<cudaStream_t>(stream_address);
  if (by_shifts(x, way)) return run_shifts(x, shift, c, ldc, total, fast, workspace, stream);
  const Cut cut(x);
  const Problem p = {x, {x.outputs(0), x.outputs(1)}, shift, c, ldc, total, workspace, x.columns(), cut.rows, cut.tiles,
                     cut.tile_rows, cut.splits, cut.rows_per_split};
  by_type(x.dtype, [&](auto in) { launch_general<decltype(in)>(p, fast, stream); });
  if (cut.splits > 1)
    launch("patch_reduce", patch_reduce, static_cast<unsigned>(cut.tiles), kThreads, stream, p);
}

}  // namespace gram
}  // namespace fastrank
