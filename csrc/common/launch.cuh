// Launches a kernel on a stream: no synchronisation. One that cannot start throws std::runtime_error with its name.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fastrank {

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
            Arguments... arguments) {
  kernel<<<grid, block, 0, stream>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("launch of ") + name + " failed: " + cudaGetErrorString(error));
}

}  // namespace fastrank
