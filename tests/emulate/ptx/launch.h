// Launches translated kernels: from Python through the C functions at the end, or from C++ through ptx::launch().
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

#define PTX_EXPORT extern "C" __attribute__((visibility("default"), used)) inline

PTX_EXPORT void ptx_forget_buffers() { emulate::forget_buffers(); }
PTX_EXPORT void ptx_register_buffer(uint64_t begin, uint64_t bytes, int writable, const char* name) {
  emulate::register_buffer(reinterpret_cast<const void*>(begin), bytes, writable, name);
}
// Returns why it failed, or null. `mutant` and `error_seed`: see runtime.h.
PTX_EXPORT const char* ptx_launch(int kernel, const unsigned* grid, const unsigned* block, unsigned dynamic_shared,
                                  const char* parameters, const char* schedule, uint64_t error_seed, int mutant) {
  static std::string message;
  ptx::error_seed = error_seed;
  ptx::mutant = mutant;
  try {
    emulate::current_schedule() = emulate::Schedule::parse(schedule);
    ptx::launch(ptx::entries[kernel], dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),
                dynamic_shared, parameters);
  } catch (const std::exception& failure) {
    message = failure.what();
    return message.c_str();
  }
  return nullptr;
}
