// Static shared memory: where it is, so that every block finds it poisoned and blocks can take turns.
//
// A __shared__ variable is a thread_local one (cuda_runtime.h), so the static shared memory of all kernels in this
// binary is its thread-local segment. That gives a block's variables their poison, and lets blocks take turns.
#pragma once

#include <link.h>

#include "state.h"

namespace emulate {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// AddressSanitizer: ordinary static variables, for their redzones. ThreadSanitizer: a block has an OS thread of its
// own, hence its own thread-local variables; nothing must be written behind the sanitizer's back.
constexpr unsigned kResident = 1;  // blocks at once under a random schedule
inline StaticShared static_shared() { return {}; }
#else
constexpr unsigned kResident = 3;
inline StaticShared static_shared() {
  StaticShared found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        auto* const begin = static_cast<unsigned char*>(info->dlpi_tls_data);
        auto* const mine = reinterpret_cast<unsigned char*>(&state);
        for (int i = 0; begin && i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS && mine >= begin && mine < begin + info->dlpi_phdr[i].p_memsz) {
            *static_cast<StaticShared*>(out) = {begin, info->dlpi_phdr[i].p_memsz};
            return 1;
          }
        return 0;
      },
      &found);
  return found;
}
#endif

}  // namespace emulate
