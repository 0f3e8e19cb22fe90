// A row across the lanes of vectors: rows whose classes are neighbours in memory, and more than a few.
//
// Forward reads a row twice (maximum; exponentials), backward once: between the two reads the row lies in cache, so the
// memory sees N*C elements forward and 2*N*C backward. The backward pass computes the exponentials again: no slower
// than reading a stored gradient and scaling it. A forward pass that writes the gradient for grad_loss = 1 on its way,
// though, replaces both where that is the grad_loss that comes; where another comes, nothing was lost.
//
// Rows go through in blocks, so that what a row costs apart from its classes (row.h) is shared; while one block is
// computed, the next is fetched.
#pragma once

#include "tempered_ce/row.h"
#include "tempered_ce/stores.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

template <class S> struct Scan { Acc<S> maximum, z, z2, above; };

// A row's maximum; with STATS its sums, and how many logits are above `ranked`. Most of this pass is waiting for
// memory, so that the sums cost less here than beside the exponentials.
template <bool STATS, class S> Scan<S> scan(const S* row, int64_t c, Acc<S> ranked) {
  using A = Acc<S>;
  using V = Vec<A>;
  constexpr int width = Lanes<A>::width, chains = 4;  // chains hide the latency
  const A lowest = -__builtin_huge_val();
  V m[chains], z[chains] = {}, z2[chains] = {};
  Int<A> above[chains] = {};
  for (V& chain : m) chain = splat(lowest);
  const auto add = [&](int i, V v) __attribute__((always_inline)) {
    m[i] = v > m[i] ? v : m[i];
    if (!STATS) return;
    z[i] += v;
    z2[i] += v * v;
    above[i] -= v > ranked;
  };
  int64_t j = 0;
  for (; j + chains * width <= c; j += chains * width)
    for (int i = 0; i < chains; ++i) add(i, load(row + j + i * width));
  for (; j + width <= c; j += width) add(0, load(row + j));
  if (j < c) {
    const int count = static_cast<int>(c - j);
    const V v = load_some(row + j, count, lowest);
    m[0] = v > m[0] ? v : m[0];
    if (STATS) {
      const V kept = keep<A>(iota<A>() < count, v);
      z[1] += kept;
      z2[1] += kept * kept;
      above[1] -= v > ranked;
    }
  }
  for (int i = 1; i < chains; ++i) m[0] = m[i] > m[0] ? m[i] : m[0];
  const auto all = [](const V(&chain)[chains]) { return sum<A>((chain[0] + chain[1]) + (chain[2] + chain[3])); };
  Scan<S> found{largest<A>(m[0]), 0, 0, 0};
  if (!STATS) return found;
  found.z = all(z);
  found.z2 = all(z2);
  found.above = sum<A>(__builtin_convertvector((above[0] + above[1]) + (above[2] + above[3]), V));
  return found;
}

// Class of the largest of neighbouring probabilities, as `most_probable` finds it.
template <class A> int64_t most_probable_near(const A* q, int64_t c) {
  const A best = scan<false>(q, c, A(0)).maximum;
  int64_t j = 0;
  for (; j + Lanes<A>::width <= c && !any<A>(load(q + j) == best); j += Lanes<A>::width) {
  }
  while (j < c && q[j] != best) ++j;
  return j < c ? j : 0;
}

// body(j, count) over whole vectors and the tail.
template <class A, class Body> FASTRANK_INLINE void over_vectors(int64_t c, Body body) {
  constexpr int width = Lanes<A>::width;
  int64_t j = 0;
  for (; j + width <= c; j += width) body(j, width);
  if (j < c) body(j, static_cast<int>(c - j));
}

// The same, the vectors with one of the two labels and the tail told apart: `plain(j)` gets whole vectors without,
// `special(j, count)` the others. A label of -1 is in none.
template <class A, class Plain, class Special>
FASTRANK_INLINE void around_labels(int64_t c, const int64_t (&labels)[2], Plain plain, Special special) {
  constexpr int width = Lanes<A>::width;
  const int64_t whole = c / width * width;
  const auto start = [&](int64_t y) { return y < 0 || y >= whole ? whole : y / width * width; };
  const int64_t first = start(labels[0]), second = start(labels[1]);
  const int64_t stops[2] = {first < second ? first : second, first < second ? second : first};
  int64_t j = 0;
  for (const int64_t stop : stops) {
    for (; j < stop; j += width) plain(j);
    if (j == stop && j < whole) special(j, width), j += width;
  }
  for (; j < whole; j += width) plain(j);
  if (whole < c) special(whole, static_cast<int>(c - whole));
}

// t_j of classes j .. j + count of a row of probabilities.
template <class A>
FASTRANK_INLINE Vec<A> target_mass(const Shared<A>& s, const A* q, int64_t j, int count) {
  const Vec<A> t = load_up_to(q + j, count) * s.hard + s.soft;
  const Vec<A> weighted = s.weight ? t * load_up_to(s.weight + j, count) : t;
  return count == Lanes<A>::width ? weighted : keep<A>(iota<A>() < count, weighted);
}

// What the pass over a row's exponentials needs to know of it.
template <class S> struct Row {
  using A = Acc<S>;
  const CrossEntropy& op;
  const Shared<A>& s;
  const S *z, *next;  // the row to fetch meanwhile
  S* grad;            // where its gradient goes by way of the caches, or null
  A m, inverse;
  int64_t labels[2];
  bool moments;
};

// Sums of a row, one of each lane.
template <class A> struct LaneSums {
  Vec<A> exponentials{}, moment{}, mass{}, weighted{};

  FASTRANK_INLINE void add(Vec<A> e, Vec<A> x, bool moments) {
    exponentials += e;
    if (moments) moment += e * bounded<A>(x);
  }
};

// FULL: with moments or label smoothing. KEEP: leaves the exponentials in `kept`.
template <bool FULL, bool KEEP, class S>
LaneSums<Acc<S>> sum_row(const Row<S>& row, Acc<S>* kept) {
  using A = Acc<S>;
  using V = Vec<A>;
  const CrossEntropy& op = row.op;
  const Shared<A>& s = row.s;
  const S* const z = row.z;
  const A m = row.m, inverse = row.inverse;
  LaneSums<A> sums;
  around_labels<A>(
      op.c, row.labels,
      [&](int64_t j) __attribute__((always_inline)) {
        fetch(row.next + j);
        if (KEEP && row.grad) fetch_to_write(row.grad + j);
        const V v = load(z + j), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        sums.add(e, x, FULL);
        if (KEEP) store(kept + j, e);
        if (FULL && s.soft != 0) sums.weighted += s.weight ? load(s.weight + j) * x : x;
      },
      [&](int64_t j, int count) __attribute__((always_inline)) {
        const Int<A> lane = iota<A>(), inside = lane < count;
        const auto lane_of = [&](int64_t y) { return y >= j && y - j < count ? static_cast<int>(y - j) : -1; };
        const V v = load_some(z + j, count, m), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        sums.add(keep<A>(inside & (lane != lane_of(row.labels[0])) & (lane != lane_of(row.labels[1])), e), x, FULL);
        if (KEEP) store_some(kept + j, e, count);
        if (FULL && s.soft != 0)
          sums.weighted += keep<A>(inside, s.weight ? load_some(s.weight + j, count, A(0)) * x : x);
      });
  return sums;
}

template <bool KEEP, class S>
LaneSums<Acc<S>> sum_soft_row(const Row<S>& row, const Acc<S>* q, Acc<S>* kept) {
  using A = Acc<S>;
  using V = Vec<A>;
  const CrossEntropy& op = row.op;
  const A m = row.m, inverse = row.inverse;
  LaneSums<A> sums;
  over_vectors<A>(op.c, [&](int64_t j, int count) __attribute__((always_inline)) {
    fetch(row.next + j);
    if (KEEP && row.grad) fetch_to_write(row.grad + j);
    const Int<A> inside = iota<A>() < count;
    const V v = load_up_to(row.z + j, count, m), x = (v - m) * inverse, e = exp_of_nonpositive(x);
    const V t = target_mass(row.s, q, j, count);
    sums.add(keep<A>(inside, e), x, row.moments);
    sums.mass += t;
    sums.weighted += t * x;
    if (KEEP) store_up_to(kept + j, e, count);
  });
  return sums;
}

// The gradient of the row in `lane` from exponentials(j, count); zero where the row is ignored. One function for both
// passes, so that they leave the same bits.
template <class A, class G, class E>
FASTRANK_INLINE void write_gradient(const Rows<A>& rows, const Gradient<A>& gradient, int lane, const A* q, G* grad,
                                    E exponentials) {
  const CrossEntropy& op = rows.op;
  const Shared<A>& s = rows.s;
  const A each = gradient.each[lane], soft = gradient.soft[lane];
  const auto write = [&](auto less) __attribute__((always_inline)) {
    const auto value = [&](int64_t j, int count)
                           __attribute__((always_inline)) { return less(exponentials(j, count) * each, j, count); };
    if (op.stream)
      stream_row(grad, op.c, value);
    else
      over_vectors<A>(op.c, [&](int64_t j, int count)
                                __attribute__((always_inline)) { store_up_to(grad + j, value(j, count), count); });
  };
  if (q)
    return write([&](Vec<A> v, int64_t j, int count)
                     __attribute__((always_inline)) { return rounded(v) - soft * target_mass(s, q, j, count); });
  if (rows.label[0][lane] < 0) {
    for (int64_t j = 0; j < op.c; ++j) grad[j] = G{};
    return;
  }
  if (soft == 0)
    write([&](Vec<A> v, int64_t, int) __attribute__((always_inline)) { return v; });
  else if (!s.weight)
    write([&](Vec<A> v, int64_t, int) __attribute__((always_inline)) { return v - soft; });
  else
    write([&](Vec<A> v, int64_t j, int count)
              __attribute__((always_inline)) { return rounded(v) - soft * load_up_to(s.weight + j, count); });
  for (int i = 0; i < 2; ++i)
    if (rows.label[i][lane] >= 0) grad[rows.label[i][lane]] = narrow<G>(gradient.at[i][lane]);
}

template <class S> Rows<Acc<S>> begin_block(const CrossEntropy& op, const Shared<Acc<S>>& s, int64_t r, int64_t end) {
  const int64_t last = r + op.wide_rows();
  return Rows<Acc<S>>(op, s, r, last < end ? last : end);
}

template <class S> void forward_wide(const CrossEntropy& op, int64_t begin, int64_t end, Acc<S>* kept) {
  using A = Acc<S>;
  constexpr int width = Lanes<A>::width;
  const Shared<A> s(op);
  const bool full = op.stats || op.slope || op.smoothing != 0, keep = op.grad != nullptr;
  for (int64_t r = begin; r < end;) {
    Rows<A> rows = begin_block<S>(op, s, r, end);
    const S* z[width];
    const A* q[width] = {};
    for (int lane = 0; lane < rows.count; ++lane) {
      z[lane] = logits_of<S>(op, r + lane);
      if (op.probabilities) q[lane] = probabilities_of<A>(op, r + lane);
    }
    rows.look_up([&](int lane, int64_t y) { return widen(z[lane][y]); });
    A maxima[width] = {};
    Sums<A> sums;
    for (int lane = 0; lane < rows.count; ++lane) {
      if (!op.stats) {
        maxima[lane] = scan<false>(z[lane], op.c, A(0)).maximum;
        continue;
      }
      const A ranked = q[lane] ? widen(z[lane][most_probable_near(q[lane], op.c)]) : rows.ranked[lane];
      const Scan<S> found = scan<true>(z[lane], op.c, ranked);
      maxima[lane] = found.maximum;
      sums.z[lane] = found.z;
      sums.z2[lane] = found.z2;
      sums.above[lane] = found.above;
    }
    rows.set_maximum(load(maxima));
    for (int lane = 0; lane < rows.count; ++lane) {
      const int64_t ahead = r + lane + rows.count;
      const Row<S> row{op, s, z[lane], ahead < op.row_count() ? logits_of<S>(op, ahead) : z[lane],
                       keep && !op.stream ? grad_of<S>(op, r + lane) : nullptr, rows.m[lane], rows.inverse[lane],
                       {rows.label[0][lane], rows.label[1][lane]}, full};
      A* const mine = kept + lane * op.c;
      const LaneSums<A> found = q[lane] ? keep ? sum_soft_row<true>(row, q[lane], mine) : sum_soft_row<false>(row, q[lane], mine)
                                : full  ? keep ? sum_row<true, true>(row, mine) : sum_row<true, false>(row, mine)
                                : keep  ? sum_row<false, true>(row, mine) : sum_row<false, false>(row, mine);
      sums.exponentials[lane] = sum<A>(found.exponentials);
      if (!full && !q[lane]) continue;
      sums.moment[lane] = sum<A>(found.moment);
      sums.mass[lane] = sum<A>(found.mass);
      sums.weighted[lane] = sum<A>(found.weighted);
    }
    const Gradient<A> gradient = rows.finish(sums);
    for (int lane = 0; keep && lane < rows.count; ++lane)
      write_gradient(rows, gradient, lane, q[lane], grad_of<S>(op, r + lane),
                     [&](int64_t j, int count) __attribute__((always_inline)) {
                       return load_up_to(kept + lane * op.c + j, count);
                     });
    r += rows.count;
  }
  if (op.stream) fence();
}

template <class S> void backward_wide(const CrossEntropy& op, int64_t begin, int64_t end) {
  using A = Acc<S>;
  const Shared<A> s(op);
  for (int64_t r = begin; r < end;) {
    Rows<A> rows = begin_block<S>(op, s, r, end);
    const A* const maxima = static_cast<const A*>(op.rows) + kMax * op.row_count() + r;
    rows.look_up([&](int lane, int64_t y) { return widen(logits_of<S>(op, r + lane)[y]); });
    rows.set_maximum(load_up_to(maxima, rows.count));
    const Gradient<A> gradient = rows.gradient();
    for (int lane = 0; lane < rows.count; ++lane) {
      const S* const z = logits_of<S>(op, r + lane);
      const A m = rows.m[lane], inverse = rows.inverse[lane];
      write_gradient(rows, gradient, lane, op.probabilities ? probabilities_of<A>(op, r + lane) : nullptr,
                     grad_of<S>(op, r + lane), [&](int64_t j, int count) __attribute__((always_inline)) {
                       return exp_of_nonpositive((load_up_to(z + j, count, m) - m) * inverse);
                     });
    }
    r += rows.count;
  }
  if (op.stream) fence();
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
