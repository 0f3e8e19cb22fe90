// What run.py calls of a translated module's library. Compiled once, linked with each.
#include "launch.h"

#define PTX_EXPORT extern "C" __attribute__((visibility("default")))

PTX_EXPORT void ptx_forget_buffers() { emulate::forget_buffers(); }
PTX_EXPORT void ptx_register_buffer(uint64_t begin, uint64_t bytes, int writable, const char* name) {
  emulate::register_buffer(reinterpret_cast<const void*>(begin), bytes, writable, name);
}
// Returns why it failed, or null. `mutant`: see runtime.h; `error_seed`: approximations.h.
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
