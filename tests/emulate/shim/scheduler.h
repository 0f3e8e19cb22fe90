// Runs a grid: every CUDA thread is a fibre, and the schedule says which one goes next.
//
// A thread gives way only where it waits (barriers, exchanges within a warp) or might be overtaken by another block
// (atomics, fences). A thread that would wait for ever is a failure that says for whom.
#pragma once

#include <vector_types.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <new>
#include <thread>

#include "failure.h"
#include "fibers.h"
#include "schedule.h"

namespace emulate {

constexpr unsigned kWarp = 32;
constexpr size_t kMaxShared = 227 << 10;       // bytes a block of sm_90 or sm_100 can have
constexpr unsigned kResident = 3;              // blocks at once under a random schedule
constexpr size_t kMaxExchange = 64;            // bytes a lane publishes in one exchange

// What is taken for an endless loop.
struct Limits {
  uint64_t switches = 20 << 20;  // between the threads of one launch
  uint64_t steps = 1 << 28;      // of one thread, where the program counts them
};
inline Limits limits;

// Where in the source a thread waits.
struct Site {
  const char* file = nullptr;
  int line = 0;
  bool operator!=(const Site& other) const { return line != other.line || file != other.file; }
};

struct Copy {  // one cp.async under way
  void* to;
  const void* from;
  unsigned bytes, source_bytes;
};

struct Warp;
struct Thread {
  enum State : uint8_t { ready, waits_barrier, waits_warp, done } state = ready;
  bool overtaken = false;  // gave way of itself, and has not run since
  unsigned linear = 0;
  uint3 index = {};
  Warp* warp = nullptr;
  Site site;
  uint64_t steps = 0;  // see count_step()
  std::vector<Copy> open_copies;
  std::vector<std::vector<Copy>> groups;
  Context context;
  std::unique_ptr<Stack> stack;
  unsigned lane() const { return linear % kWarp; }
};

// Lanes of a warp that exchange values: made by the first to come, gone with the last to leave.
struct Exchange {
  uint32_t mask, arrived = 0, left = 0;
  const char* kind;
  alignas(16) unsigned char value[kWarp][kMaxExchange];
};

struct Warp {
  std::vector<Exchange*> meeting;  // not all lanes are there
  std::vector<Thread*> lanes;
  ~Warp() {
    for (Exchange* e : meeting) delete e;
  }
};

struct Barrier {
  unsigned arrived = 0, expected = 0, phase = 0;
  Site site;
  std::vector<Thread*> waiting;
  char order[2];  // ThreadSanitizer's handles, for even and odd phases
};

struct Block {
  uint3 index = {};
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Barrier barriers[16];
  unsigned char* dynamic_shared = nullptr;
  size_t dynamic_bytes = 0;
  std::vector<unsigned char> static_shared;  // its image while another block is running
  size_t live = 0;
  ~Block() {
    for (auto& thread : threads) Stack::finish(thread->context);
    ::operator delete(dynamic_shared, std::align_val_t(1024));
  }
};

struct Launch {
  const char* kernel;
  dim3 grid, block;
  size_t shared;
  const std::function<void()>& body;
  Schedule schedule;
};

// Where the static shared memory of the running block lies.
struct StaticShared {
  unsigned char* begin = nullptr;
  size_t size = 0;
};

// What is running on this thread of the operating system. The shim's only thread-local variable (see static_shared).
struct State {
  Thread* thread = nullptr;
  Block* block = nullptr;
  const Launch* launch = nullptr;
  Context scheduler;
  bool failed = false;
  std::string* message = nullptr;
  StaticShared static_shared;
  size_t last_buffer = 0;  // where the last access was found (memory.h)
};
inline thread_local State state;

EMULATE_UNWATCHED inline Thread& this_thread() { return *state.thread; }
EMULATE_UNWATCHED inline Block& this_block() { return *state.block; }
EMULATE_UNWATCHED inline const Launch& this_launch() { return *state.launch; }

inline Schedule& current_schedule() {  // of the launches to come
  static Schedule schedule;
  return schedule;
}

inline std::string where() {
  const Unwatched unwatched;
  if (!state.launch) return "";
  std::string s = std::string("kernel ") + state.launch->kernel;
  const auto triple = [](uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
  };
  if (state.block) s += ", block " + triple(state.block->index);
  if (state.thread) s += ", thread " + triple(state.thread->index);
  return s + ": ";
}

// ---- what a thread calls ----

// Back to the scheduler, until it chooses this thread again.
EMULATE_UNWATCHED inline void give_way() {
  Thread* const me = state.thread;
  switch_to(me->context, state.scheduler);
}

// A point at which another thread may come first although this one could go on.
inline void overtake() {
  const Unwatched unwatched;
  state.thread->overtaken = true;
  give_way();
}

// Loops that never wait are noticed only through this: call it wherever the program jumps back.
inline void count_step() {
  if (++this_thread().steps > limits.steps) fail("endless loop");
}

// bar.sync and bar.arrive: waits (or, with `wait` false, is counted) until `count` threads of the block have come to
// barrier `id`; 0 stands for the whole block. A barrier of the whole block must be one statement for all its threads.
inline void barrier(unsigned id = 0, unsigned count = 0, Site site = {}, bool wait = true) {
  void* order;
  {
    const Unwatched unwatched;
    Block& block = *state.block;
    const bool whole = count == 0;
    if (id >= 16) fail("barrier %u: there are 16", id);
    if (count % kWarp) fail("barrier %u for %u threads: expected a multiple of %u", id, count, kWarp);
    if (whole) count = static_cast<unsigned>(block.threads.size());
    Barrier& b = block.barriers[id];
    if (b.arrived == 0) {
      b.expected = count;
      b.site = site;
    } else if (b.expected != count) {
      fail("barrier %u: this thread expects %u threads, an earlier one %u", id, count, b.expected);
    } else if (whole && b.site != site) {
      fail("divergent barrier: this thread waits at %s:%d, another at %s:%d", site.file ? site.file : "?", site.line,
           b.site.file ? b.site.file : "?", b.site.line);
    }
    order = &b.order[b.phase & 1];
    Thread& me = *state.thread;
    if (wait) {
      me.state = Thread::waits_barrier;
      me.site = site;
      b.waiting.push_back(&me);
    }
    ++b.arrived;
  }
  release(order);
  {
    const Unwatched unwatched;
    Barrier& b = state.block->barriers[id];
    if (b.arrived == b.expected) {
      for (Thread* t : b.waiting) t->state = Thread::ready;
      b.waiting.clear();
      b.arrived = 0;
      ++b.phase;
    }
    if (!wait) return;
    give_way();
  }
  acquire(order);
}

// All lanes of `mask` publish `value` and see what the others published: `read(get)` is called with get(lane), and its
// result returned. A lane outside the mask reads as all bits set. `kind` must be the same for all lanes.
template <class V, class F>
auto exchange(uint32_t mask, const char* kind, const V& value, F read) {
  static_assert(sizeof(V) <= kMaxExchange);
  Exchange* e = nullptr;
  {
    const Unwatched unwatched;
    Thread& me = *state.thread;
    Warp& warp = *me.warp;
    const uint32_t my_bit = 1u << me.lane();
    if (!(mask & my_bit)) fail("%s: the mask %#x lacks lane %u, which executes it", kind, mask, me.lane());
    for (Exchange* other : warp.meeting)
      if (other->mask & mask) {
        if (other->mask != mask || std::strcmp(other->kind, kind))
          fail("%s with mask %#x meets %s with mask %#x", kind, mask, other->kind, other->mask);
        e = other;
      }
    if (!e) {
      e = new Exchange;
      e->mask = mask;
      e->kind = kind;
      std::memset(e->value, 0xFF, sizeof e->value);
      warp.meeting.push_back(e);
    }
    std::memcpy(e->value[me.lane()], &value, sizeof value);
    e->arrived |= my_bit;
  }
  release(e);
  {
    const Unwatched unwatched;
    Thread& me = *state.thread;
    if (e->arrived == mask) {
      std::erase(me.warp->meeting, e);
      for (Thread* t : me.warp->lanes)
        if (mask >> t->lane() & 1) t->state = Thread::ready;
    } else {
      me.state = Thread::waits_warp;
    }
    give_way();
  }
  acquire(e);
  auto result = read([e](unsigned lane) {
    V v;
    const Unwatched unwatched;
    std::memcpy(&v, e->value[lane % kWarp], sizeof v);
    return v;
  });
  const Unwatched unwatched;
  if (++e->left == static_cast<uint32_t>(__builtin_popcount(mask))) delete e;
  return result;
}

// ---- static shared memory ----
//
// A __shared__ variable is a thread_local one (cuda_runtime.h), so the static shared memory of all kernels in this
// binary is its thread-local segment. That gives a block's variables their poison, and lets blocks take turns.

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// AddressSanitizer: ordinary static variables, for their redzones. ThreadSanitizer: a block has an OS thread of its
// own, hence its own thread-local variables; nothing must be written behind the sanitizer's back.
constexpr unsigned kMaxResident = 1;
inline StaticShared static_shared() { return {}; }
#else
}  // namespace emulate
#include <link.h>
namespace emulate {
constexpr unsigned kMaxResident = kResident;
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

// ---- the scheduler ----

class Scheduler {
 public:
  Scheduler(const Launch& launch, std::string& message, uint64_t seed) : launch_(launch), random_(seed) {
    state = {};
    state.launch = &launch;
    state.message = &message;
    adopt_current(state.scheduler);
    state.static_shared = static_ = static_shared();
  }
  ~Scheduler() { state = {}; }

  // Runs the blocks in the order given; at most `resident` are under way at a time.
  void run(const std::vector<uint64_t>& order, unsigned resident) {
    size_t next = 0;
    while (!state.failed && (next < order.size() || !blocks_.empty())) {
      while (blocks_.size() < resident && next < order.size()) begin(order[next++]);
      const size_t first = random_.below(blocks_.size());
      bool ran = false;
      for (size_t k = 0; k < blocks_.size() && !ran; ++k) {
        Block& block = *blocks_[(first + k) % blocks_.size()];
        activate(block);
        ran = step(block);
      }
      if (state.failed) break;
      if (!ran) explain_deadlock(*blocks_[0]);
      std::erase_if(blocks_, [this](const auto& block) {
        if (block->live == 0 && active_ == block.get()) active_ = state.block = nullptr;
        return block->live == 0;
      });
    }
    state.thread = nullptr;
    state.block = nullptr;
    blocks_.clear();
  }

 private:
  void begin(uint64_t number) {
    blocks_.push_back(std::make_unique<Block>());
    Block& block = *blocks_.back();
    const dim3 grid = launch_.grid, size = launch_.block;
    block.index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                   static_cast<unsigned>(number / grid.x / grid.y)};
    block.dynamic_bytes = launch_.shared;
    block.dynamic_shared = static_cast<unsigned char*>(::operator new(launch_.shared, std::align_val_t(1024)));
    std::memset(block.dynamic_shared, 0xFF, launch_.shared);  // NaN in every floating-point format
    block.static_shared.assign(static_.size, 0xFF);
    const unsigned n = size.x * size.y * size.z;
    block.live = n;
    block.warps.resize((n + kWarp - 1) / kWarp);
    for (unsigned i = 0; i < n; ++i) {
      block.threads.push_back(std::make_unique<Thread>());
      Thread& t = *block.threads.back();
      t.linear = i;
      t.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
      t.warp = &block.warps[i / kWarp];
      t.warp->lanes.push_back(&t);
      t.stack = std::make_unique<Stack>();
      t.stack->start(t.context, &thread_main);
    }
  }

  // First and last function of every CUDA thread.
  static void thread_main() {
    entered_new_stack();
    try {
      acquire(const_cast<Launch*>(&this_launch()));
      this_launch().body();
      const Unwatched unwatched;
      const Thread& me = *state.thread;
      if (!me.open_copies.empty()) fail("returned with a cp.async that was never committed");
      for (const auto& group : me.groups)
        if (!group.empty()) fail("returned with a cp.async that was never waited for");
    } catch (const std::exception& error) {
      const Unwatched unwatched;
      state.failed = true;
      *state.message = error.what();
    }
    release(const_cast<Launch*>(&this_launch()));
    const Unwatched unwatched;
    state.thread->state = Thread::done;
    --state.block->live;
    // Never resumed: ends the watch by hand, for ThreadSanitizer counts.
    unwatched.~Unwatched();
    switch_to(state.thread->context, state.scheduler, true);
    std::abort();
  }

  // Blocks that take turns share the addresses of their static shared memory.
  void activate(Block& block) {
    if (active_ == &block) return;
    const State mine = state;  // lies in the same segment
    if (active_) std::memcpy(active_->static_shared.data(), static_.begin, static_.size);
    if (static_.size) std::memcpy(static_.begin, block.static_shared.data(), static_.size);
    state = mine;
    active_ = &block;
    state.block = &block;
  }

  bool resume(Thread& t) {
    if (t.state != Thread::ready || state.failed) return false;
    if (++resumptions_ > limits.switches) {
      state.thread = &t;
      complain("still running after %llu switches between threads: an endless loop, or a wait for a block that "
               "cannot start", static_cast<unsigned long long>(limits.switches));
      return false;
    }
    t.overtaken = false;
    state.thread = &t;
    switch_to(state.scheduler, t.context);
    if (t.stack->overflowed()) {
      complain("stack overflow of the emulator (%zu bytes)", Stack::kBytes);
      return false;
    }
    if (t.state == Thread::done && !state.failed) t.stack.reset();
    return true;
  }

  // Lets some of the block's threads run; false if none could.
  bool step(Block& block) {
    const size_t n = block.threads.size(), warps = block.warps.size();
    bool ran = false;
    switch (launch_.schedule.order) {
      case Schedule::lockstep:
        for (size_t i = 0; i < n; ++i) ran |= resume(*block.threads[i]);
        return ran;
      case Schedule::reverse:
        for (size_t i = n; i-- > 0;) ran |= resume(*block.threads[i]);
        return ran;
      case Schedule::warps:
        for (size_t w = 0; w < warps; ++w) ran |= push(block.warps[w], false);
        return ran;
      case Schedule::warps_reverse:
        for (size_t w = warps; w-- > 0;) ran |= push(block.warps[w], true);
        return ran;
      case Schedule::random: {
        const size_t first = random_.below(warps);
        for (size_t k = 0; k < warps && !ran; ++k) {
          Warp& warp = block.warps[(first + k) % warps];
          switch (random_.below(4)) {
            case 0: ran = push(warp, false); break;
            case 1: ran = push(warp, true); break;
            case 2: ran = some_lanes(warp, 1); break;
            default: ran = some_lanes(warp, kWarp); break;
          }
        }
        return ran;
      }
    }
    return false;
  }

  // As far as the warp can go.
  bool push(Warp& warp, bool backwards) {
    bool ran = false;
    for (bool again = true; again && !state.failed;) {
      again = false;
      for (size_t k = 0; k < warp.lanes.size(); ++k) {
        Thread& t = *warp.lanes[backwards ? warp.lanes.size() - 1 - k : k];
        if (!resume(t)) continue;
        ran = true;
        again |= !t.overtaken;  // else it may be waiting for another warp or block
      }
    }
    return ran;
  }

  // Up to `count` ready lanes, in any order.
  bool some_lanes(Warp& warp, size_t count) {
    std::vector<Thread*> lanes = warp.lanes;
    for (size_t i = lanes.size(); i > 1; --i) std::swap(lanes[i - 1], lanes[random_.below(i)]);
    size_t ran = 0;
    for (Thread* t : lanes)
      if (ran < count && resume(*t)) ++ran;
    return ran > 0;
  }

  void complain(const char* format, ...) __attribute__((format(printf, 2, 3))) {
    va_list arguments;
    va_start(arguments, format);
    *state.message = where() + text(format, arguments);
    va_end(arguments);
    state.failed = true;
  }

  void explain_deadlock(Block& block) {
    activate(block);
    for (auto& thread : block.threads) {
      state.thread = thread.get();
      if (thread->state == Thread::waits_warp)
        for (const Exchange* e : thread->warp->meeting)
          if (e->arrived >> thread->lane() & 1)
            return complain("deadlock: %s with mask %#x waits for lanes %#x, which never came", e->kind, e->mask,
                            e->mask & ~e->arrived);
      if (thread->state == Thread::waits_barrier)
        for (unsigned id = 0; id < 16; ++id) {
          const Barrier& b = block.barriers[id];
          if (std::find(b.waiting.begin(), b.waiting.end(), thread.get()) != b.waiting.end())
            return complain("deadlock: barrier %u at %s:%d waits for %u threads, %u came; %zu of %zu have returned", id,
                            b.site.file ? b.site.file : "?", b.site.line, b.expected, b.arrived,
                            block.threads.size() - block.live, block.threads.size());
        }
    }
    complain("deadlock");
  }

  const Launch& launch_;
  Random random_;
  StaticShared static_;
  std::vector<std::unique_ptr<Block>> blocks_;
  Block* active_ = nullptr;
  uint64_t resumptions_ = 0;
};

// Runs `body` once per CUDA thread, under current_schedule(). Throws Failure if anything is wrong with the launch or
// the kernel; what the kernel had written by then stays written.
inline void launch(const char* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  const std::string name = std::string("launch of ") + kernel + ": ";
  if (blocks == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535)
    throw Failure(name + "no such grid: " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                  std::to_string(grid.z));
  if (threads == 0 || threads > 1024 || block.z > 64)
    throw Failure(name + "no such block: " + std::to_string(threads) + " threads");
  if (shared > kMaxShared) throw Failure(name + std::to_string(shared) + " bytes of shared memory are too many");

  Launch launch = {kernel, grid, block, shared, body, current_schedule()};
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
  Random random(launch.schedule.seed);
  if (launch.schedule.order == Schedule::reverse || launch.schedule.order == Schedule::warps_reverse)
    std::reverse(order.begin(), order.end());
  if (launch.schedule.order == Schedule::random)
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);

  std::string message;
  release(&launch);
#if defined(__SANITIZE_THREAD__)
  // Threads of the operating system, all started before any ends: blocks are not ordered among each other.
  std::vector<std::string> messages(order.size());
  std::vector<std::thread> workers;
  for (size_t i = 0; i < order.size(); ++i)
    workers.emplace_back([&, i] {
      const Unwatched unwatched;
      Scheduler(launch, messages[i], launch.schedule.seed + i).run({order[i]}, 1);
    });
  for (auto& worker : workers) worker.join();
  for (const auto& m : messages)
    if (message.empty()) message = m;
#else
  const bool several = launch.schedule.order == Schedule::random;
  Scheduler(launch, message, launch.schedule.seed).run(order, several ? kMaxResident : 1);
#endif
  acquire(&launch);
  if (!message.empty()) throw Failure(message);
}

}  // namespace emulate
