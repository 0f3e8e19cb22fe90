// What is running: the launch, its blocks, warps and threads, and what they wait for.
#pragma once

#include <vector_types.h>

#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "failure.h"
#include "fibers.h"
#include "schedule.h"

namespace emulate {

constexpr unsigned kWarp = 32;
constexpr size_t kMaxShared = 227 << 10;       // bytes a block of sm_90 or sm_100 can have
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
  mutable char begun = 0, ended = 0;  // ThreadSanitizer's handles: threads are ordered with the host, not among each other
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

}  // namespace emulate
