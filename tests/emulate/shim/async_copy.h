// cp.async: a copy from global to shared memory that is complete only after the issuing thread's own wait. "Early"
// schedules let it land at once, which shows a buffer that is refilled too soon; else it lands as late as the waits
// allow, which shows a missing wait.
#pragma once

#include "memory.h"

namespace emulate {

inline void land(const Copy& copy) {
  if (copy.source_bytes) std::memcpy(copy.to, copy.from, copy.source_bytes);
  std::memset(static_cast<char*>(copy.to) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

// Copies `source_bytes` bytes and fills up with zeros to `bytes`, which is 4, 8 or 16 and the alignment of both ends.
inline void copy_async(void* to, const void* from, unsigned bytes, unsigned source_bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async of %u bytes: expected 4, 8 or 16", bytes);
  if (source_bytes > bytes) fail("cp.async: %u source bytes for a copy of %u", source_bytes, bytes);
  check_shared(to, bytes, bytes, "cp.async destination");
  check_alignment(reinterpret_cast<uint64_t>(from), bytes, "cp.async source");
  if (source_bytes) global(reinterpret_cast<uint64_t>(from), source_bytes, Access::load, 1);
  const Copy copy = {to, from, bytes, source_bytes};
  if (this_launch().schedule.early) land(copy);
  else this_thread().open_copies.push_back(copy);
}

inline void commit_copies() {
  Thread& me = this_thread();
  me.groups.push_back(std::move(me.open_copies));
  me.open_copies.clear();
}

// cp.async.wait_group: all but the latest `pending` groups have landed.
inline void wait_copies(unsigned pending) {
  auto& groups = this_thread().groups;
  while (groups.size() > pending) {
    for (const Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

// cp.async.wait_all: also those that were never committed.
inline void wait_all_copies() {
  commit_copies();
  wait_copies(0);
}

}  // namespace emulate
