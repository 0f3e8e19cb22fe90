// Runs the kernels of kernels/tensor.cuh at odd sizes under the schedules named and checks them against fp64:
//   tensor SCHEDULE...
// Prints what is wrong, a line each, and ends with 1 if anything was.
#include <cstdio>
#include <memory>
#include <vector>

#include "cuda_runtime.h"
#include "kernels/tensor.cuh"

namespace {

using namespace fastrank::tensor;

int failures = 0;
const char* schedule = "";

void complain(const char* what, int n, int d, const std::string& why) {
  ++failures;
  std::printf("%s [%d, %d], %s: %s\n", what, n, d, schedule, why.c_str());
}

float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
float widen(__half x) { return __half2float(x); }

// Exactly as large as needed, for AddressSanitizer.
template <class T>
std::unique_ptr<T[]> numbers(size_t count, emulate::Random& random) {
  std::unique_ptr<T[]> x(new T[count]);
  for (size_t i = 0; i < count; ++i) x[i] = T(static_cast<float>(static_cast<double>(random.next() >> 11) * 0x1p-52 - 1.0));
  return x;
}

template <class In>
void product(const char* what, int m) {
  emulate::Random random(m);
  const auto a = numbers<In>(m * 16, random), b = numbers<In>(8 * 16, random);
  std::unique_ptr<float[]> c(new float[m * 8]);
  try {
    emulate::launch(what, (m + 15) / 16, 32, 0, [&] { product_16bit<In>(a.get(), b.get(), c.get(), m); });
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < 8; ++j) {
        double truth = 0.0;
        for (int k = 0; k < 16; ++k) truth += static_cast<double>(widen(a[i * 16 + k])) * widen(b[j * 16 + k]);
        if (!(std::fabs(c[i * 8 + j] - truth) <= 16 * 16 * 0x1p-24)) return complain(what, m, 8, "wrong");
      }
  } catch (const emulate::Failure& failure) {
    complain(what, m, 8, failure.what());
  }
}

void reduction(int n, unsigned blocks) {
  std::vector<float> x(n);
  double truth = 0.0, most = 0.0;
  for (int i = 0; i < n; ++i) {
    x[i] = static_cast<float>(i * 7919 % 1009);
    truth += x[i];
    most = std::max<double>(most, x[i]);
  }
  float total[2] = {3.0f, -1.0f};
  unsigned largest = 0, finished = 0;
  try {
    emulate::launch("reduce", blocks, 128, 0, [&] { reduce(x.data(), n, total, &largest, &finished); });
    if (total[0] != truth + 3 || largest != most || finished != blocks || total[1] != blocks)  // integers: exact
      complain("reduce", n, blocks, "sum " + std::to_string(total[0]) + ", largest " + std::to_string(largest) +
               ", finished " + std::to_string(finished) + ", last wrote " + std::to_string(total[1]));
  } catch (const emulate::Failure& failure) {
    complain("reduce", n, blocks, failure.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    schedule = argv[i];
    emulate::current_schedule() = emulate::Schedule::parse(schedule);
    for (const int m : {1, 16, 37}) product<__nv_bfloat16>("product_bf16", m), product<__half>("product_fp16", m);
    reduction(1000, 3);
    reduction(5, 1);
  }
  return failures ? 1 : 0;
}
