// Runs the Gram launches of csrc/gram/cuda.cu (linked with this file) on cases read from a file, once per schedule:
//   gram CASES RESULTS SCHEDULE...
// A process of its own, so that a kernel that crashes or hangs takes nothing with it, and the sanitizers see nothing
// but kernels. Formats: see gram_cases.py.
#include "gram/gram.h"
#include "buffers.h"

namespace {

using namespace fastrank::gram;
using namespace drivers;

struct Header {
  int64_t mirror, plan, far, dtype, fast, rows, columns, inner, stride_outer, stride_inner, stride_column, start;
  int64_t data_bytes, shift_bytes, c_bytes, ldc, total_bytes;
};

std::string run(const Header& h, unsigned char* data, Guarded& shift, double* c, Guarded& total) {
  try {
    if (h.mirror) {
      mirror_cuda(c, h.columns, nullptr);
    } else if (h.plan) {  // nothing is launched: how the rows are cut, in the first numbers of C
      c[0] = static_cast<double>(workspace_cuda(h.rows, h.columns));
      c[1] = static_cast<double>(depth_cuda(h.rows, h.columns, false).before);
      c[2] = static_cast<double>(depth_cuda(h.rows, h.columns, true).before);
      c[3] = static_cast<double>(depth_cuda(h.rows, h.columns, false).adds);
    } else {
      Guarded workspace(nullptr, 8 * workspace_cuda(h.rows, h.columns), "the workspace");
      const Matrix a = {data + h.start, static_cast<DType>(h.dtype), h.rows, h.columns, h.inner,
                        h.stride_outer, h.stride_inner, h.stride_column};
      accumulate_cuda(a, shift.size() ? shift.doubles() : nullptr, c, h.ldc,
                      total.size() ? total.doubles() : nullptr, h.fast, workspace.doubles(), nullptr);
      if (const std::string damage = workspace.damage(); !damage.empty()) return damage;
    }
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// `data` is X and `c` is C without gaps; the kernels see them with the header's strides.
std::string run_far(const Header& h, Guarded& data, Guarded& shift, Guarded& c, Guarded& total) {
  const size_t size = data.size() / (h.rows * h.columns);
  const auto offset = [&](int64_t k, int64_t i) {
    return size * (k / h.inner * h.stride_outer + k % h.inner * h.stride_inner + i * h.stride_column);
  };
  try {
    Sparse far_data(offset(h.rows - 1, h.columns - 1) + size, "X");  // strides are positive, and images complete
    Sparse far_c(8 * (h.columns - 1) * h.ldc + 8 * h.columns, "C");
    for (int64_t k = 0; k < h.rows; ++k)
      for (int64_t i = 0; i < h.columns; ++i)
        std::memcpy(far_data.data() + offset(k, i), data.data() + (k * h.columns + i) * size, size);
    for (int64_t i = 0; i < h.columns; ++i)
      std::memcpy(far_c.data() + 8 * i * h.ldc, c.doubles() + i * h.columns, 8 * h.columns);
    const std::string message = run(h, far_data.data(), shift, reinterpret_cast<double*>(far_c.data()), total);
    for (int64_t i = 0; i < h.columns; ++i)
      std::memcpy(c.doubles() + i * h.columns, far_c.data() + 8 * i * h.ldc, 8 * h.columns);
    return message;
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

int main(int argc, char** argv) {
  FILE* const cases = std::fopen(argv[1], "rb");
  FILE* const results = std::fopen(argv[2], "wb");
  if (!cases || !results) return 2;
  Header h;
  while (std::fread(&h, sizeof h, 1, cases) == 1) {
    const auto data = read(cases, h.data_bytes), shift = read(cases, h.shift_bytes), c = read(cases, h.c_bytes),
               total = read(cases, h.total_bytes);
    for (int i = 3; i < argc; ++i) {
      emulate::current_schedule() = emulate::Schedule::parse(argv[i]);
      Guarded my_data(data.data(), data.size(), "X"), my_shift(shift.data(), shift.size(), "shift"),
          my_c(c.data(), c.size(), "C"), my_total(total.data(), total.size(), "total");
      std::string message = h.far ? run_far(h, my_data, my_shift, my_c, my_total)
                                  : run(h, my_data.data(), my_shift, my_c.doubles(), my_total);
      for (const Guarded* g : {&my_data, &my_shift, &my_c, &my_total})
        if (message.empty()) message = g->damage();
      if (message.empty() && (std::memcmp(my_data.data(), data.data(), data.size()) ||
                              std::memcmp(my_shift.data(), shift.data(), shift.size())))
        message = "wrote to an input";
      const int64_t length = static_cast<int64_t>(message.size());
      write(results, &length, sizeof length);
      write(results, message.data(), message.size());
      write(results, my_c.data(), my_c.size());
      write(results, my_total.data(), my_total.size());
      std::fflush(results);  // what is done stays if the next one crashes
    }
  }
  return std::fclose(results) ? 2 : 0;
}
