// Runs the Gram launches of csrc/gram/cuda.cu (linked with this file) on cases read from a file, once per schedule:
//   gram CASES RESULTS SCHEDULE...
// A process of its own, so that a kernel that crashes or hangs takes nothing with it, and the sanitizers see nothing
// but kernels. Formats: see test_gram_source.py.
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "emulate.h"
#include "gram/gram.h"

namespace {

using namespace fastrank::gram;

// Memory of exactly `size` bytes, with AddressSanitizer's red zones or with zones that are looked at afterwards.
class Guarded {
 public:
  Guarded(const void* content, size_t size, const char* name) : size_(size), name_(name) {
    memory_.reset(new unsigned char[size + 2 * kZone]);
    std::memset(memory_.get(), kFill, size + 2 * kZone);
    if (content) std::memcpy(data(), content, size);
    else std::memset(data(), 0xFF, size);  // NaN
    // Kernels from PTX check every access against these.
    const bool input = name == std::string("X") || name == std::string("shift");
    emulate::register_buffer(data(), size, !input, name);
  }
  ~Guarded() { emulate::forget_buffers(); }
  unsigned char* data() { return memory_.get() + kZone; }
  double* doubles() { return reinterpret_cast<double*>(data()); }
  size_t size() const { return size_; }
  std::string damage() const {
    for (size_t i = 0; i < kZone; ++i) {
      if (memory_[i] != kFill) return std::string("wrote before ") + name_;
      if (memory_[kZone + size_ + i] != kFill) return std::string("wrote behind ") + name_;
    }
    return "";
  }

 private:
  static constexpr unsigned char kFill = 0xA5;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kZone = 0;
#else
  static constexpr size_t kZone = 1 << 14;
#endif
  std::unique_ptr<unsigned char[]> memory_;
  size_t size_;
  const char* name_;
};

struct Header {
  int64_t mirror, dtype, fast, rows, columns, inner, stride_outer, stride_inner, stride_column, start;
  int64_t data_bytes, shift_bytes, c_bytes, ldc, total_bytes;
};

std::vector<unsigned char> read(FILE* file, size_t size) {
  std::vector<unsigned char> bytes(size);
  if (size && std::fread(bytes.data(), 1, size, file) != size) throw std::runtime_error("the case file ends early");
  return bytes;
}

void write(FILE* file, const void* bytes, size_t size) {
  if (size && std::fwrite(bytes, 1, size, file) != size) throw std::runtime_error("cannot write results");
}

std::string run(const Header& h, Guarded& data, Guarded& shift, Guarded& c, Guarded& total) {
  try {
    if (h.mirror) {
      mirror_cuda(c.doubles(), h.columns, nullptr);
    } else {
      Guarded workspace(nullptr, 8 * workspace_cuda(h.rows, h.columns), "the workspace");
      const Matrix a = {data.data() + h.start, static_cast<DType>(h.dtype), h.rows, h.columns, h.inner,
                        h.stride_outer, h.stride_inner, h.stride_column};
      accumulate_cuda(a, shift.size() ? shift.doubles() : nullptr, c.doubles(), h.ldc,
                      total.size() ? total.doubles() : nullptr, h.fast, workspace.doubles(), nullptr);
      if (const std::string damage = workspace.damage(); !damage.empty()) return damage;
    }
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
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
      std::string message = run(h, my_data, my_shift, my_c, my_total);
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
