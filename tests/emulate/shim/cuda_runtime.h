// Stands in for the toolkit's <cuda_runtime.h>: the names of CUDA C++ that our kernels and their launch code use. What
// is missing here does not compile; add it with the meaning that the CUDA C++ Programming Guide gives it.
#pragma once

// NVIDIA's own host versions of the 16-bit types, with the runtime's types; before the macros below.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "emulate.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __noinline__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __align__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ constinit static  // one block at a time
#else
#define __shared__ constinit static thread_local  // see "static shared memory" in scheduler.h
#endif

#define threadIdx (::emulate::this_thread().index)
#define blockIdx (::emulate::this_block().index)
#define blockDim (::emulate::this_launch().block)
#define gridDim (::emulate::this_launch().grid)
// A macro, for the line: the call itself may be copied by the compiler, the statement is one.
#define __syncthreads() ::emulate::barrier(0, 0, {__FILE__, __LINE__})

inline void __syncwarp(unsigned mask = ~0u) { emulate::warp_barrier(mask); }
inline void __threadfence() { emulate::fence(); }
inline void __threadfence_block() { emulate::fence(); }

// PTX's segment mask for a width of 2, 4, ... 32 lanes.
namespace emulate {
inline unsigned segment(int width) { return static_cast<unsigned>(32 - width) << 8; }
}  // namespace emulate
template <class V>
V __shfl_sync(unsigned mask, V value, int lane, int width = 32) {
  return emulate::shuffle(emulate::Shuffle::index, mask, value, lane, emulate::segment(width) | 31);
}
template <class V>
V __shfl_up_sync(unsigned mask, V value, unsigned delta, int width = 32) {
  return emulate::shuffle(emulate::Shuffle::up, mask, value, delta, emulate::segment(width));
}
template <class V>
V __shfl_down_sync(unsigned mask, V value, unsigned delta, int width = 32) {
  return emulate::shuffle(emulate::Shuffle::down, mask, value, delta, emulate::segment(width) | 31);
}
template <class V>
V __shfl_xor_sync(unsigned mask, V value, int lanes, int width = 32) {
  return emulate::shuffle(emulate::Shuffle::butterfly, mask, value, lanes, emulate::segment(width) | 31);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulate::ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return emulate::ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulate::ballot(mask, predicate) == mask; }

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return emulate::atomic<emulate::Atomic::add>(address, value);
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return emulate::atomic<emulate::Atomic::min>(address, value);
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return emulate::atomic<emulate::Atomic::max>(address, value);
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return emulate::atomic<emulate::Atomic::exchange>(address, value);
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return emulate::compare_and_swap(address, expected, value);
}
