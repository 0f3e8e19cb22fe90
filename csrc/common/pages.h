// Memory that a kernel is about to write for the first time.
#pragma once

#include <stdint.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrank {

// Asks for huge pages under [p, p + bytes). Fresh memory costs a page fault per page at its first write, and with 4 KiB
// pages those took longer than writing a gradient of 90 MB (108 against 60 ms for a copy into fresh memory). An advice:
// the kernel may ignore it, and so may we where the range is small.
inline void advise_huge_pages(void* p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;
  constexpr int64_t enough = int64_t{4} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes)) / page * page;
  if (p && bytes >= enough && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

}  // namespace fastrank
