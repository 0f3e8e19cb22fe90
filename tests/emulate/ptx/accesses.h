// Memory, and what threads of a warp exchange beyond the shim.
#pragma once

#include "emulate.h"
#include "numbers.h"

namespace ptx {

template <class T>
inline T load(const char* p, int i) {
  T t;
  std::memcpy(&t, p + i * sizeof t, sizeof t);
  return t;
}
template <class T>
inline void store(char* p, int i, T value) {
  std::memcpy(p + i * sizeof value, &value, sizeof value);
}
inline uint64_t shared_base() { return reinterpret_cast<uint64_t>(emulate::this_block().dynamic_shared); }
inline uint64_t generic_to_shared(uint64_t address) {
  if (!emulate::is_shared(address)) emulate::fail("cvta.to.shared of an address that is not in shared memory");
  return address - shared_base();
}

// A parameter read through a register that holds its address.
inline const char* parameter(const char* parameters, uint64_t size, uint64_t offset, unsigned bytes) {
  if (offset > size || bytes > size - offset) emulate::fail("ld.param of %u bytes at %llu of %llu", bytes,
                                                           (unsigned long long)offset, (unsigned long long)size);
  return parameters + offset;
}

// A thread's own memory; its addresses are the emulator's.
struct Local {
  char* begin;
  uint64_t size;
  bool holds(uint64_t address) const { return address - reinterpret_cast<uint64_t>(begin) < size; }
  char* at(uint64_t address, unsigned bytes) const {
    emulate::check_alignment(address, bytes, "local access");
    const uint64_t offset = address - reinterpret_cast<uint64_t>(begin);
    if (offset > size || bytes > size - offset) emulate::fail("local access of %u bytes out of bounds", bytes);
    return begin + offset;
  }
};
inline char* generic(const Local& local, uint64_t address, unsigned bytes, emulate::Access access) {
  return local.holds(address) ? local.at(address, bytes) : emulate::generic(address, bytes, access);
}

// atom and red: `change` makes the new value of the old. Nothing else runs in between: threads are fibres.
template <class T, class F>
inline T read_modify_write(char* p, F change) {
  emulate::overtake();
  const T old = load<T>(p, 0);
  store(p, 0, change(old));
  return old;
}

// redux.sync on f32 (sm_100).
template <Mode m, bool maximum>
inline float reduce_float(uint32_t mask, float value) {
  return emulate::exchange(mask, maximum ? "redux.max.f32" : "redux.min.f32", value, [mask](auto get) {
    bool first = true;
    float result = 0;
    for (unsigned l = 0; l < 32; ++l)
      if (mask >> l & 1) result = first ? get(l) : extreme<m, maximum>(result, get(l)), first = false;
    if constexpr (m.abs) result = std::fabs(result);
    return result;
  });
}
inline bool elect(uint32_t mask, uint32_t& leader) {
  emulate::exchange(mask, "elect", 0, [](auto) { return 0; });
  leader = __builtin_ctz(mask);
  return leader == emulate::this_thread().lane();
}

// stmatrix.sync.aligned.m8n8: the inverse of ldmatrix.
template <int Count, bool Transposed>
inline void store_matrix(const uint32_t (&fragment)[Count], char* row) {
  struct Lane {
    uint32_t fragment[Count];
  } mine;
  std::memcpy(mine.fragment, fragment, sizeof mine.fragment);
  emulate::exchange(~0u, Transposed ? "stmatrix.trans" : "stmatrix", mine, [&](auto get) {
    const unsigned l = emulate::this_thread().lane();
    if (l >= 8 * Count) return 0;
    for (unsigned c = 0; c < 8; ++c) {
      const unsigned r = l % 8, owner = Transposed ? c * 4 + r / 2 : r * 4 + c / 2, e = Transposed ? r % 2 : c % 2;
      store<uint16_t>(row, c, uint16_t(get(owner).fragment[l / 8] >> (16 * e)));
    }
    return 0;
  });
}

}  // namespace ptx
