// Runs the Gram kernels from their source on the CPU, with numbers that count what is done to them: the cost model
// (kernels/gram/cost.py) is held to these counts. One OS thread per CUDA thread, one block at a time.
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __syncthreads() barrier.arrive_and_wait()

struct Index {
  int64_t x, y;
};
static thread_local Index threadIdx;
static Index blockIdx;
static std::barrier<> barrier(256);
using std::sqrt;

struct __nv_bfloat16 {};
struct __half {};
static float __bfloat162float(__nv_bfloat16) { return 0; }
static float __half2float(__half) { return 0; }

static std::atomic<int64_t> loads, products, fp64;
static thread_local int64_t my_loads, my_products, my_fp64;
static const void* base;
static std::vector<char> touched;

namespace fastrank::gram::device {
// What X holds: every load of one goes through `widen`, and is followed by one subtraction in fp64.
struct Input {
  float value;
};
struct Widened {
  double value;
};
inline double operator-(Widened x, double shift) { return ++my_fp64, x.value - shift; }
inline Widened widen(const Input& x) {
  ++my_loads;
  touched[&x - static_cast<const Input*>(base)] = 1;
  return {x.value};
}

// What is multiplied. Every conversion back to double stands in an addition in fp64.
template <class Real>
struct Counted {
  Real value;
  Counted() = default;
  explicit Counted(double x) : value(static_cast<Real>(x)) {}
  explicit operator double() const { return ++my_fp64, value; }
  Counted operator*(Counted o) const { return ++my_products, Counted(value * o.value); }
  void operator+=(Counted o) { ++my_products, value += o.value; }
};
}  // namespace fastrank::gram::device

#include "gram/kernels.cuh"

using namespace fastrank::gram;
using namespace fastrank::gram::device;

template <class Kernel>
static void run(Kernel kernel, const Problem& p, int64_t grid_x, int64_t grid_y) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      threadIdx = {t, 0};
      for (int64_t y = 0; y < grid_y; ++y)
        for (int64_t x = 0; x < grid_x; ++x) {
          if (t == 0) blockIdx = {x, y};
          barrier.arrive_and_wait();
          kernel(p);
          barrier.arrive_and_wait();
        }
      loads += my_loads, products += my_products, fp64 += my_fp64;
      my_loads = my_products = my_fp64 = 0;
    });
  for (auto& thread : threads) thread.join();
}

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

// counts: loads of X, distinct ones, operations on products, fp64 operations besides, numbers written by gram_tiles (to
// the workspace or to C and total), then by gram_reduce; blocks of gram_tiles.
extern "C" void count(int64_t n, int64_t d, int64_t fast, int64_t with_shift, int64_t with_total,
                      int64_t* counts) {
  loads = products = fp64 = 0;
  const Cut cut(n, d);
  std::vector<Input> x(n * d, Input{1});
  touched.assign(n * d, 0);
  base = x.data();
  std::vector<double> shift(d, 0.5), c(d * d, 0.0), total(d, 0.0), partial = untouched(cut.workspace());
  const Matrix a = {x.data(), DType::f32, n, d, n, 0, d, 1};
  const Problem p = {a, with_shift ? shift.data() : nullptr, c.data(), d, with_total ? total.data() : nullptr,
                     partial.data(), cut.tiles, cut.tile_rows, cut.splits, cut.rows_per_split};
  const auto nonzero = [&] {
    int64_t found = 0;
    for (double v : c) found += v != 0;
    for (double v : total) found += v != 0;
    return found;
  };
  run(fast ? gram_tiles<Input, Counted<float>> : gram_tiles<Input, Counted<double>>, p, cut.tiles, cut.splits);
  int64_t distinct = 0;
  for (char seen : touched) distinct += seen;
  const int64_t by_tiles = cut.splits > 1 ? written(partial) : nonzero();
  if (cut.splits > 1) run(gram_reduce, p, cut.tiles, 1);
  const int64_t results[] = {loads, distinct, products, fp64, by_tiles, cut.splits > 1 ? nonzero() : 0,
                             cut.tiles * cut.splits};
  std::memcpy(counts, results, sizeof(results));
}

extern "C" void cut_of(int64_t n, int64_t d, int64_t* facts) {
  const Cut cut(n, d);
  const int64_t results[] = {cut.tiles, cut.splits, cut.rows_per_split, cut.workspace()};
  std::memcpy(facts, results, sizeof(results));
}
