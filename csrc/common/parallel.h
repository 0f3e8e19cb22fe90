// A small persistent thread pool: parallel_for(tasks, threads, body) runs body(i) for every i in [0, tasks).
//
// Why not OpenMP: torch ships its own copy of libgomp, and two copies keep two pools that spin against each other.
// Workers sleep between calls, 50 us after the last. The caller works too, so `threads` counts it. A call made while another is running
// (from a second Python thread, or nested) runs in the caller alone rather than waiting. A forked child starts with
// an empty pool, so DataLoader workers are safe.
#pragma once

#include <cstdint>
#include <functional>

namespace fastrank {

void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& body);

}  // namespace fastrank
