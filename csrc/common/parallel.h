// A small persistent thread pool: parallel_for(tasks, threads, body) runs body(i) for every i in [0, tasks).
//
// Its threads are its own where OMP_WAIT_POLICY=PASSIVE lets torch's sleep: they sleep 50 us after the last call, and a
// caller does not wait for one that wakes too late. Else they are those of torch's OpenMP, which spin between torch's
// parallel regions and would keep the cores from ours (a tracked step of a ResNet-18 took 10 % longer). Never those of an
// OpenMP of our own: two copies of libgomp spin against each other.
//
// The caller works too, so `threads` counts it. A call made while another is running (from a second Python thread, or
// nested) runs in the caller alone rather than waiting. A forked child starts with an empty pool of its own, so
// DataLoader workers are safe. What a body throws reaches the caller.
#pragma once

#include <cstdint>
#include <functional>

namespace fastrank {

void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t)>& body);

}  // namespace fastrank
