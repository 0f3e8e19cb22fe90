// Spreads the matrices of one call over threads: the largest first, one thread each, so that a result does not depend
// on its company.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/parallel.h"
#include "common/workspace.h"
#include "small_eigh/small_eigh.h"

namespace fastrank {
namespace small_eigh {

constexpr double kSerialWork = 2e4;  // cubes of sizes: some 50 us, which waking a thread takes

// body(index, scratch) for every matrix, of sizes m[], with `needs(m)` doubles of scratch.
template <class Needs, class Body>
void each(const std::vector<int64_t>& m, int threads, const Needs& needs, const Body& body) {
  std::vector<int64_t> order(m.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return m[a] > m[b]; });
  double work = 0;
  for (int64_t size : m) work += static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
  if (work < kSerialWork) threads = 1;
  // Small ones in runs: a task costs about as much as a matrix of a few rows.
  constexpr int64_t small = 24, run = 8;
  int64_t first_small = 0;
  while (first_small < static_cast<int64_t>(order.size()) && m[order[first_small]] > small) ++first_small;
  const int64_t rest = static_cast<int64_t>(order.size()) - first_small;
  parallel_for(first_small + (rest + run - 1) / run, threads, [&](int64_t task) {
    static thread_local Workspace space;
    const int64_t begin = task < first_small ? task : first_small + (task - first_small) * run;
    const int64_t end = task < first_small ? task + 1 : std::min<int64_t>(begin + run, order.size());
    for (int64_t i = begin; i < end; ++i)
      body(order[i], static_cast<double*>(space.get(needs(m[order[i]]) * static_cast<int64_t>(sizeof(double)))));
    space.trim();
  });
}

}  // namespace small_eigh
}  // namespace fastrank
