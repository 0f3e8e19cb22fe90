// Buffers whose surroundings are watched, and files of cases and results: what the drivers share.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulate.h"

namespace drivers {

// Memory of exactly `size` bytes, with AddressSanitizer's red zones or with zones that are looked at afterwards.
class Guarded {
 public:
  Guarded(const void* content, size_t size, const char* name) : size_(size), name_(name) {
    memory_.reset(new unsigned char[size + 2 * kZone]);
    std::memset(memory_.get(), kFill, size + 2 * kZone);
    if (content) std::memcpy(data(), content, size);
    else std::memset(data(), 0xFF, size);  // NaN
    // Kernels from PTX check every access against these.
    const bool input = name == std::string("X") || name == std::string("shift") || name == std::string("the table");
    emulate::register_buffer(data(), size, !input, name);
  }
  ~Guarded() { emulate::forget_buffers(); }
  unsigned char* data() const { return memory_.get() + kZone; }
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

// Zeroed memory of which only the pages that are touched exist: for offsets that do not fit in 32 bits.
class Sparse {
 public:
  Sparse(size_t size, const char* name) : size_(size) {
    memory_ = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::runtime_error(std::string("no address space for ") + name);
    emulate::register_buffer(memory_, size, name != std::string("X"), name);
  }
  ~Sparse() {
    emulate::forget_buffers();
    munmap(memory_, size_);
  }
  unsigned char* data() { return static_cast<unsigned char*>(memory_); }

 private:
  void* memory_;
  size_t size_;
};

inline std::vector<unsigned char> read(FILE* file, size_t size) {
  std::vector<unsigned char> bytes(size);
  if (size && std::fread(bytes.data(), 1, size, file) != size) throw std::runtime_error("the case file ends early");
  return bytes;
}

inline void write(FILE* file, const void* bytes, size_t size) {
  if (size && std::fwrite(bytes, 1, size, file) != size) throw std::runtime_error("cannot write results");
}

// main(CASES, RESULTS, SCHEDULE...): `run` is called on each case (`Header`, X, shift, C, total) under each schedule
// and returns what is wrong; its length and text are written, then `kPlan` numbers that `run` leaves, C and total.
template <class Header, size_t kPlan, class Run>
int run_cases(int argc, char** argv, Run run) {
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
      std::array<int64_t, kPlan> plan = {};
      std::string message = run(h, my_data, my_shift, my_c, my_total, plan);
      for (const Guarded* g : {&my_data, &my_shift, &my_c, &my_total})
        if (message.empty()) message = g->damage();
      if (message.empty() && (std::memcmp(my_data.data(), data.data(), data.size()) ||
                              (shift.size() && std::memcmp(my_shift.data(), shift.data(), shift.size()))))
        message = "wrote to an input";
      const int64_t length = static_cast<int64_t>(message.size());
      write(results, &length, sizeof length);
      write(results, message.data(), message.size());
      write(results, plan.data(), sizeof(int64_t) * kPlan);
      write(results, my_c.data(), my_c.size());
      write(results, my_total.data(), my_total.size());
      std::fflush(results);  // what is done stays if the next one crashes
    }
  }
  return std::fclose(results) ? 2 : 0;
}

}  // namespace drivers
