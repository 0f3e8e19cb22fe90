// Dynamic shared memory as nvcc compiles it, 16-byte aligned; the emulator's twin is shim/common/dynamic_shared.cuh. It
// moves to csrc/common/ with the first kernel of ours that needs it.
#pragma once

namespace fastrank {

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

}  // namespace fastrank
