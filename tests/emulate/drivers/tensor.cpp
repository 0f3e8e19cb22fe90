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
double widen(double x) { return x; }

// Exactly as large as needed, for AddressSanitizer.
template <class T>
std::unique_ptr<T[]> numbers(size_t count, emulate::Random& random) {
  std::unique_ptr<T[]> x(new T[count]);
  for (size_t i = 0; i < count; ++i) x[i] = T(static_cast<float>(static_cast<double>(random.next() >> 11) * 0x1p-52 - 1.0));
  return x;
}

int triangle(int tiles) { return tiles * (tiles + 1) / 2; }

// C against fp64; each product may be rounded n + 3 times to `unit`.
template <class In, class Out>
void check_gram(const char* what, const In* x, const Out* c, int n, int d, double unit) {
  for (int i = 0; i < d; ++i)
    for (int j = 0; j < d; ++j) {
      double truth = 7.0, size = 7.0;
      for (int k = 0; j <= i && k < n; ++k) {
        const double product = static_cast<double>(widen(x[k * d + i])) * widen(x[k * d + j]);
        truth += product, size += std::fabs(product);
      }
      const double got = c[i * d + j], band = j <= i ? (n + 3) * unit * size : 0.0;
      if (!(std::fabs(got - truth) <= band))
        return complain(what, n, d, "C[" + std::to_string(i) + "][" + std::to_string(j) + "] is " +
                        std::to_string(got) + ", expected " + std::to_string(truth));
    }
}

template <class In>
void gram(const char* what, int n, int d) {
  emulate::Random random(n * 1000 + d);
  const auto x = numbers<In>(static_cast<size_t>(n) * d, random);
  std::unique_ptr<float[]> c(new float[d * d]);
  std::fill_n(c.get(), d * d, 7.0f);
  try {
    emulate::launch(what, triangle((d + kTile - 1) / kTile), kThreads, kSharedBytes,
                    [&] { gram_16bit<In>(x.get(), c.get(), n, d); });
    check_gram(what, x.get(), c.get(), n, d, 0x1p-24);
  } catch (const emulate::Failure& failure) {
    complain(what, n, d, failure.what());
  }
}

void gram64(int n, int d) {
  emulate::Random random(n * 1000 + d);
  const auto x = numbers<double>(static_cast<size_t>(n) * d, random);
  std::unique_ptr<double[]> c(new double[d * d]);
  std::fill_n(c.get(), d * d, 7.0);
  try {
    emulate::launch("gram_fp64", triangle((d + 7) / 8), 32, 0, [&] { gram_fp64(x.get(), c.get(), n, d); });
    check_gram("gram_fp64", x.get(), c.get(), n, d, 0x1p-53);
  } catch (const emulate::Failure& failure) {
    complain("gram_fp64", n, d, failure.what());
  }
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
#if defined(__SANITIZE_THREAD__)  // slow, and judges the order of accesses whatever the shape
    for (const auto& [n, d] : {std::pair(33, 65), {70, 72}}) {
#else
    for (const auto& [n, d] : {std::pair(1, 1), {5, 3}, {33, 65}, {37, 72}, {97, 64}, {70, 136}}) {
#endif
      gram<__nv_bfloat16>("gram_bf16", n, d);
      if (n < 60) gram<__half>("gram_fp16", n, d);
    }
    for (const auto& [n, d] : {std::pair(1, 1), {5, 3}, {17, 20}}) gram64(n, d);
    for (const int m : {1, 16, 37}) product<__nv_bfloat16>("product_bf16", m), product<__half>("product_fp16", m);
    reduction(1000, 3);
    reduction(5, 1);
  }
  return failures ? 1 : 0;
}
