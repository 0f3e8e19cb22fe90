// Memory that a thread keeps from call to call.
#pragma once

#include <stdlib.h>

#include <cstdint>
#include <new>

namespace fastrank {

// It only grows, starts at a multiple of a cache line, and is not zeroed.
class Workspace {
 public:
  ~Workspace() { free(data_); }
  void* get(int64_t bytes) {
    if (bytes > size_) {
      drop();
      data_ = aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      size_ = bytes;
    }
    return data_;
  }
  // After a call: what is larger is given back.
  void trim() {
    constexpr int64_t keep = int64_t{8} << 20;
    if (size_ > keep) drop();
  }

 private:
  void drop() {
    free(data_);
    data_ = nullptr;
    size_ = 0;
  }

  void* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace fastrank
