// A row in each lane: a vector's worth of rows at a time, class after class. For few classes, where a row across the
// lanes would spend its time on ends and sums, and for rows whose classes are apart in memory ([N, C, H, W]), where
// neighbouring rows are often neighbours there.
#pragma once

#include "tempered_ce/row.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// The rows [first, first + count) of one block, as tiles of acc: class j of all of them at [j * width].
template <class S> struct Block {
  using A = Acc<S>;
  using V = Vec<A>;
  using I = Int<A>;
  static constexpr int width = Lanes<A>::width;
  static constexpr int64_t kChunk = 64;

  const CrossEntropy& op;
  const Shared<A>& s;
  int64_t first;
  int count;
  A *z, *q;                      // [c][width]; z becomes the exponentials, then the gradient
  V m, inverse;
  I labels[2];                   // -1 where there is none, and in lanes without a row

  Block(const CrossEntropy& problem, const Shared<A>& common, int64_t begin, int64_t end, A* scratch)
      : op(problem), s(common), first(begin), count(static_cast<int>(end - begin < width ? end - begin : width)),
        z(scratch), q(op.probabilities ? scratch + op.c * width : nullptr) {
    gather([&](int64_t r) { return logits_of<S>(op, r); }, op.stride_c, z);
    if (q) gather([&](int64_t r) { return probabilities_of<A>(op, r); }, op.probability_stride_c, q);
    for (int i = 0; i < 2; ++i)
      for (int lane = 0; lane < width; ++lane)
        labels[i][lane] = lane < count ? static_cast<int>(Labels<A>(op, s, first + lane).at[i]) : -1;
    for (int lane = 0; lane < width; ++lane) inverse[lane] = 1 / temperature<A>(op, first + (lane < count ? lane : 0));
  }

  template <class From> void gather(From from, int64_t stride, A* tile) {
    decltype(from(first)) rows[width];
    for (int lane = 0; lane < width; ++lane) rows[lane] = from(first + (lane < count ? lane : 0));
    for (int64_t j = 0; j < op.c; ++j)
      for (int lane = 0; lane < width; ++lane) tile[j * width + lane] = widen(rows[lane][j * stride]);
  }

  void scatter() const {
    S* rows[width];
    for (int lane = 0; lane < count; ++lane) rows[lane] = grad_of<S>(op, first + lane);
    for (int64_t j = 0; j < op.c; ++j)
      for (int lane = 0; lane < count; ++lane) rows[lane][j * op.grad_stride_c] = narrow<S>(z[j * width + lane]);
  }

  FASTRANK_INLINE V mass(int64_t j) const {
    const V t = load(q + j * width) * s.hard + s.soft;
    return s.weight ? t * s.weight[j] : t;
  }

  void forward() {
    V best = splat(-static_cast<A>(__builtin_huge_val()));
    for (int64_t j = 0; j < op.c; ++j) {
      const V v = load(z + j * width);
      best = v > best ? v : best;
    }
    m = best;
    V ranked{};
    Point<A> points[width];
    for (int lane = 0; lane < count; ++lane) {
      const Labels<A> l(op, s, first + lane);
      points[lane] = l.point(m[lane], temperature<A>(op, first + lane), z + lane, width);
      ranked[lane] = q ? z[most_probable(q + lane, op.c, width) * width + lane] : points[lane].z[l.larger];
    }
    const bool moments = op.slope || op.stats || s.soft != 0;
    V exponentials{}, moment{}, masses{}, weighted{}, sum_z{}, sum_z2{};
    I above{};
    // In chunks: a lane alone adds up a whole row, and its rounding would grow with every class.
    for (int64_t chunk = 0; chunk < op.c; chunk += kChunk) {
      V some_exponentials{}, some_moment{}, some_masses{}, some_weighted{}, some_z{}, some_z2{};
      const int64_t last = chunk + kChunk < op.c ? chunk + kChunk : op.c;
      for (int64_t j = chunk; j < last; ++j) {
        const V v = load(z + j * width), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        const V counted = keep<A>((labels[0] != static_cast<int>(j)) & (labels[1] != static_cast<int>(j)), e);
        some_exponentials += counted;
        if (moments) some_moment += counted > A(0) ? counted * x : counted;
        if (q) {
          const V t = mass(j);
          some_masses += t;
          some_weighted += t * x;
        } else if (s.soft != 0) {
          some_weighted += s.weight ? s.weight[j] * x : x;
        }
        if (op.stats) {
          some_z += v;
          some_z2 += v * v;
          above -= v > ranked;
        }
        if (op.grad) store(z + j * width, e);
      }
      exponentials += some_exponentials;
      moment += some_moment;
      masses += some_masses;
      weighted += some_weighted;
      sum_z += some_z;
      sum_z2 += some_z2;
    }
    Gradient<A> rows[width];
    for (int lane = 0; lane < count; ++lane)
      rows[lane] = finish_row<A>(op, s, Labels<A>(op, s, first + lane), points[lane],
                                 {exponentials[lane], moment[lane], masses[lane], weighted[lane], sum_z[lane],
                                  sum_z2[lane], static_cast<A>(above[lane])},
                                 first + lane);
    if (op.grad) write_gradient(rows);
  }

  void backward() {
    Gradient<A> rows[width];
    m = V{};
    for (int lane = 0; lane < count; ++lane) {
      const int64_t r = first + lane;
      const Labels<A> l(op, s, r);
      m[lane] = static_cast<const A*>(op.rows)[kMax * op.row_count() + r];
      rows[lane] = gradient_of_row(op, s, l, l.point(m[lane], temperature<A>(op, r), z + lane, width), r);
    }
    for (int64_t j = 0; j < op.c; ++j)
      store(z + j * width, exp_of_nonpositive((load(z + j * width) - m) * inverse));
    write_gradient(rows);
  }

  // From the exponentials in z.
  void write_gradient(const Gradient<A> (&rows)[width]) {
    V each{}, soft{}, at[2] = {};
    for (int lane = 0; lane < count; ++lane) {
      if (!q && labels[0][lane] < 0) continue;  // ignored
      each[lane] = rows[lane].each;
      soft[lane] = rows[lane].soft;
      for (int i = 0; i < 2; ++i) at[i][lane] = rows[lane].at[i];
    }
    const I counts = q ? labels[0] == labels[0] : labels[0] >= 0;
    for (int64_t j = 0; j < op.c; ++j) {
      V g = load(z + j * width) * each;
      if (q) g -= soft * mass(j);
      else if (s.soft != 0) g -= soft * s.weight_of(j);
      for (int i = 0; i < 2; ++i) g = labels[i] == static_cast<int>(j) ? at[i] : g;
      store(z + j * width, keep<A>(counts, g));  // an ignored row may hold NaN
    }
    scatter();
  }
};

template <class S>
void run_narrow(const CrossEntropy& op, int64_t begin, int64_t end, Acc<S>* scratch, void (Block<S>::*pass)()) {
  const Shared<Acc<S>> s(op);
  for (int64_t r = begin; r < end; r += Block<S>::width) {
    Block<S> block(op, s, r, end, scratch);
    (block.*pass)();
  }
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
