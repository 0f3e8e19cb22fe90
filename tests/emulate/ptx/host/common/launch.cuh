// Stands in for csrc/common/launch.cuh: our own launch code runs the kernels that nvcc compiled to PTX. The kernels'
// own source is compiled too, by g++, but only to say by their addresses which of them is meant.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <string>

#include "launch.h"

namespace ptx {

extern void* const sources[];  // made by host.py: for each entry the function of that name, where it has one

inline const Entry& entry_of(const char* name, void* kernel) {
  // One that is local to its file has no address here, but then its name is not a template's.
  const std::string mangled = std::to_string(std::strlen(name)) + name;
  for (int i = 0; i < entry_count; ++i)
    if (sources[i] ? sources[i] == kernel : std::strstr(entries[i].name, mangled.c_str()) != nullptr) return entries[i];
  throw emulate::Failure(std::string("no PTX for ") + name);
}

}  // namespace ptx

namespace fastrank {

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t /*stream*/,
            Arguments... arguments) {
  std::string space;
  const auto put = [&](auto value) {
    space.resize((space.size() + alignof(decltype(value)) - 1) / alignof(decltype(value)) * alignof(decltype(value)));
    space.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  (put(static_cast<Parameters>(arguments)), ...);
  const ptx::Entry& entry = ptx::entry_of(name, reinterpret_cast<void*>(kernel));
  if (space.size() != entry.parameter_bytes)
    throw emulate::Failure(std::string(name) + ": the PTX takes other parameters");
  ptx::launch(entry, grid, block, 0, space.data());
}

}  // namespace fastrank
