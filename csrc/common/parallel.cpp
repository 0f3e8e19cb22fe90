#include "common/parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <strings.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace fastrank {
namespace {

// So long a thread looks for what it waits for before it sleeps. Falling asleep and waking take about as long, and the
// parts of one call follow each other at once.
constexpr auto kPatience = std::chrono::microseconds(50);

template <class Ready>
bool soon(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!ready()) {
#if defined(__x86_64__)
    for (int i = 0; i < 16; ++i) __builtin_ia32_pause();
#endif
    if (std::chrono::steady_clock::now() > end) return false;
  }
  return true;
}

// OpenMP's entry to a parallel region: fn(data) on each of `threads`, this one among them.
using Region = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

// That of the OpenMP in this process, torch's, where its threads spin between regions; else null. (Intel's and LLVM's
// have it under this name too.)
Region spinning_region() {
  const char* policy = std::getenv("OMP_WAIT_POLICY");
  if (policy && strcasecmp(policy, "PASSIVE") == 0) return nullptr;
  return reinterpret_cast<Region>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

class Pool {
 public:
  // region: whose threads to use instead of own ones, or null.
  explicit Pool(Region region) : region_(region) {}

  void run(int64_t tasks, int threads, const std::function<void(int64_t)>& body) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || threads <= 1 || tasks <= 1) {
      for (int64_t i = 0; i < tasks; ++i) body(i);
      return;
    }
    const int helpers = static_cast<int>(std::min<int64_t>(threads, tasks)) - 1;
    if (region_) {
      begin(tasks, body);
      region_([](void* self) { static_cast<Pool*>(self)->drain(); }, this, static_cast<unsigned>(helpers + 1), 0);
    } else {
      run_on_workers(tasks, helpers, body);
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void begin(int64_t tasks, const std::function<void(int64_t)>& body) {
    body_ = &body;
    tasks_ = tasks;
    failure_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
  }

  void run_on_workers(int64_t tasks, int helpers, const std::function<void(int64_t)>& body) {
    {
      std::lock_guard<std::mutex> guard(state_);
      while (static_cast<int>(workers_.size()) < helpers) {
        const int index = static_cast<int>(workers_.size());
        workers_.emplace_back([this, index, seen = generation_.load()] { work(index, seen); });
      }
      begin(tasks, body);
      helpers_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    drain();
    {
      std::lock_guard<std::mutex> guard(state_);
      helpers_ = 0;  // nothing is left for those that have not woken yet: they are not waited for
    }
    if (soon([this] { return running_ == 0; })) return;
    std::unique_lock<std::mutex> guard(state_);
    done_.wait(guard, [this] { return running_ == 0; });
  }

  // What a body throws, for want of memory, ends the loop and reaches the caller, whichever thread it was on.
  void drain() {
    try {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) (*body_)(i);
    } catch (...) {
      std::lock_guard<std::mutex> guard(failed_);
      failure_ = std::current_exception();
      next_.store(tasks_, std::memory_order_relaxed);
    }
  }

  void work(int index, uint64_t seen) {
    for (;;) {
      const auto called = [&] { return generation_ != seen; };
      soon(called);
      {
        std::unique_lock<std::mutex> guard(state_);
        wake_.wait(guard, called);
        seen = generation_;
        if (index >= helpers_) continue;
        ++running_;
      }
      drain();
      std::lock_guard<std::mutex> guard(state_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  const Region region_;
  std::mutex turn_, state_, failed_;
  std::exception_ptr failure_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  int helpers_ = 0;
};

// Never destroyed: its threads wait in it until the process ends.
Pool* pool = nullptr;
std::once_flag once;

// A forked child has none of its threads, nor OpenMP's, and would wait for them: it begins with a pool of its own.
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool = new Pool(nullptr); });

}  // namespace

void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& body) {
  std::call_once(once, [] {
    if (!pool) pool = new Pool(spinning_region());
  });
  pool->run(tasks, threads, body);
}

}  // namespace fastrank
