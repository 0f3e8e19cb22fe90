#include "common/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
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

class Pool {
 public:
  void run(int64_t tasks, int threads, const std::function<void(int64_t)>& body) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || threads <= 1 || tasks <= 1) {
      for (int64_t i = 0; i < tasks; ++i) body(i);
      return;
    }
    const int helpers = static_cast<int>(std::min<int64_t>(threads, tasks)) - 1;
    {
      std::lock_guard<std::mutex> guard(state_);
      while (static_cast<int>(workers_.size()) < helpers) {
        const int index = static_cast<int>(workers_.size());
        workers_.emplace_back([this, index, seen = generation_.load()] { work(index, seen); });
      }
      body_ = &body;
      tasks_ = tasks;
      next_.store(0, std::memory_order_relaxed);
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

 private:
  void drain() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) (*body_)(i);
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

  std::mutex turn_, state_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  int helpers_ = 0;
};

// Never destroyed: its threads wait in it until the process ends, and a forked child, which has none of them,
// abandons its copy.
Pool* pool = nullptr;
std::once_flag once;

}  // namespace

void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& body) {
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  pool->run(tasks, threads, body);
}

}  // namespace fastrank
