// A row in each lane: a vector's worth of rows at a time, class after class. For few classes, where a row across the
// lanes would spend its time on ends and sums, and for rows whose classes are apart in memory ([N, C, H, W]), where
// neighbouring rows are often neighbours there.
#pragma once

#include "tempered_ce/row.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// One block of rows as tiles of acc: class j of all of them at [j * width].
template <class S> struct Block {
  using A = Acc<S>;
  using V = Vec<A>;
  using I = Int<A>;
  static constexpr int width = Lanes<A>::width;
  static constexpr int64_t kChunk = 64;

  const CrossEntropy& op;
  const Shared<A>& s;
  Rows<A> rows;
  A *z, *q;  // [c][width]; z becomes the exponentials, then the gradient
  I label[2];

  Block(const CrossEntropy& problem, const Shared<A>& common, int64_t begin, int64_t end, A* scratch)
      : op(problem), s(common), rows(problem, common, begin, end), z(scratch),
        q(op.probabilities ? scratch + op.c * width : nullptr) {
    gather([&](int64_t r) { return logits_of<S>(op, r); }, op.stride_c, z);
    if (q) gather([&](int64_t r) { return probabilities_of<A>(op, r); }, op.probability_stride_c, q);
    for (int i = 0; i < 2; ++i)
      for (int lane = 0; lane < width; ++lane) label[i][lane] = static_cast<int>(rows.label[i][lane]);
  }

  template <class From> void gather(From from, int64_t stride, A* tile) {
    decltype(from(rows.first)) row[width];
    for (int lane = 0; lane < width; ++lane) row[lane] = from(rows.first + (lane < rows.count ? lane : 0));
    for (int64_t j = 0; j < op.c; ++j)
      for (int lane = 0; lane < width; ++lane) tile[j * width + lane] = widen(row[lane][j * stride]);
  }

  void scatter() const {
    S* row[width];
    for (int lane = 0; lane < rows.count; ++lane) row[lane] = grad_of<S>(op, rows.first + lane);
    for (int64_t j = 0; j < op.c; ++j)
      for (int lane = 0; lane < rows.count; ++lane) row[lane][j * op.grad_stride_c] = narrow<S>(z[j * width + lane]);
  }

  FASTRANK_INLINE V mass(int64_t j) const {
    const V t = load(q + j * width) * s.hard + s.soft;
    return s.weight ? t * s.weight[j] : t;
  }
  A logit(int lane, int64_t y) const { return z[y * width + lane]; }

  void forward() {
    V best = splat(-static_cast<A>(__builtin_huge_val()));
    for (int64_t j = 0; j < op.c; ++j) {
      const V v = load(z + j * width);
      best = v > best ? v : best;
    }
    rows.look_up([&](int lane, int64_t y) { return logit(lane, y); });
    rows.set_maximum(best);
    V ranked = rows.ranked;
    for (int lane = 0; q && op.stats && lane < rows.count; ++lane)
      ranked[lane] = logit(lane, most_probable(q + lane, op.c, width));
    const V m = rows.m, inverse = rows.inverse;
    const bool moments = op.slope || op.stats || s.soft != 0;
    Sums<A> sums;
    // In chunks: a lane alone adds up a whole row, and its rounding would grow with every class.
    for (int64_t chunk = 0; chunk < op.c; chunk += kChunk) {
      Sums<A> some;
      const int64_t last = chunk + kChunk < op.c ? chunk + kChunk : op.c;
      for (int64_t j = chunk; j < last; ++j) {
        const V v = load(z + j * width), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        const V counted = keep<A>((label[0] != static_cast<int>(j)) & (label[1] != static_cast<int>(j)), e);
        some.exponentials += counted;
        if (moments) some.moment += counted * bounded<A>(x);
        if (q) {
          const V t = mass(j);
          some.mass += t;
          some.weighted += t * x;
        } else if (s.soft != 0) {
          some.weighted += s.weight ? s.weight[j] * x : x;
        }
        if (op.stats) {
          some.z += v;
          some.z2 += v * v;
          some.above += v > ranked ? splat(A(1)) : V{};
        }
        if (op.grad) store(z + j * width, e);
      }
      sums.exponentials += some.exponentials;
      sums.moment += some.moment;
      sums.mass += some.mass;
      sums.weighted += some.weighted;
      sums.z += some.z;
      sums.z2 += some.z2;
      sums.above += some.above;
    }
    const Gradient<A> gradient = rows.finish(sums);
    if (op.grad) write_gradient(gradient);
  }

  void backward() {
    const A* const maxima = static_cast<const A*>(op.rows) + kMax * op.row_count() + rows.first;
    rows.look_up([&](int lane, int64_t y) { return logit(lane, y); });
    rows.set_maximum(load_up_to(maxima, rows.count));
    const V m = rows.m, inverse = rows.inverse;
    for (int64_t j = 0; j < op.c; ++j)
      store(z + j * width, exp_of_nonpositive((load(z + j * width) - m) * inverse));
    write_gradient(rows.gradient());
  }

  // From the exponentials in z.
  void write_gradient(const Gradient<A>& gradient) {
    const I counts = q ? label[0] == label[0] : label[0] >= 0;
    for (int64_t j = 0; j < op.c; ++j) {
      V g = load(z + j * width) * gradient.each;
      if (q) g -= gradient.soft * mass(j);
      else if (s.soft != 0) g -= gradient.soft * s.weight_of(j);
      for (int i = 0; i < 2; ++i) g = label[i] == static_cast<int>(j) ? gradient.at[i] : g;
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
