// Runs a grid: every CUDA thread is a fibre, and the schedule says which one goes next.
//
// A thread gives way only where it waits (barriers, exchanges within a warp) or might be overtaken by another block
// (atomics, fences). A thread that would wait for ever is a failure that says for whom.
#pragma once

#include <algorithm>
#include <cstring>

#include "shared_memory.h"
#include "wait.h"

namespace emulate {

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
      acquire(&this_launch().begun);
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
    release(&this_launch().ended);
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

}  // namespace emulate
