// Large memory that comes and goes at every step, such as a gradient: given back, it is kept for the next that asks.
//
// Fresh memory costs a page fault, and the kernel's zeros, at its first write: for a gradient of 90 MB that took longer
// than to compute it. As much is kept as was in use at once. What lies here and is more than a few MiB is at the system's
// disposal (MADV_FREE): it takes it where memory is short.
#pragma once

#include <stdint.h>

namespace fastrank {

// At least `bytes` of uninitialised memory, at a multiple of a huge page's size. Throws std::bad_alloc.
void* take_pages(int64_t bytes);
// Back from take_pages(bytes). From any thread.
void give_pages(void* p, int64_t bytes);
// What lies here unused, in bytes; and lets go of it.
int64_t idle_pages();
void drop_pages();

}  // namespace fastrank
