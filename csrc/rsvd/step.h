// How the warm steps of many matrices are spread over threads. Every cut depends on shapes only and partial sums are
// added in order, so results depend neither on the number of threads nor on the company of a matrix.
//
//   pack       V of each matrix, as times_packed() reads it
//   multiply   row ranges of the matrices, largest first: Y = A V, Z += A^T Y and Y's Gram matrix, one read of A
//   turn       each matrix: sums of the ranges, Z from its transpose, the algebra of q x q, the new V and U
//   residual   row ranges again: || A v - s u ||, the second read of A (|| A ||_F comes with the first)
//
// Products are tried as they are. Where they leave T's range (overflow, or A^T A V too small to be told from nothing),
// the largest |A_ij| is looked for and the matrix is done again, scaled by a power of two; what is not finite then has
// NaN or Inf in it, and keeps its V.
#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "common/pages.h"
#include "common/parallel.h"
#include "rsvd/limits.h"
#include "rsvd/rsvd.h"

namespace fastrank {
namespace rsvd {

// A range of rows: enough of A that its own A^T A V (as large as V) is little beside it, and at most kRanges of a matrix.
constexpr int64_t kRangeNumbers = int64_t{1} << 20, kRanges = 16;
constexpr int64_t kSketchRows = 1024;              // of the test matrix in memory at a time
constexpr int64_t kSerialNumbers = int64_t{1} << 15;  // fewer numbers of A in all are quicker in one thread
constexpr uint64_t kFillSeed = 0x5EED;             // kernels/rsvd/config.py: FILL_SEED

// What depends on T; the values and their reasons are in kernels/rsvd/config.py.
struct Precision {
  double dependent, noise, negligible, orthonormal, jacobi, smallest;
  int exponent;
};
inline Precision precision(bool is_double) {
  if (is_double) return {0x1p-10, 0x1p-50, 0x1p-53, 0x1p-46, 0x1p-50, 1e-200, 900};
  // Cosines that Jacobi leaves are those of the next V, and are to be little beside `orthonormal`.
  return {0x1p-10, 0x1p-21, 0x1p-24, 0x1p-22, 0x1p-28, 1e-40, 110};
}

inline int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

struct Problem {
  const Kernels* kernels;
  Matrix a;
  const void* v;  // [d, q] in T, as all that follows
  int64_t q, k;
  void *u, *s, *v_out, *residual, *entering, *norm;  // [n, k], [q], [d, q], [k], [q] or null, [1]
};

class Arena {
 public:
  int64_t take(int64_t bytes) {
    const int64_t at = size_;
    size_ += round_up(bytes, 64);
    return at;
  }
  void open() { data_ = static_cast<char*>(take_pages(std::max<int64_t>(size_, 64))); }
  ~Arena() {
    if (data_) give_pages(data_, std::max<int64_t>(size_, 64));
  }
  char* at(int64_t offset) const { return data_ + offset; }
  int64_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  int64_t size_ = 0;
};

// The whole of a symmetric matrix from its lower triangle.
inline void mirror(double* g, int64_t width) {
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < i; ++j) g[j * width + i] = g[i * width + j];
}

// How far the columns of X M can be from orthonormal, where M [q, q] (row stride width) was computed from G = X^T X to
// make them so: the rounding of M's making, q 2^-52 times what cancels in M^T G M. Storing X M rounds once more.
inline double departure(const double* m, const double* g, int64_t q, int64_t width) {
  double worst = 0;
  for (int64_t j = 0; j < q; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < q; ++i) sum += fabs(m[i * width + j]) * sqrt(g[i * width + i]);
    worst = std::max(worst, sum);
  }
  return static_cast<double>(q) * 0x1p-52 * worst * worst;
}

// How many columns are orthonormal to `tolerance` from the first on, by their Gram matrix.
inline int64_t orthonormal_columns(const double* g, int64_t q, int64_t width, double tolerance) {
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j <= i; ++j)
      if (!(std::fabs(g[i * width + j] - (i == j)) <= tolerance)) return i;
  return q;
}

// An orthonormal basis in place of x [d, width], whose first q columns count: see orthonormal() of kernels/rsvd/steps.py.
template <class T>
void orthonormalise(const Kernels& kernels, T* x, int64_t d, int64_t q, int64_t width) {
  constexpr int kPasses = 6;
  const Precision limits = precision(sizeof(T) == 8);
  const size_t area = static_cast<size_t>(width * width);
  std::vector<double> space(6 * area);
  double* const g = space.data();
  double* const turned = g + area;
  double* const m = turned + area;
  double* const rest = m + area;
  int64_t order[kMaxColumns];
  bool lost[kMaxColumns] = {};
  for (int64_t j = 0; j < q; ++j) order[j] = j;
  for (int pass = 0; pass < kPasses; ++pass) {
    std::fill(g, g + area, 0.0);
    kernels.gram(x, d, width, q, g);
    if (pass == 0) {  // a column that is not finite would reach the others
      bool cleared = false;
      for (int64_t j = 0; j < q; ++j)
        if (!std::isfinite(g[j * width + j])) {
          cleared = true;
          for (int64_t i = 0; i < d; ++i) x[i * width + j] = 0;
        }
      if (cleared) {
        std::fill(g, g + area, 0.0);
        kernels.gram(x, d, width, q, g);
      }
    }
    const int64_t orthonormal = orthonormal_columns(g, q, width, limits.orthonormal);
    if (orthonormal == q) return;
    mirror(g, width);
    kernels.orthonormaliser(g, q, width, limits.dependent, order, turned, rest);
    std::fill(m, m + area, 0.0);
    for (int64_t i = 0; i < q; ++i)
      for (int64_t j = 0; j < q; ++j) m[i * width + j] = turned[j * width + i];
    const double left = departure(m, g, q, width);
    // Columns that are orthonormal as they came, such as a block that goes on, stay as they are: those that no pass could
    // make more so, and of the others whole vectors.
    const int64_t exact = orthonormal_columns(g, q, width, limits.negligible);
    const int64_t kept = pass == 0 ? std::max(exact, orthonormal / kernels.lanes * kernels.lanes) : 0, turning = q - kept;
    const int64_t ld = round_up(turning, kernels.lanes * kernels.element_size / 8);  // whole vectors of double
    for (int64_t i = 0; i < q; ++i)
      for (int64_t j = 0; j < ld; ++j) rest[i * ld + j] = j < turning ? m[i * width + kept + j] : 0;
    kernels.product(x, d, width, rest, q, ld, turning, x + kept, width);
    bool now = false;
    for (int64_t j = 0; j < q; ++j)
      if (m[j * width + j] == 0) lost[j] = now = true;
    if (!now && left <= limits.orthonormal) return;
    if (!now) continue;
    std::vector<T> fill(static_cast<size_t>(kBlockRows * q));
    for (int64_t i = 0; i < d; i += kBlockRows) {
      const int64_t count = std::min(kBlockRows, d - i);
      kernels.test_matrix(i, count, q, kFillSeed, 0, Kind::gaussian, fill.data(), q);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t j = 0; j < q; ++j)
          if (m[j * width + j] == 0) x[(i + r) * width + j] = fill[static_cast<size_t>(r * q + j)];
    }
    int64_t next = 0;
    for (int last = 0; last < 2; ++last)
      for (int64_t j = 0; j < q; ++j)
        if (lost[j] == (last == 1)) order[next++] = j;
  }
}

class Steps {
 public:
  Steps(std::vector<Problem> problems, int threads) : problems_(std::move(problems)), threads_(std::max(threads, 1)) {
    double numbers = 0;
    for (const Problem& p : problems_) numbers += static_cast<double>(p.a.rows) * static_cast<double>(p.a.columns);
    if (numbers < kSerialNumbers) threads_ = 1;
    int64_t slot = 0;
    for (size_t i = 0; i < problems_.size(); ++i) {
      Arena own;
      members_.emplace_back(problems_[i], own);
      Member& m = members_.back();
      if (m.parts == 1) slot = std::max(slot, own.size());
      else m.base = arena_.take(own.size());
      order_.push_back(i);
    }
    std::stable_sort(order_.begin(), order_.end(), [&](size_t x, size_t y) { return work(x) > work(y); });
    for (int thread = 0; thread < threads_; ++thread) slots_.push_back(arena_.take(slot));
    arena_.open();
  }

  void run() {
    std::vector<size_t> whole, cut;
    for (const size_t i : order_) (members_[i].parts == 1 ? whole : cut).push_back(i);
    pass(cut);
    std::vector<size_t> again;
    for (const size_t i : cut)
      if (members_[i].out_of_range) again.push_back(i);
    parallel(again, [&](size_t i) { find_scale(i); });
    pass(again);
    ranges(cut, [&](size_t i, int64_t range) {
      is_double(i) ? residual<double>(i, range) : residual<float>(i, range);
    });
    for (const size_t i : cut) is_double(i) ? finish<double>(i) : finish<float>(i);
    // Of one range: all of it in one task, while A is in the cache, and in memory that the last one left there.
    parallel(whole, [&](size_t i) {
      members_[i].base = take_slot();
      for (bool first = true; first || members_[i].out_of_range; first = false) {
        if (!first) find_scale(i);
        is_double(i) ? pack<double>(i) : pack<float>(i);
        is_double(i) ? multiply<double>(i, 0) : multiply<float>(i, 0);
        is_double(i) ? turn<double>(i) : turn<float>(i);
      }
      is_double(i) ? residual<double>(i, 0) : residual<float>(i, 0);
      is_double(i) ? finish<double>(i) : finish<float>(i);
      give_slot(members_[i].base);
    });
  }

 private:
  struct Member {
    Member(const Problem& p, Arena& arena) {
      const int64_t n = p.a.rows, d = p.a.columns, size = p.kernels->element_size;
      width = round_up(std::max<int64_t>(p.q, 1), p.kernels->lanes);
      top_width = round_up(std::max<int64_t>(p.k, 1), p.kernels->lanes);
      rows = round_up(std::max({kRangeNumbers / std::max<int64_t>(d, 1), (n + kRanges - 1) / kRanges, int64_t{1}}),
                      kBlockRows);
      parts = std::max<int64_t>((n + rows - 1) / rows, 1);
      packed = arena.take(round_up(d, 4) * width * size);
      y = arena.take(n * width * size);
      // A vector more than whole ones: rows of a power of two's size share few places of a cache.
      ldz = round_up(d, p.kernels->lanes) + p.kernels->lanes;
      z_columns = arena.take(parts * p.q * ldz * size);
      z = arena.take(d * width * size);
      g = arena.take(parts * width * width * 8);
      top = arena.take(round_up(d, 4) * top_width * size);
      sums = arena.take(parts * top_width * 8);
      s = arena.take(width * 8);
      squares = arena.take(parts * 8);
    }
    int64_t width, top_width, rows, parts, ldz;
    int64_t base = 0;
    int64_t packed, y, z_columns, z, g, top, sums, s, squares;  // offsets from base
    double scale = 1;
    bool scaled = false, out_of_range = false, bad = false;
  };

  std::vector<Problem> problems_;
  std::vector<Member> members_;
  std::vector<size_t> order_;  // the largest first
  std::vector<int64_t> slots_;  // idle ones, of as many as threads
  std::mutex slots_mutex_;
  Arena arena_;
  int threads_;

  int64_t take_slot() {
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    const int64_t slot = slots_.back();
    slots_.pop_back();
    return slot;
  }
  void give_slot(int64_t slot) {
    const std::lock_guard<std::mutex> guard(slots_mutex_);
    slots_.push_back(slot);
  }

  bool is_double(size_t i) const { return problems_[i].kernels->element_size == 8; }
  int64_t work(size_t i) const { return problems_[i].a.rows * problems_[i].a.columns * members_[i].width; }
  template <class T>
  T* at(const Member& m, int64_t offset) const {
    return reinterpret_cast<T*>(arena_.at(m.base + offset));
  }

  template <class Body>
  void parallel(const std::vector<size_t>& which, const Body& body) {
    parallel_for(static_cast<int64_t>(which.size()), threads_,
                 [&](int64_t task) { body(which[static_cast<size_t>(task)]); });
  }

  template <class Body>
  void ranges(const std::vector<size_t>& which, const Body& body) {
    std::vector<std::pair<size_t, int64_t>> tasks;
    for (const size_t i : which)
      for (int64_t range = 0; range < members_[i].parts; ++range) tasks.emplace_back(i, range);
    parallel_for(static_cast<int64_t>(tasks.size()), threads_, [&](int64_t task) {
      const auto& [i, range] = tasks[static_cast<size_t>(task)];
      body(i, range);
    });
  }

  void pass(const std::vector<size_t>& which) {
    parallel(which, [&](size_t i) { is_double(i) ? pack<double>(i) : pack<float>(i); });
    ranges(which, [&](size_t i, int64_t range) {
      is_double(i) ? multiply<double>(i, range) : multiply<float>(i, range);
    });
    parallel(which, [&](size_t i) { is_double(i) ? turn<double>(i) : turn<float>(i); });
  }

  template <class T>
  void pack(size_t i) {
    const Problem& p = problems_[i];
    const Member& m = members_[i];
    p.kernels->pack(p.v, p.q, p.a.columns, p.q, m.scale, at<T>(m, m.packed));
  }

  void find_scale(size_t i) {
    const Problem& p = problems_[i];
    Member& m = members_[i];
    const double largest = p.kernels->largest(p.a, 0, p.a.rows);
    const int limit = precision(is_double(i)).exponent;
    int exponent = 0;
    if (largest > 0 && std::isfinite(largest)) frexp(largest, &exponent);
    m.scale = ldexp(1.0, -std::clamp(exponent, -limit, limit));
    m.scaled = true;
  }

  // Blocks of rows of a range in T: body(rows of A, their stride, first row, count).
  template <class T, class Body>
  void blocks(size_t i, int64_t range, const Body& body) {
    const Problem& p = problems_[i];
    const Member& m = members_[i];
    const bool direct = p.a.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
    static thread_local std::vector<T> wide;
    if (!direct) wide.resize(static_cast<size_t>(kBlockRows * p.a.columns));
    const int64_t last = std::min(p.a.rows, (range + 1) * m.rows);
    for (int64_t row = range * m.rows; row < last; row += kBlockRows) {
      const int64_t count = std::min(kBlockRows, last - row);
      if (!direct) p.kernels->widen(p.a, row, count, wide.data());
      const T* const a = direct ? static_cast<const T*>(p.a.data) + row * p.a.stride : wide.data();
      body(a, direct ? p.a.stride : p.a.columns, row, count);
    }
  }

  template <class T>
  void multiply(size_t i, int64_t range) {
    const Problem& p = problems_[i];
    const Member& m = members_[i];
    const int64_t d = p.a.columns, area = m.width * m.width;
    T* const z = at<T>(m, m.z_columns) + range * p.q * m.ldz;
    double* const g = at<double>(m, m.g) + range * area;
    std::fill(g, g + area, 0.0);
    const T scale = static_cast<T>(m.scale);
    double& squares = at<double>(m, m.squares)[range];
    squares = 0;
    T scaled[kBlockRows * kMaxWidth];
    bool add = false;
    blocks<T>(i, range, [&](const T* a, int64_t lda, int64_t row, int64_t count) {
      T* const y = at<T>(m, m.y) + row * m.width;
      p.kernels->times_packed(a, lda, count, d, at<T>(m, m.packed), p.q, y, m.width);
      p.kernels->gram(y, count, m.width, p.q, g);
      squares += p.kernels->squares(a, lda, count, d, m.scale);
      const T* right = y;
      if (scale != 1) {
        for (int64_t e = 0; e < count * m.width; ++e) scaled[e] = y[e] * scale;
        right = scaled;
      }
      p.kernels->turned_columns(a, lda, count, d, right, m.width, p.q, z, m.ldz, add);
      add = true;
    });
    if (!add) std::fill_n(z, p.q * m.ldz, T(0));
  }

  template <class T>
  void turn(size_t i) {
    const Problem& p = problems_[i];
    Member& m = members_[i];
    const Kernels& kernels = *p.kernels;
    const Precision limits = precision(sizeof(T) == 8);
    const int64_t n = p.a.rows, d = p.a.columns, q = p.q, w = m.width, area = w * w;
    std::vector<double> space(static_cast<size_t>(9 * area + 4 * w));
    double* const g = at<double>(m, m.g);
    double* const gz = space.data();
    double* const turned = gz + area;
    double* const vectors = turned + area;
    double* const mixed = vectors + area;
    double* const right = mixed + area;
    double* const other = right + area;
    double* const rest = other + area;  // 2 areas and 2 rows
    T* const columns = at<T>(m, m.z_columns);
    T* const z = at<T>(m, m.z);
    if (m.parts > 1) {
      kernels.sum(columns, m.parts, q * m.ldz, q * m.ldz, columns);
      for (int64_t part = 1; part < m.parts; ++part)
        for (int64_t e = 0; e < area; ++e) g[e] += g[part * area + e];
    }
    kernels.upright(columns, m.ldz, d, q, z, w);
    kernels.gram(z, d, w, q, gz);
    mirror(g, w);
    mirror(gz, w);
    double largest = 0, sum = 0;
    for (int64_t j = 0; j < q; ++j) largest = std::max(largest, gz[j * w + j]);
    for (int64_t e = 0; e < area; ++e) sum += gz[e] + g[e];
    for (int64_t part = 0; part < m.parts; ++part) sum += at<double>(m, m.squares)[part];
    const bool finite = std::isfinite(sum);
    m.out_of_range = !m.scaled && !(finite && largest >= limits.smallest);
    if (m.out_of_range) return;
    if ((m.bad = !finite)) return;

    if (p.entering) entering<T>(i, g, space.data());

    // T makes Q = Y T orthonormal; columns of Y that are rounding alone, or depend on others, have no part in it.
    double longest = 0;
    for (int64_t j = 0; j < q; ++j) longest = std::max(longest, g[j * w + j]);
    for (int64_t j = 0; j < q; ++j)
      if (!(g[j * w + j] > limits.noise * limits.noise * longest))
        for (int64_t b = 0; b < q; ++b) g[j * w + b] = g[b * w + j] = 0;
    kernels.orthonormaliser(g, q, w, limits.dependent, nullptr, turned, rest);
    kernels.congruence(turned, gz, q, w, other, rest);
    double* const s = at<double>(m, m.s);
    kernels.eigen(other, q, w, limits.jacobi, s, vectors, rest);
    std::fill(mixed, mixed + area, 0.0);
    kernels.multiply(vectors, turned, q, w, mixed);
    T* const s_out = static_cast<T*>(p.s);
    for (int64_t j = 0; j < q; ++j) {
      if (!(s[j] > limits.negligible * s[0])) s[j] = 0;
      s_out[j] = static_cast<T>(s[j] / m.scale);
    }
    std::fill(right, right + area, 0.0);
    for (int64_t a = 0; a < q; ++a)
      for (int64_t b = 0; b < q; ++b) right[a * w + b] = s[b] > 0 ? mixed[b * w + a] : 0;
    if (p.k > 0) {
      kernels.product(at<T>(m, m.y), n, w, right, q, w, p.k, p.u, p.k);
    }
    for (int64_t a = 0; a < q; ++a)
      for (int64_t b = 0; b < q; ++b) right[a * w + b] = s[b] > 0 ? right[a * w + b] / s[b] : 0;
    T* const v = static_cast<T*>(p.v_out);
    // Orthonormal by construction, but for columns without a value and where much cancelled.
    if (s[q - 1] > 0 && departure(right, gz, q, w) <= limits.orthonormal) {
      kernels.product(z, d, w, right, q, w, q, v, q);
    } else {
      kernels.product(z, d, w, right, q, w, w, z, w);
      orthonormalise(kernels, z, d, q, w);
      kernels.copy(z, w, d, q, v, q);
    }
    if (p.k > 0) kernels.pack(v, q, d, p.k, m.scale, at<T>(m, m.top));
  }

  // The entering block's own Ritz pairs: theta^2 x = G x, residual Z x - theta^2 V x. `space` as in turn().
  template <class T>
  void entering(size_t i, const double* g, double* space) {
    const Problem& p = problems_[i];
    const Member& m = members_[i];
    const Precision limits = precision(sizeof(T) == 8);
    const int64_t q = p.q, w = m.width, area = w * w;
    double* const vectors = space + area;
    double* const right = vectors + area;
    double* const other = right + area;
    double* const rest = other + area;
    double* const roots = rest + 2 * area + 2 * w;
    p.kernels->eigen(g, q, w, limits.jacobi, roots, vectors, rest);
    for (int64_t a = 0; a < q; ++a)
      for (int64_t b = 0; b < w; ++b) {
        right[a * w + b] = b < q ? vectors[b * w + a] : 0;
        other[a * w + b] = b < q ? vectors[b * w + a] * roots[b] * roots[b] : 0;
      }
    double sums[kMaxWidth] = {};
    p.kernels->difference(at<T>(m, m.z), p.v, p.a.columns, w, q, right, other, sums);
    T* const out = static_cast<T*>(p.entering);
    for (int64_t j = 0; j < q; ++j)
      out[j] = static_cast<T>(roots[j] > limits.noise * roots[0] ? sqrt(sums[j]) / roots[j] / m.scale : 0.0);
  }

  template <class T>
  void residual(size_t i, int64_t range) {
    const Problem& p = problems_[i];
    const Member& m = members_[i];
    if (m.bad || p.k == 0) return;
    double* const sums = at<double>(m, m.sums) + range * m.top_width;
    std::fill(sums, sums + m.top_width, 0.0);
    T found[kBlockRows * kMaxWidth];
    blocks<T>(i, range, [&](const T* a, int64_t lda, int64_t row, int64_t count) {
      p.kernels->times_packed(a, lda, count, p.a.columns, at<T>(m, m.top), p.k, found, m.top_width);
      p.kernels->residual(found, m.top_width, static_cast<const T*>(p.u) + row * p.k, at<double>(m, m.s), count, p.k,
                          sums);
    });
  }

  template <class T>
  void finish(size_t i) {
    const Problem& p = problems_[i];
    const Member& m = members_[i];
    T* const out = static_cast<T*>(p.residual);
    if (m.bad) {
      const T nan = std::numeric_limits<T>::quiet_NaN();
      std::fill_n(static_cast<T*>(p.u), p.a.rows * p.k, nan);
      std::fill_n(static_cast<T*>(p.s), p.q, nan);
      std::fill_n(out, p.k, nan);
      if (p.entering) std::fill_n(static_cast<T*>(p.entering), p.q, nan);
      *static_cast<T*>(p.norm) = nan;
      std::copy_n(static_cast<const T*>(p.v), p.a.columns * p.q, static_cast<T*>(p.v_out));
      return;
    }
    double squares = 0;
    for (int64_t part = 0; part < m.parts; ++part) squares += at<double>(m, m.squares)[part];
    *static_cast<T*>(p.norm) = static_cast<T>(sqrt(squares) / m.scale);
    const double* const sums = at<double>(m, m.sums);
    for (int64_t j = 0; j < p.k; ++j) {
      double total = 0;
      for (int64_t part = 0; part < m.parts; ++part) total += sums[part * m.top_width + j];
      out[j] = static_cast<T>(sqrt(total) / m.scale);
    }
  }
};

struct Block {
  const Kernels* kernels;
  const void* x;  // [d, q - fresh], rows `stride` apart
  int64_t stride;
  int64_t d, q;  // of the result
  void* out;
  int64_t fresh;  // columns of a test matrix behind those of x
  uint64_t seed;
  uint32_t stream;
};

template <class T>
void orthonormal_one(const Block& block) {
  const int64_t width = round_up(std::max<int64_t>(block.q, 1), block.kernels->lanes);
  Arena arena;
  const int64_t offset = arena.take(block.d * width * static_cast<int64_t>(sizeof(T)));
  arena.open();
  T* const x = reinterpret_cast<T*>(arena.at(offset));
  const int64_t given = block.q - block.fresh;
  block.kernels->copy(block.x, block.stride, block.d, given, x, width);
  block.kernels->test_matrix(0, block.d, block.fresh, block.seed, block.stream, Kind::gaussian, x + given, width);
  orthonormalise(*block.kernels, x, block.d, block.q, width);
  block.kernels->copy(x, width, block.d, block.q, block.out, block.q);
}

inline void orthonormal_many(std::vector<Block>& blocks, int threads) {
  std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) { return a.d * a.q > b.d * b.q; });
  parallel_for(static_cast<int64_t>(blocks.size()), threads, [&](int64_t task) {
    const Block& block = blocks[static_cast<size_t>(task)];
    block.kernels->element_size == 8 ? orthonormal_one<double>(block) : orthonormal_one<float>(block);
  });
}

// y [n, q] = A times the test matrix [d, q], kSketchRows rows of it at a time.
template <class T>
void sketch(const Kernels& kernels, const Matrix& a, int64_t q, uint64_t seed, uint32_t stream, Kind kind, void* y,
            int threads) {
  const int64_t n = a.rows, d = a.columns, size = static_cast<int64_t>(sizeof(T));
  // Columns in panels that the kernels' stack arrays hold.
  const int64_t width = round_up(q, kernels.lanes), slab = std::min(d, kSketchRows);
  const bool direct = a.dtype == (size == 8 ? DType::f64 : DType::f32);
  constexpr int64_t bytes[] = {8, 4, 2, 2};
  Arena arena;
  const int64_t block_at = arena.take(slab * width * size), found_at = arena.take(n * width * size);
  arena.open();
  T* const block = reinterpret_cast<T*>(arena.at(block_at));
  T* const found = reinterpret_cast<T*>(arena.at(found_at));
  std::fill(block, block + slab * width, T(0));
  for (int64_t first = 0; first < d; first += slab) {
    const int64_t rows = std::min(slab, d - first);
    parallel_for((rows + kBlockRows - 1) / kBlockRows, threads, [&](int64_t task) {
      const int64_t row = task * kBlockRows;
      kernels.test_matrix(first + row, std::min(kBlockRows, rows - row), q, seed, stream, kind, block + row * width,
                          width);
    });
    Matrix part = a;
    part.data = static_cast<const char*>(a.data) + first * bytes[static_cast<int>(a.dtype)];
    part.columns = rows;
    parallel_for((n + kBlockRows - 1) / kBlockRows, threads, [&](int64_t task) {
      const int64_t row = task * kBlockRows, count = std::min(kBlockRows, n - row);
      static thread_local std::vector<T> wide;
      const T* data = static_cast<const T*>(part.data) + row * a.stride;
      if (!direct) {
        wide.resize(static_cast<size_t>(kBlockRows * slab));
        kernels.widen(part, row, count, wide.data());
        data = wide.data();
      }
      kernels.times(data, direct ? a.stride : rows, count, rows, block, width, found + row * width, first > 0);
    });
  }
  T* const out = static_cast<T*>(y);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < q; ++j) out[i * q + j] = d ? found[i * width + j] : T(0);
}

}  // namespace rsvd
}  // namespace fastrank
