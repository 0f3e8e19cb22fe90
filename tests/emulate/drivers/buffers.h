// Buffers whose surroundings are watched, and files of cases and results: what the drivers share.
#pragma once

#include <sys/mman.h>

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

}  // namespace drivers
