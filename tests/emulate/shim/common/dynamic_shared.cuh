// The emulator's twin of nvcc/common/dynamic_shared.cuh.
#pragma once

#include <cuda_runtime.h>

namespace fastrank {

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulate::this_block().dynamic_shared);
}

}  // namespace fastrank
