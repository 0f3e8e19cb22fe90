#include "common/pages.h"

#include <sys/mman.h>

#include <mutex>
#include <new>
#include <vector>

namespace fastrank {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
// Blocks kept at most: a step has one gradient at a time, or one of each of a few losses.
constexpr size_t kKept = 4;
// And in all, as a multiple of the last one.
constexpr int64_t kTimes = 2;

// Up to this size an idle block stays the process's own: the system would gain little, and telling it takes as long as
// the loss of a small batch.
constexpr int64_t kAtHand = int64_t{8} << 20;

struct Block { void* p; int64_t bytes; };

// Never destroyed: tensors may outlive the module.
struct Idle {
  std::mutex mutex;
  std::vector<Block> blocks;  // oldest first
};
Idle& idle() {
  static Idle* const the = new Idle;
  return *the;
}

int64_t rounded(int64_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

void* map(int64_t bytes) {
  // One page more than asked for, to cut what lies before and after the aligned range.
  const auto fresh = [&] {
    return static_cast<char*>(mmap(nullptr, static_cast<size_t>(bytes + kHugePage), PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  };
  char* p = fresh();
  if (p == MAP_FAILED) {
    drop_pages();
    p = fresh();
  }
  if (p == MAP_FAILED) throw std::bad_alloc();
  const int64_t before = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(p) % kHugePage);
  if (before) munmap(p, static_cast<size_t>(before));
  munmap(p + before + bytes, static_cast<size_t>(kHugePage - before));
#ifdef MADV_HUGEPAGE
  madvise(p + before, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return p + before;
}

}  // namespace

void* take_pages(int64_t bytes) {
  bytes = rounded(bytes);
  {
    // A child forked while another thread held the lock finds it locked for ever: it does without.
    std::unique_lock<std::mutex> guard(idle().mutex, std::try_to_lock);
    std::vector<Block>& blocks = idle().blocks;
    for (size_t i = guard.owns_lock() ? blocks.size() : 0; i-- > 0;)
      if (blocks[i].bytes == bytes) {
        void* const p = blocks[i].p;
        blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
        return p;
      }
  }
  return map(bytes);
}

void give_pages(void* p, int64_t bytes) {
  bytes = rounded(bytes);
  std::unique_lock<std::mutex> guard(idle().mutex, std::try_to_lock);
  if (!guard.owns_lock()) {
    munmap(p, static_cast<size_t>(bytes));
    return;
  }
#ifdef MADV_FREE
  if (bytes > kAtHand) madvise(p, static_cast<size_t>(bytes), MADV_FREE);
#endif
  std::vector<Block>& blocks = idle().blocks;
  blocks.push_back({p, bytes});
  // The oldest go: sizes that are no longer asked for must not pile up.
  const auto surplus = [&] {
    int64_t all = 0;
    for (const Block& block : blocks) all += block.bytes;
    return blocks.size() > kKept || all > kTimes * bytes;
  };
  while (blocks.size() > 1 && surplus()) {
    munmap(blocks.front().p, static_cast<size_t>(blocks.front().bytes));
    blocks.erase(blocks.begin());
  }
}

int64_t idle_pages() {
  std::lock_guard<std::mutex> guard(idle().mutex);
  int64_t bytes = 0;
  for (const Block& block : idle().blocks) bytes += block.bytes;
  return bytes;
}

void drop_pages() {
  std::unique_lock<std::mutex> guard(idle().mutex, std::try_to_lock);
  if (!guard.owns_lock()) return;
  for (const Block& block : idle().blocks) munmap(block.p, static_cast<size_t>(block.bytes));
  idle().blocks.clear();
}

}  // namespace fastrank
