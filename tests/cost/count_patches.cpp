// Runs the patch launches from their source on the CPU emulator and counts what they do: the cost model
// (kernels/gram/cost_patches.py) is held to these counts.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <vector>

static int64_t products, staged;

// The emulator's matrix product, counted once a warp: 16 x 8 sums of 8 products.
#define multiply_fp64 emulated_fp64
#include "common/tensor.cuh"
#undef multiply_fp64
namespace fastrank {
static void multiply_fp64(double& d0, double& d1, double& d2, double& d3, const double (&a)[4], const double (&b)[2]) {
  if (threadIdx.x % 32 == 0) products += 2 * 16 * 8 * 8;
  emulated_fp64(d0, d1, d2, d3, a, b);
}
}  // namespace fastrank

#include "gram/products.cuh"
// Every number of x that is staged or summed is widened once.
namespace fastrank::gram::device {
template <class In>
double tallied(const In& x) {
  return ++staged, widen(x);
}
}  // namespace fastrank::gram::device
#define widen tallied
#include "gram/patches.cu"
#undef widen

using namespace fastrank::gram;

static Patches described(const int64_t* s, const void* data) {
  const int64_t pixels = s[3] * s[4];
  return {data, DType::f32, s[0], s[1], s[2], s[1] * s[2] * pixels, pixels, {s[4], 1}, {s[3], s[4]}, {s[5], s[6]},
          {s[7], s[8]}, {s[9], s[10]}, {s[11], s[12]}};
}

// shape: images, groups, channels, then pairs: size, kernel, step, padding, dilation. facts: of the general way tiles,
// splits, rows of a split, workspace; of shifts items, chunk, slots, batch, fine pieces, chunk of sums, workspace; and
// whether that way is taken.
extern "C" void plan(const int64_t* shape, int64_t* facts) {
  const Patches p = described(shape, nullptr);
  const fastrank::gram::patches::Cut cut(p);
  const int64_t general[] = {cut.tiles, cut.splits, cut.rows_per_split, cut.workspace()};
  std::memcpy(facts, general, sizeof general);
  if (p.step[0] != 1 || p.step[1] != 1) return;
  const fastrank::gram::patches::Plan plan(p);
  const int64_t shifts[] = {plan.items, plan.chunk, plan.slots, plan.batch, plan.fine, plan.sum_chunk,
                            plan.workspace(), workspace_patches_cuda(p, false) == plan.workspace()};
  std::memcpy(facts + 4, shifts, sizeof shifts);
}

// counts: operations on products, numbers of x staged or summed, numbers of the workspace written.
extern "C" void count(const int64_t* shape, int64_t way, int64_t* counts) {
  products = staged = 0;
  const int64_t size = shape[0] * shape[1] * shape[2] * shape[3] * shape[4];
  std::vector<float> x(size, 1.0f);
  const Patches p = described(shape, x.data());
  const int64_t d = p.columns();
  std::vector<double> shift(p.channels, 0.5), c(d * d, 0.0), total(d, 0.0);
  const uint64_t untouched = 0x7ff4dead7ff4dead;  // a signalling NaN that no arithmetic yields
  std::vector<double> workspace(workspace_patches_cuda(p, false, static_cast<PatchWay>(way)));
  for (double& number : workspace) std::memcpy(&number, &untouched, 8);
  patches_cuda(p, shift.data(), c.data(), d, total.data(), false, workspace.data(), nullptr,
               static_cast<PatchWay>(way));
  int64_t written = 0;
  for (const double& number : workspace) written += std::memcmp(&number, &untouched, 8) != 0;
  counts[0] = products, counts[1] = staged, counts[2] = written;
}
