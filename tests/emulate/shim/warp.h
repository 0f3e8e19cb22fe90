// Exchanges within a warp: shuffles, votes, matches and reductions, as PTX defines them.
#pragma once

#include <type_traits>

#include "wait.h"

namespace emulate {

enum class Shuffle { up, down, butterfly, index };

// shfl.sync: the value of the lane that `operand` names, kept within the segment that `clamp` (PTX's operand c: clamp
// value in bits 0-4, segment mask in bits 8-12) describes. `in_range`, if given, gets PTX's predicate. A lane that is
// not in the mask yields all bits set.
template <class V>
V shuffle(Shuffle mode, uint32_t mask, V value, uint32_t operand, uint32_t clamp, bool* in_range = nullptr) {
  const int lane = static_cast<int>(this_thread().lane()), segment = clamp >> 8 & 31;
  const int least = lane & segment, most = least | (clamp & 31 & ~segment), b = operand & 31;
  int source = 0;
  bool inside = true;
  const char* kind = "";
  switch (mode) {
    case Shuffle::up: kind = "shfl.up", source = lane - b, inside = source >= most; break;
    case Shuffle::down: kind = "shfl.down", source = lane + b, inside = source <= most; break;
    case Shuffle::butterfly: kind = "shfl.bfly", source = lane ^ b, inside = source <= most; break;
    case Shuffle::index: kind = "shfl.idx", source = least | (b & ~segment), inside = source <= most; break;
  }
  if (!inside) source = lane;
  if (in_range) *in_range = inside;
  return exchange(mask, kind, value, [source](auto get) { return get(source); });
}

inline void warp_barrier(uint32_t mask) {
  exchange(mask, "bar.warp", 0, [](auto) { return 0; }, true);
}

// vote.sync.ballot; all, any and uni follow from it.
inline uint32_t ballot(uint32_t mask, bool predicate) {
  return exchange(mask, "vote", predicate, [mask](auto get) {
    uint32_t votes = 0;
    for (unsigned l = 0; l < kWarp; ++l)
      if (mask >> l & 1 && get(l)) votes |= 1u << l;
    return votes;
  });
}

template <class V>
bool same_bits(const V& a, const V& b) {
  return !std::memcmp(&a, &b, sizeof a);
}

// match.any.sync: the lanes of the mask that hold the same bits as this one.
template <class V>
uint32_t match_any(uint32_t mask, V value) {
  return exchange(mask, "match.any", value, [mask, value](auto get) {
    uint32_t same = 0;
    for (unsigned l = 0; l < kWarp; ++l)
      if (mask >> l & 1 && same_bits<V>(get(l), value)) same |= 1u << l;
    return same;
  });
}

// match.all.sync: the mask if all lanes hold the same bits, else 0.
template <class V>
uint32_t match_all(uint32_t mask, V value) {
  // Every lane must judge the same: whether all equal the first.
  return exchange(mask, "match.all", value, [mask](auto get) {
    const V first = get(__builtin_ctz(mask));
    for (unsigned l = 0; l < kWarp; ++l)
      if (mask >> l & 1 && !same_bits<V>(get(l), first)) return 0u;
    return mask;
  });
}

enum class Reduce { add, min, max, and_, or_, xor_ };

// redux.sync on 32-bit integers.
template <class V>
V reduce(Reduce how, uint32_t mask, V value) {
  static_assert(std::is_integral_v<V> && sizeof(V) == 4, "redux.sync takes 32-bit integers");
  const char* const kinds[] = {"redux.add", "redux.min", "redux.max", "redux.and", "redux.or", "redux.xor"};
  return exchange(mask, kinds[static_cast<int>(how)], value, [how, mask](auto get) {
    bool first = true;
    V result = 0;
    for (unsigned l = 0; l < kWarp; ++l) {
      if (!(mask >> l & 1)) continue;
      const V v = get(l);
      if (first) {
        result = v;
        first = false;
        continue;
      }
      switch (how) {
        case Reduce::add: result = static_cast<V>(uint32_t(result) + uint32_t(v)); break;
        case Reduce::min: result = std::min(result, v); break;
        case Reduce::max: result = std::max(result, v); break;
        case Reduce::and_: result &= v; break;
        case Reduce::or_: result |= v; break;
        case Reduce::xor_: result ^= v; break;
      }
    }
    return result;
  });
}

}  // namespace emulate
