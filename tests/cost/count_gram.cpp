// Runs the Gram kernels from their source on the CPU emulator, with numbers that count what is done to them: the cost
// model (kernels/gram/cost.py) is held to these counts.
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda_runtime.h"

static int64_t loads, products, fp64;
static std::vector<char> touched;
static const char* base;

// The emulator's matrix products, counted once a warp: 16 x 8 sums of 8 or 16 products.
#define multiply_fp64 emulated_fp64
#define multiply_bf16 emulated_bf16
#include "common/tensor.cuh"
#undef multiply_fp64
#undef multiply_bf16
namespace fastrank {
static int64_t once_a_warp(int64_t work) { return threadIdx.x % 32 ? 0 : work; }
static void multiply_fp64(double& d0, double& d1, double& d2, double& d3, const double (&a)[4], const double (&b)[2]) {
  products += once_a_warp(2 * 16 * 8 * 8);
  emulated_fp64(d0, d1, d2, d3, a, b);
}
static void multiply_bf16(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                          uint32_t b1) {
  products += once_a_warp(2 * 16 * 8 * 16);
  emulated_bf16(d0, d1, d2, d3, a, b0, b1);
}

namespace gram::device {
// What X holds: every copy of one out of X is a load, and `widen` is followed by one subtraction in fp64, or none.
struct Input {
  float value;
  Input() = default;
  Input(float x) : value(x) {}
  Input(const Input& x) : value(x.value) { note(x); }
  Input& operator=(const Input& x) { return value = x.value, note(x), *this; }
  static void note(const Input& x) {
    const size_t at = reinterpret_cast<const char*>(&x) - base;
    if (at < touched.size() * sizeof(Input)) ++loads, touched[at / sizeof(Input)] = 1;
  }
};
struct Widened {
  double value;
  explicit operator double() const { return value; }
};
inline double operator-(Widened x, double shift) { return ++fp64, x.value - shift; }
inline Widened widen(const Input& x) { return {x.value}; }

// What is multiplied in mode "fast". Every conversion back to double stands in an addition in fp64.
struct Counted {
  float value;
  Counted() = default;
  explicit Counted(double x) : value(static_cast<float>(x)) {}
  explicit Counted(Widened x) : value(static_cast<float>(x.value)) {}
  explicit operator double() const { return ++fp64, value; }
  Counted operator*(Counted o) const { return ++products, Counted(value * o.value); }
  void operator+=(Counted o) { ++products, value += o.value; }
};
}  // namespace gram::device
}  // namespace fastrank

#include "gram/kernels.cuh"

using namespace fastrank::gram;
using namespace fastrank::gram::device;

// How many of the numbers differ from the pattern they were filled with.
static const uint64_t kUntouched = 0x7ff4dead7ff4dead;  // a signalling NaN that no arithmetic yields
static int64_t written(const std::vector<double>& numbers) {
  int64_t count = 0;
  for (const double& x : numbers) count += std::memcmp(&x, &kUntouched, 8) != 0;
  return count;
}
static std::vector<double> untouched(int64_t size) {
  std::vector<double> numbers(size);
  for (double& x : numbers) std::memcpy(&x, &kUntouched, 8);
  return numbers;
}

template <int kTile>
static void tiles(int64_t way, int64_t blocks, const Group& group) {
  const auto run = [&](auto kernel) { emulate::launch("gram_tiles", blocks, 2 * kTile, 0, [&] { kernel(group); }); };
  if (way == 0) run(gram_tiles<Exact<Input, kTile>, kTile>);
  if (way == 1) run(gram_tiles<Fast<Input, kTile, Counted>, kTile>);
  if (way == 2) run(gram_tiles<Half<__nv_bfloat16, kTile, true>, kTile>);
}

// way: 0 exact, 1 fast, 2 fast in 16 bits (whose loads are not counted). counts: loads of X, distinct ones, operations
// on products, fp64 operations besides that can be counted, numbers written by gram_tiles (to the workspace or to C and
// total), then by gram_reduce.
extern "C" void count(int64_t n, int64_t d, int64_t way, int64_t with_shift, int64_t with_total, int64_t symmetric,
                      int64_t* counts) {
  loads = products = fp64 = 0;
  const Cut cut(n, d);
  std::vector<Input> x(n * d, Input{1});
  std::vector<__nv_bfloat16> half(n * d, __nv_bfloat16(1.0f));
  touched.assign(n * d, 0);
  base = reinterpret_cast<const char*>(x.data());
  std::vector<double> shift(d, 0.5), c(d * d, 0.0), total(d, 0.0), partial = untouched(cut.workspace());
  const void* const data = way == 2 ? static_cast<const void*>(half.data()) : x.data();
  Group group = {{}, nullptr, 1};
  Problem& p = group.one;
  p.a = {data, DType::f32, n, d, n, 0, d, 1};
  p.shift = with_shift ? shift.data() : nullptr, p.total = with_total ? total.data() : nullptr;
  p.c = c.data(), p.ldc = d, p.symmetric = symmetric, p.partial = partial.data();
  p.tile = cut.tile, p.tile_rows = cut.tile_rows, p.tiles = cut.tiles, p.splits = cut.splits;
  p.rows_per_split = cut.rows_per_split, p.partial_size = cut.partial_size(), p.ways = cut.ways();
  p.along_columns = 1, p.vectors = d % 8 == 0;
  const auto nonzero = [&] {
    int64_t found = 0;
    for (double v : c) found += v != 0;
    for (double v : total) found += v != 0;
    return found;
  };
  cut.tile == kSmall ? tiles<kSmall>(way, cut.tiles * cut.splits, group)
                     : tiles<kWide>(way, cut.tiles * cut.splits, group);
  int64_t distinct = 0;
  for (char seen : touched) distinct += seen;
  const int64_t by_tiles = cut.splits > 1 ? written(partial) : nonzero();
  if (cut.splits > 1)
    emulate::launch("gram_reduce", cut.reduce_blocks(), kReduceThreads, 0, [&] { gram_reduce(group); });
  const int64_t results[] = {loads, distinct, products, fp64, by_tiles, cut.splits > 1 ? nonzero() : 0};
  std::memcpy(counts, results, sizeof(results));
}

extern "C" void cut_of(int64_t n, int64_t d, int64_t* facts) {
  const Cut cut(n, d);
  const int64_t results[] = {cut.tiles, cut.splits, cut.rows_per_split, cut.workspace(), cut.reduce_blocks()};
  std::memcpy(facts, results, sizeof(results));
}

// Rows and columns of all tiles, in the order of the blocks.
extern "C" void order(int64_t tile_rows, int64_t* tiles) {
  for (int64_t t = 0; t < tile_rows * (tile_rows + 1) / 2; ++t) tile_of(t, tile_rows, tiles[2 * t], tiles[2 * t + 1]);
}
