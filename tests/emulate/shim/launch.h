// The entrance: runs a kernel over a grid under the current schedule.
#pragma once

#if defined(EMULATE_LAUNCH_ELSEWHERE)  // linked from drivers/launch.cpp: many programs, one compiled scheduler
#include "state.h"
namespace emulate {
void launch(const char* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body);
}
#else

#include <thread>

#include "scheduler.h"

namespace emulate {

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
  release(&launch.begun);
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
  Scheduler(launch, message, launch.schedule.seed).run(order, several ? kResident : 1);
#endif
  acquire(&launch.ended);
  if (!message.empty()) throw Failure(message);
}

}  // namespace emulate
#endif
