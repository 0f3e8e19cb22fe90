// Checked addresses. Code generated from PTX asks here before every access; kernels compiled from source use plain
// pointers, which AddressSanitizer checks instead, and come here only through cp.async and ldmatrix.
#pragma once

#include "shared_memory.h"
#include "wait.h"

namespace emulate {

struct Buffer {
  uint64_t begin, end;
  bool writable;
  std::string name;
};

// Global memory a kernel may touch. If none is registered, global addresses are not checked.
inline std::vector<Buffer>& buffers() {
  static std::vector<Buffer> all;
  return all;
}
inline void register_buffer(const void* begin, size_t bytes, bool writable = true, std::string name = "buffer") {
  const auto address = reinterpret_cast<uint64_t>(begin);
  buffers().push_back({address, address + bytes, writable, std::move(name)});
}
inline void forget_buffers() { buffers().clear(); }

enum class Access { load, store };

[[noreturn]] __attribute__((cold, noinline)) inline void explain_bad_global(uint64_t address, size_t bytes,
                                                                            Access access) {
  const char* const verb = access == Access::load ? "load" : "store";
  const Buffer* nearest = nullptr;
  uint64_t least = ~uint64_t(0);
  for (const Buffer& b : buffers()) {
    const uint64_t distance = address < b.begin ? b.begin - address : address >= b.end ? address - b.end : 0;
    if (distance < least) least = distance, nearest = &b;
  }
  if (!nearest) fail("%s of %zu bytes at %#llx: no buffer is registered", verb, bytes, (unsigned long long)address);
  if (address >= nearest->begin && address + bytes <= nearest->end)
    fail("%s of %zu bytes in %s, which is read-only", verb, bytes, nearest->name.c_str());
  fail("%s of %zu bytes out of bounds: at %s%+lld of %llu bytes", verb, bytes, nearest->name.c_str(),
       (long long)(address - nearest->begin), (unsigned long long)(nearest->end - nearest->begin));
}

inline void check_alignment(uint64_t address, size_t alignment, const char* what) {
  if (address & (alignment - 1))
    fail("%s: address %#llx is not aligned to %zu bytes", what, (unsigned long long)address, alignment);
}

// A global address of `bytes` bytes as a pointer; alignment defaults to the size of the access, as PTX demands.
inline char* global(uint64_t address, size_t bytes, Access access, size_t alignment = 0) {
  check_alignment(address, alignment ? alignment : bytes, access == Access::load ? "global load" : "global store");
  if (!buffers().empty() && bytes) {
    const Unwatched unwatched;
    size_t& last = state.last_buffer;
    const auto holds = [&](const Buffer& b) {
      return address >= b.begin && address + bytes <= b.end && address + bytes >= address &&
             (access == Access::load || b.writable);
    };
    if (last >= buffers().size() || !holds(buffers()[last])) {
      size_t i = 0;
      while (i < buffers().size() && !holds(buffers()[i])) ++i;
      if (i == buffers().size()) explain_bad_global(address, bytes, access);
      last = i;
    }
  }
  return reinterpret_cast<char*>(address);
}

// An offset into the block's dynamic shared memory as a pointer.
inline char* shared(uint64_t offset, size_t bytes, Access access, size_t alignment = 0) {
  const char* const what = access == Access::load ? "shared load" : "shared store";
  check_alignment(offset, alignment ? alignment : bytes, what);
  Block& block = this_block();
  if (offset > block.dynamic_bytes || bytes > block.dynamic_bytes - offset)
    fail("%s of %zu bytes out of bounds: at %llu of %zu bytes", what, bytes, (unsigned long long)offset,
         block.dynamic_bytes);
  return reinterpret_cast<char*>(block.dynamic_shared) + offset;
}

// A generic address: shared if it lies in the block's shared memory, else global.
inline bool is_shared(uint64_t address) {
  const Block& block = this_block();
  return address - reinterpret_cast<uint64_t>(block.dynamic_shared) < block.dynamic_bytes;
}
inline char* generic(uint64_t address, size_t bytes, Access access, size_t alignment = 0) {
  if (is_shared(address))
    return shared(address - reinterpret_cast<uint64_t>(this_block().dynamic_shared), bytes, access, alignment);
  return global(address, bytes, access, alignment);
}

// For cp.async and ldmatrix on pointers: the address must lie in shared memory, dynamic or static.
inline void check_shared(const void* pointer, size_t bytes, size_t alignment, const char* what) {
  const auto address = reinterpret_cast<uint64_t>(pointer);
  check_alignment(address, alignment, what);
  const Block& block = this_block();
  const uint64_t at = address - reinterpret_cast<uint64_t>(block.dynamic_shared);
  if (at < block.dynamic_bytes) {
    if (bytes > block.dynamic_bytes - at)
      fail("%s: %zu bytes at %llu of %zu bytes of shared memory", what, bytes, (unsigned long long)at,
           block.dynamic_bytes);
    return;
  }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  const StaticShared range = state.static_shared;
  const uint64_t offset = address - reinterpret_cast<uint64_t>(range.begin);
  if (offset >= range.size || bytes > range.size - offset) fail("%s: %p is not in shared memory", what, pointer);
#endif
}

}  // namespace emulate
