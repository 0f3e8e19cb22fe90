// Where a CUDA thread waits for others, and the scheduler may choose another one.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "state.h"

namespace emulate {

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
// result returned. A lane outside the mask reads as all bits set. `kind` must be the same for all lanes. Memory is not
// ordered by it, except with `orders_memory`: of CUDA's warp instructions only __syncwarp does that.
template <class V, class F>
auto exchange(uint32_t mask, const char* kind, const V& value, F read, bool orders_memory = false) {
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
  if (orders_memory) release(e);
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
  if (orders_memory) acquire(e);
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

}  // namespace emulate
