#include "common/pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <vector>

namespace fastrank {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20, kPage = int64_t{64} << 10;
// The most that was in use at once fades by this share with each block that comes back: what a step holds at once is kept
// for the next, and sizes that are no longer asked for are let go within some thousand blocks.
constexpr int64_t kFading = 4096;

// Up to so much idle memory stays the process's own: the system would gain little, and telling it takes as long as the
// loss of a small batch.
constexpr int64_t kAtHand = int64_t{8} << 20;

struct Block { void* p; int64_t bytes; };

// Never destroyed: tensors may outlive the module.
struct Idle {
  std::mutex mutex;
  std::vector<Block> blocks;  // oldest first
  int64_t bytes = 0;            // of them
  int64_t most = 0;             // bytes in use at once, fading
  std::atomic<int64_t> used{0};

  // An eighth more, as what a step has had at once has faded by its end.
  int64_t limit() const { return most + most / 8; }
  // The oldest blocks go until all memory, idle or not, is within a limit.
  void shrink(int64_t to) {
    size_t going = 0;
    for (; going < blocks.size() && bytes + used.load() > to; ++going) {
      munmap(blocks[going].p, static_cast<size_t>(blocks[going].bytes));
      bytes -= blocks[going].bytes;
    }
    blocks.erase(blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(going));
  }
};
Idle& idle() {
  static Idle* const the = new Idle;
  return *the;
}

// Not to whole huge pages: a block's tail would take up to 2 MiB of which nobody reads. What is asked for again is asked
// for in the same size.
int64_t rounded(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

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
  idle().used += bytes;
  {
    // A child forked while another thread held the lock finds it locked for ever: it does without.
    std::unique_lock<std::mutex> guard(idle().mutex, std::try_to_lock);
    std::vector<Block>& blocks = idle().blocks;
    for (size_t i = guard.owns_lock() ? blocks.size() : 0; i-- > 0;)
      if (blocks[i].bytes == bytes) {
        void* const p = blocks[i].p;
        blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
        idle().bytes -= bytes;
        return p;
      }
    if (guard.owns_lock()) idle().shrink(std::max(idle().limit(), idle().used.load()));
  }
  try {
    return map(bytes);
  } catch (...) {
    idle().used -= bytes;
    throw;
  }
}

void give_pages(void* p, int64_t bytes) {
  bytes = rounded(bytes);
  Idle& all = idle();
  std::unique_lock<std::mutex> guard(all.mutex, std::try_to_lock);
  if (!guard.owns_lock()) {
    all.used -= bytes;
    munmap(p, static_cast<size_t>(bytes));
    return;
  }
  all.most = std::max(all.most, all.used.load());
  all.used -= bytes;
#ifdef MADV_FREE
  if (all.bytes + bytes > kAtHand) madvise(p, static_cast<size_t>(bytes), MADV_FREE);
#endif
  all.blocks.push_back({p, bytes});
  all.bytes += bytes;
  all.shrink(all.limit());
  all.most -= all.most / kFading;
}

int64_t idle_pages() {
  std::lock_guard<std::mutex> guard(idle().mutex);
  return idle().bytes;
}

void drop_pages() {
  std::unique_lock<std::mutex> guard(idle().mutex, std::try_to_lock);
  if (!guard.owns_lock()) return;
  for (const Block& block : idle().blocks) munmap(block.p, static_cast<size_t>(block.bytes));
  idle().blocks.clear();
  idle().bytes = idle().most = 0;
}

}  // namespace fastrank
