// Atomic read-modify-write on global or shared memory, relaxed as in CUDA, with nothing ordered around it. Every one
// is a point at which other threads and blocks may come first.
#pragma once

#include <atomic>
#include <type_traits>

#include "memory.h"

namespace emulate {

enum class Atomic { add, min, max, exchange, and_, or_, xor_, increment, decrement };

// Returns the old value. T: float, double (add and exchange), or a 32- or 64-bit integer.
template <Atomic how, class T>
T atomic(T* address, T operand) {
  static_assert(std::is_floating_point_v<T> || (std::is_integral_v<T> && sizeof(T) >= 4));
  static_assert(std::is_integral_v<T> || how == Atomic::add || how == Atomic::exchange);
  check_alignment(reinterpret_cast<uint64_t>(address), sizeof(T), "atomic");
  overtake();
  std::atomic_ref<T> target(*address);
  constexpr auto relaxed = std::memory_order_relaxed;
  if constexpr (how == Atomic::exchange) return target.exchange(operand, relaxed);
  T old = target.load(relaxed), wanted{};
  do {
    if constexpr (how == Atomic::add && std::is_integral_v<T>)
      wanted = static_cast<T>(std::make_unsigned_t<T>(old) + std::make_unsigned_t<T>(operand));
    else if constexpr (how == Atomic::add) wanted = old + operand;
    else if constexpr (how == Atomic::min) wanted = std::min(old, operand);
    else if constexpr (how == Atomic::max) wanted = std::max(old, operand);
    else if constexpr (how == Atomic::and_) wanted = old & operand;
    else if constexpr (how == Atomic::or_) wanted = old | operand;
    else if constexpr (how == Atomic::xor_) wanted = old ^ operand;
    else if constexpr (how == Atomic::increment) wanted = old >= operand ? T(0) : old + 1;
    else if constexpr (how == Atomic::decrement) wanted = old == 0 || old > operand ? operand : old - 1;
  } while (!target.compare_exchange_weak(old, wanted, relaxed));
  return old;
}

// Stores `wanted` if the bits there are those of `expected`; returns the old value. T: a 16-, 32- or 64-bit integer.
template <class T>
T compare_and_swap(T* address, T expected, T wanted) {
  static_assert(std::is_integral_v<T>);
  check_alignment(reinterpret_cast<uint64_t>(address), sizeof(T), "atomic");
  overtake();
  std::atomic_ref<T>(*address).compare_exchange_strong(expected, wanted, std::memory_order_relaxed);
  return expected;
}

// membar / __threadfence: others may come first here too.
inline void fence() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  overtake();
}

}  // namespace emulate
