// A row across the lanes of vectors: rows whose classes are neighbours in memory, and more than a few.
//
// Forward reads a row twice (maximum; exponentials), backward once: between the two reads the row lies in cache, so the
// memory sees N*C elements forward and 2*N*C backward. The backward pass computes the exponentials again: no slower
// than reading a stored gradient and scaling it. A forward pass that writes the gradient for grad_loss = 1 on its way,
// though, replaces both where that is the grad_loss that comes; where another comes, nothing was lost.
#pragma once

#include "tempered_ce/row.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

template <class S> Acc<S> row_max(const S* z, int64_t c) {
  using A = Acc<S>;
  using V = Vec<A>;
  constexpr int width = Lanes<A>::width;
  const A lowest = -__builtin_huge_val();
  V m[4] = {splat(lowest), splat(lowest), splat(lowest), splat(lowest)};  // four chains hide the latency
  int64_t j = 0;
  for (; j + 4 * width <= c; j += 4 * width)
    for (int i = 0; i < 4; ++i) {
      const V v = load(z + j + i * width);
      m[i] = v > m[i] ? v : m[i];
    }
  for (; j < c; j += width) {
    const V v = c - j < width ? load_some(z + j, static_cast<int>(c - j), lowest) : load(z + j);
    m[0] = v > m[0] ? v : m[0];
  }
  for (int i = 1; i < 4; ++i) m[0] = m[i] > m[0] ? m[i] : m[0];
  A best = m[0][0];
  for (int i = 1; i < width; ++i) best = m[0][i] > best ? m[0][i] : best;
  return best;
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

template <class P> FASTRANK_INLINE Vec<Acc<P>> load_up_to(const P* p, int count, Acc<P> fill = 0) {
  return count == Lanes<Acc<P>>::width ? load(p) : load_some(p, count, fill);
}
template <class P> FASTRANK_INLINE void store_up_to(P* p, Vec<Acc<P>> v, int count) {
  count == Lanes<Acc<P>>::width ? store(p, v) : store_some(p, v, count);
}

// Sums of a row, one of each lane.
template <class A> struct LaneSums {
  Vec<A> exponentials{}, moment{}, mass{}, weighted{}, z{}, z2{};
  Int<A> above{};

  FASTRANK_INLINE void add(Vec<A> e, Vec<A> x, bool moments) {
    exponentials += e;
    if (moments) moment += e > A(0) ? e * x : e;  // e = 0 takes x = -inf out
  }
  FASTRANK_INLINE void add_stats(Vec<A> v, A label_logit, Int<A> inside) {
    const Vec<A> kept = keep<A>(inside, v);
    z += kept;
    z2 += kept * kept;
    above -= inside & (v > label_logit);
  }
  Sums<A> row() const {
    A count = 0;
    for (int i = 0; i < Lanes<A>::width; ++i) count += static_cast<A>(above[i]);
    return {sum<A>(exponentials), sum<A>(moment), sum<A>(mass), sum<A>(weighted), sum<A>(z), sum<A>(z2), count};
  }
};

// FULL: with label smoothing or stats. KEEP: leaves the exponentials in `kept`.
template <bool FULL, bool KEEP, class S>
Gradient<Acc<S>> forward_row(const CrossEntropy& op, const Shared<Acc<S>>& s, const S* z, Acc<S>* kept, int64_t r) {
  using A = Acc<S>;
  using V = Vec<A>;
  const Labels<A> labels(op, s, r);
  const Point<A> p = labels.point(row_max(z, op.c), temperature<A>(op, r), z, 1);
  const A m = p.m, inverse = p.inverse, ranked = p.z[labels.larger];
  const bool moments = FULL || op.slope;
  LaneSums<A> sums;
  around_labels<A>(
      op.c, labels.at,
      [&](int64_t j) __attribute__((always_inline)) {
        const V v = load(z + j), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        sums.add(e, x, moments);
        if (KEEP) store(kept + j, e);
        if (FULL) {
          if (op.stats) sums.add_stats(v, ranked, iota<A>() >= 0);
          if (s.soft != 0) sums.weighted += s.weight ? load(s.weight + j) * x : x;
        }
      },
      [&](int64_t j, int count) __attribute__((always_inline)) {
        const Int<A> lane = iota<A>(), inside = lane < count;
        const auto lane_of = [&](int64_t y) { return y >= j && y - j < count ? static_cast<int>(y - j) : -1; };
        const V v = load_some(z + j, count, m), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        sums.add(keep<A>(inside & (lane != lane_of(labels.at[0])) & (lane != lane_of(labels.at[1])), e), x, moments);
        if (KEEP) store_some(kept + j, e, count);
        if (FULL) {
          if (op.stats) sums.add_stats(v, ranked, inside);
          if (s.soft != 0)
            sums.weighted += keep<A>(inside, s.weight ? load_some(s.weight + j, count, A(0)) * x : x);
        }
      });
  return finish_row(op, s, labels, p, sums.row(), r);
}

// t_j of classes j .. j + count of a row of probabilities.
template <class A>
FASTRANK_INLINE Vec<A> target_mass(const Shared<A>& s, const A* q, int64_t j, int count) {
  const Vec<A> t = load_up_to(q + j, count) * s.hard + s.soft;
  const Vec<A> weighted = s.weight ? t * load_up_to(s.weight + j, count) : t;
  return count == Lanes<A>::width ? weighted : keep<A>(iota<A>() < count, weighted);
}

template <bool KEEP, class S>
Gradient<Acc<S>> forward_soft_row(const CrossEntropy& op, const Shared<Acc<S>>& s, const S* z, const Acc<S>* q,
                                  Acc<S>* kept, int64_t r) {
  using A = Acc<S>;
  using V = Vec<A>;
  const Labels<A> labels(op, s, r);  // none
  const Point<A> p = labels.point(row_max(z, op.c), temperature<A>(op, r), z, 1);
  const A m = p.m, inverse = p.inverse, ranked = op.stats ? widen(z[most_probable(q, op.c, 1)]) : A(0);
  const bool moments = op.slope || op.stats;
  LaneSums<A> sums;
  over_vectors<A>(op.c, [&](int64_t j, int count) __attribute__((always_inline)) {
    const Int<A> inside = iota<A>() < count;
    const V v = load_up_to(z + j, count, m), x = (v - m) * inverse, e = exp_of_nonpositive(x);
    const V t = target_mass(s, q, j, count);
    sums.add(keep<A>(inside, e), x, moments);
    sums.mass += t;
    sums.weighted += t * x;
    if (op.stats) sums.add_stats(v, ranked, inside);
    if (KEEP) store_up_to(kept + j, e, count);
  });
  return finish_row(op, s, labels, p, sums.row(), r);
}

// The gradient of a row from exponentials(j, count); zero where the row is ignored. One function for both passes, so
// that they leave the same bits.
template <class A, class G, class E>
FASTRANK_INLINE void write_gradient(const CrossEntropy& op, const Shared<A>& s, const Labels<A>& labels,
                                    const Gradient<A>& row, const A* q, G* grad, E exponentials) {
  const auto write = [&](auto less) __attribute__((always_inline)) {
    over_vectors<A>(op.c, [&](int64_t j, int count) __attribute__((always_inline)) {
      store_up_to(grad + j, less(exponentials(j, count) * row.each, j, count), count);
    });
  };
  if (q)
    return write([&](Vec<A> v, int64_t j, int count)
                     __attribute__((always_inline)) { return v - row.soft * target_mass(s, q, j, count); });
  if (labels.at[0] < 0) {
    for (int64_t j = 0; j < op.c; ++j) grad[j] = G{};
    return;
  }
  if (row.soft == 0)
    write([&](Vec<A> v, int64_t, int) __attribute__((always_inline)) { return v; });
  else
    write([&](Vec<A> v, int64_t j, int count) __attribute__((always_inline)) {
      return v - row.soft * (s.weight ? load_up_to(s.weight + j, count) : splat(A(1)));
    });
  for (int i = 0; i < 2; ++i)
    if (labels.at[i] >= 0) grad[labels.at[i]] = narrow<G>(row.at[i]);
}

template <class S> void forward_wide(const CrossEntropy& op, int64_t begin, int64_t end, Acc<S>* kept) {
  using A = Acc<S>;
  const Shared<A> s(op);
  const bool full = op.stats || op.smoothing != 0, keep = op.grad != nullptr;
  const auto e = [&](int64_t j, int count) __attribute__((always_inline)) { return load_up_to(kept + j, count); };
  for (int64_t r = begin; r < end; ++r) {
    const S* const z = logits_of<S>(op, r);
    const A* const q = op.probabilities ? probabilities_of<A>(op, r) : nullptr;
    Gradient<A> row;
    if (q)
      row = keep ? forward_soft_row<true>(op, s, z, q, kept, r) : forward_soft_row<false>(op, s, z, q, kept, r);
    else if (full)
      row = keep ? forward_row<true, true>(op, s, z, kept, r) : forward_row<true, false>(op, s, z, kept, r);
    else
      row = keep ? forward_row<false, true>(op, s, z, kept, r) : forward_row<false, false>(op, s, z, kept, r);
    if (keep) write_gradient(op, s, Labels<A>(op, s, r), row, q, grad_of<S>(op, r), e);
  }
}

template <class S> void backward_wide(const CrossEntropy& op, int64_t begin, int64_t end) {
  using A = Acc<S>;
  const Shared<A> s(op);
  for (int64_t r = begin; r < end; ++r) {
    const S* const z = logits_of<S>(op, r);
    const A* const q = op.probabilities ? probabilities_of<A>(op, r) : nullptr;
    const Labels<A> labels(op, s, r);
    const A m = static_cast<const A*>(op.rows)[kMax * op.row_count() + r];
    const Point<A> p = labels.point(m, temperature<A>(op, r), z, 1);
    const A inverse = p.inverse;
    write_gradient(op, s, labels, gradient_of_row(op, s, labels, p, r), q, grad_of<S>(op, r),
                   [&](int64_t j, int count) __attribute__((always_inline)) {
                     return exp_of_nonpositive((load_up_to(z + j, count, m) - m) * inverse);
                   });
  }
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
