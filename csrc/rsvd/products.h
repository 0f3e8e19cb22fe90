// A X or A^T X in double, of matrices A of any type and blocks X of a few columns. Ranges of rows over the threads, which
// are widened in the cache; cuts depend on shapes only, and partial sums are added in order.
#pragma once

#include <string.h>

#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "rsvd/rsvd.h"
#include "rsvd/step.h"

namespace fastrank {
namespace rsvd {

struct Product {
  Matrix a;         // [n, d]
  bool transposed;
  const double* x;  // [d, q], of the transpose [n, q]
  int64_t q;
  double* y;        // [n, q], of the transpose [d, q]
};

inline void products(const Kernels& kernels, const std::vector<Product>& items, int threads) {
  struct Member {
    int64_t width, rows, parts, packed, found;  // offsets of x, padded, and of A X or the parts of A^T X
  };
  struct Range {
    size_t item;
    int64_t part;
  };
  Arena arena;
  std::vector<Member> members;
  std::vector<Range> ranges;
  for (size_t i = 0; i < items.size(); ++i) {
    const Product& p = items[i];
    const int64_t n = p.a.rows, d = p.a.columns, width = round_up(std::max<int64_t>(p.q, 1), kernels.lanes);
    const int64_t rows = round_up(
        std::max({kRangeNumbers / 4 / std::max<int64_t>(d, 1), (n + kRanges - 1) / kRanges, int64_t{1}}), kBlockRows);
    const int64_t parts = (n + rows - 1) / rows;
    members.push_back({width, rows, parts, arena.take((p.transposed ? n : d) * width * 8),
                       arena.take((p.transposed ? std::max<int64_t>(parts, 1) * d : n) * width * 8)});
    for (int64_t part = 0; part < parts; ++part) ranges.push_back({i, part});
  }
  arena.open();
  const auto at = [&](int64_t offset) { return reinterpret_cast<double*>(arena.at(offset)); };
  parallel_for(static_cast<int64_t>(items.size()), threads, [&](int64_t i) {
    const Product& p = items[static_cast<size_t>(i)];
    const Member& m = members[static_cast<size_t>(i)];
    kernels.copy(p.x, p.q, p.transposed ? p.a.rows : p.a.columns, p.q, at(m.packed), m.width);
  });
  parallel_for(static_cast<int64_t>(ranges.size()), threads, [&](int64_t task) {
    const auto& [i, part] = ranges[static_cast<size_t>(task)];
    const Product& p = items[i];
    const Member& m = members[i];
    const int64_t d = p.a.columns, last = std::min(p.a.rows, (part + 1) * m.rows);
    const bool floats = p.a.dtype == DType::f32, direct = floats || p.a.dtype == DType::f64;
    static thread_local std::vector<double> wide;
    if (!direct) wide.resize(static_cast<size_t>(kBlockRows * d));
    double* const z = at(m.found) + part * d * m.width;
    if (p.transposed) std::fill(z, z + d * m.width, 0.0);
    for (int64_t row = part * m.rows; row < last; row += kBlockRows) {
      const int64_t count = std::min(kBlockRows, last - row), lda = direct ? p.a.stride : d;
      const void* a = wide.data();
      if (direct) a = static_cast<const char*>(p.a.data) + row * lda * (floats ? 4 : 8);
      else kernels.widen(p.a, row, count, wide.data());
      const double* const x = at(m.packed);
      if (p.transposed) (floats ? kernels.turned_floats : kernels.turned)(a, lda, count, d, x + row * m.width, m.width, z);
      else (floats ? kernels.times_floats : kernels.times)(a, lda, count, d, x, m.width, at(m.found) + row * m.width, false);
    }
  });
  parallel_for(static_cast<int64_t>(items.size()), threads, [&](int64_t i) {
    const Product& p = items[static_cast<size_t>(i)];
    const Member& m = members[static_cast<size_t>(i)];
    const int64_t rows = p.transposed ? p.a.columns : p.a.rows;
    double* const found = at(m.found);
    if (p.transposed && m.parts == 0) std::fill(found, found + rows * m.width, 0.0);
    if (p.transposed && m.parts > 1) kernels.sum(found, m.parts, rows * m.width, rows * m.width, found);
    kernels.copy(found, m.width, rows, p.q, p.y, p.q);
  });
}

}  // namespace rsvd
}  // namespace fastrank
