// What translate.py makes of a module, and how its kernels are launched.
#pragma once

#include "runtime.h"

namespace ptx {

// A translated kernel. Of the thread counts, 0 is no limit.
struct Entry {
  const char* name;
  void (*thread)(const char* parameters);
  unsigned static_shared, required_threads, most_threads, parameter_bytes;
};
extern const Entry entries[];  // made by translate.py
extern const int entry_count;
void register_symbols();  // the module's own arrays in global memory

// Throws emulate::Failure.
inline void launch(const Entry& entry, dim3 grid, dim3 block, unsigned dynamic_shared, const char* parameters) {
  const unsigned threads = block.x * block.y * block.z;
  if ((entry.required_threads && threads != entry.required_threads) ||
      (entry.most_threads && threads > entry.most_threads))
    throw emulate::Failure(std::string("launch of ") + entry.name + ": compiled for another block than " +
                           std::to_string(threads) + " threads");
  register_symbols();
  emulate::launch(entry.name, grid, block, entry.static_shared + dynamic_shared, [&] { entry.thread(parameters); });
}

}  // namespace ptx
