// How far many matrices are from others, in Frobenius norm: ranges of rows over the threads, added up in their order, so
// that results depend neither on the number of threads nor on the company of a pair.
#pragma once

#include <math.h>

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "rsvd/rsvd.h"

namespace fastrank {
namespace rsvd {

struct Pair {
  const Kernels* kernels;
  const void *x, *y;  // [rows, columns] in T
  int64_t rows, columns, ldx, ldy;
  double* found;  // ||x - y||, ||x||
};

inline void distances(const std::vector<Pair>& pairs, int threads) {
  constexpr int64_t kNumbers = int64_t{1} << 18;  // of a range: a megabyte of float32
  struct Range {
    const Pair* pair;
    int64_t first, last;
    double found[2];
  };
  std::vector<Range> ranges;
  for (const Pair& pair : pairs) {
    const int64_t rows = std::max<int64_t>(1, kNumbers / std::max<int64_t>(pair.columns, 1));
    for (int64_t first = 0; first < pair.rows; first += rows)
      ranges.push_back({&pair, first, std::min(pair.rows, first + rows), {}});
    pair.found[0] = pair.found[1] = 0;
  }
  parallel_for(static_cast<int64_t>(ranges.size()), threads, [&](int64_t task) {
    Range& range = ranges[static_cast<size_t>(task)];
    const Pair& p = *range.pair;
    const auto row = [&](const void* data, int64_t ld) {
      return static_cast<const char*>(data) + range.first * ld * p.kernels->element_size;
    };
    p.kernels->distance(row(p.x, p.ldx), p.ldx, row(p.y, p.ldy), p.ldy, range.last - range.first, p.columns,
                        range.found);
  });
  for (const Range& range : ranges)
    for (int i = 0; i < 2; ++i) range.pair->found[i] += range.found[i];
  for (const Pair& pair : pairs)
    for (int i = 0; i < 2; ++i) pair.found[i] = sqrt(pair.found[i]);
}

}  // namespace rsvd
}  // namespace fastrank
