// One row's scalars: its labels, and what loss, state, statistics and gradient follow from its sums. Shared by the two
// ways of summing, wide.h (a row across the vector's lanes) and narrow.h (a row in each lane).
#pragma once

#include "tempered_ce/math.h"
#include "tempered_ce/tempered_ce.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// What every row of one call shares.
template <class A> struct Shared {
  const A* weight;  // or null
  A weight_sum;
  A hard;           // 1 - smoothing
  A soft;           // smoothing / C

  explicit Shared(const CrossEntropy& op)
      : weight(static_cast<const A*>(op.weight)), weight_sum(static_cast<A>(op.weight_sum)),
        hard(static_cast<A>(1 - op.smoothing)), soft(static_cast<A>(op.smoothing / static_cast<double>(op.c))) {}
  A weight_of(int64_t y) const { return weight ? weight[y] : A(1); }
};

template <class A> A temperature(const CrossEntropy& op, int64_t r) {
  if (!op.temperature) return static_cast<A>(op.temperature_value);
  return static_cast<const A*>(op.temperature)[r / op.d * op.temperature_stride];
}

// What a unit of loss weighs in the gradient of the logits: T^k / T and the mean's divisor.
template <class A> A gradient_scale(const CrossEntropy& op, A T) {
  return static_cast<A>(op.grad_scale) * (op.grad_power == 2 ? T : op.grad_power == 1 ? A(1) : 1 / T);
}

template <class A> A exp_one(A x) { return exp_of_nonpositive(splat(x))[0]; }

// dz_j = each * e_j - soft * (t_j of smoothing or of the probabilities), but `at[i]` at label i.
template <class A> struct Gradient { A each, soft, at[2]; };

// A row's maximum, and what its labels' logits are beside it.
template <class A> struct Point {
  A m, T, inverse;
  A z[2] = {0, 0}, x[2] = {0, 0}, e[2] = {0, 0};  // of the labels
};

// The labels of a row and their weights t_y, smoothing apart; -1 where there is none.
template <class A> struct Labels {
  int64_t at[2] = {-1, -1};
  A mass[2] = {0, 0};
  int larger = 0;  // which has the larger share

  Labels(const CrossEntropy& op, const Shared<A>& s, int64_t r) {
    if (!op.target || op.ignored(r)) return;
    at[0] = op.target[r];
    mass[0] = s.hard * s.weight_of(at[0]);
    if (!op.second || op.second[r] == at[0]) return;
    const A share = static_cast<const A*>(op.share)[r / op.d * op.share_stride];
    at[1] = op.second[r];
    larger = share < A(0.5);
    mass[0] *= share;
    mass[1] = s.hard * (1 - share) * s.weight_of(at[1]);
  }

  // `z` is the row, at a distance of `stride` from class to class.
  template <class Z> Point<A> point(A m, A T, const Z* z, int64_t stride) const {
    Point<A> p{m, T, 1 / T};
    for (int i = 0; i < 2; ++i)
      if (at[i] >= 0) {
        p.z[i] = widen(z[at[i] * stride]);
        p.x[i] = (p.z[i] - m) / T;
        p.e[i] = exp_one(p.x[i]);
      }
    return p;
  }

  // g is what a unit of loss weighs; `rest` sums the exponentials of all but the labels.
  Gradient<A> gradient(const Shared<A>& s, A g, const Point<A>& p, A rest, A total) const {
    Gradient<A> grad{g * (mass[0] + mass[1] + s.soft * s.weight_sum) / total, g * s.soft, {0, 0}};
    for (int i = 0; i < 2; ++i)
      if (at[i] >= 0)
        grad.at[i] = g * ((mass[1 - i] * p.e[i] - mass[i] * (rest + p.e[1 - i])) / total +
                          s.soft * (s.weight_sum * p.e[i] / total - s.weight_of(at[i])));
    return grad;
  }
};

// What a row adds up to. Exponentials and moment (of e * x) leave the labels out.
template <class A> struct Sums {
  A exponentials = 0, moment = 0;
  A mass = 0, weighted = 0;  // of t_j and t_j * x_j, of probabilities or of smoothing's part over soft
  A z = 0, z2 = 0, above = 0;
};

// Writes the row's loss, state and statistics; returns the gradient for grad_loss = 1.
template <class A>
Gradient<A> finish_row(const CrossEntropy& op, const Shared<A>& s, const Labels<A>& labels, const Point<A>& p,
                       const Sums<A>& sums, int64_t r) {
  const int64_t rows = op.row_count();
  const bool used = labels.at[0] >= 0;
  const A rest = sums.exponentials, total = rest + p.e[0] + p.e[1], lowest = -__builtin_huge_val();
  // Where a label is the maximum its e is 1: log1p keeps what the others add to it.
  const A log_total = used && p.x[0] == 0                ? log1p_of(rest + p.e[1])
                      : labels.at[1] >= 0 && p.x[1] == 0 ? log1p_of(rest + p.e[0])
                                                         : log_of(total);
  A moment = sums.moment, value = 0, slope = 0;
  for (int i = 0; i < 2; ++i) {
    if (labels.at[i] < 0) continue;
    const A e = p.e[1 - i], x = p.x[1 - i];  // of the other one
    if (p.e[i] > 0) moment += p.e[i] * p.x[i];
    value += labels.mass[i] * (log_total - p.x[i]);
    slope += labels.mass[i] * (sums.moment + (e > 0 ? e * x : 0) - (p.x[i] == lowest ? 0 : p.x[i] * (rest + e))) / total;
  }
  const A g = gradient_scale(op, p.T);
  Gradient<A> gradient;
  if (op.probabilities) {
    value = sums.mass * log_total - sums.weighted;
    slope = sums.mass * moment / total - sums.weighted;
    gradient = {g * sums.mass / total, g, {0, 0}};
  } else {
    if (s.soft != 0 && used) {
      value += s.soft * (s.weight_sum * log_total - sums.weighted);
      slope += s.soft * (s.weight_sum * moment / total - sums.weighted);
    }
    gradient = labels.gradient(s, g, p, rest, total);
  }
  static_cast<A*>(op.loss)[r] = value;
  A* const out = static_cast<A*>(op.rows) + r;
  out[kMax * rows] = p.m;
  out[kSum * rows] = total;
  out[kOthers * rows] = op.probabilities ? sums.mass : rest;
  out[kSlope * rows] = slope;
  if (op.stats) {
    out[kLogsumexp * rows] = p.m / p.T + log_total;
    out[kMaxProb * rows] = 1 / total;
    out[kEntropy * rows] = log_total - moment / total;
    out[kSumZ * rows] = sums.z;
    out[kSumZ2 * rows] = sums.z2;
    out[kTargetRank * rows] = used || op.probabilities ? sums.above : -1;
  }
  return gradient;
}

// The gradient's scalars in the backward pass, from what the forward pass left.
template <class A>
Gradient<A> gradient_of_row(const CrossEntropy& op, const Shared<A>& s, const Labels<A>& labels, const Point<A>& p,
                            int64_t r) {
  const A* const state = static_cast<const A*>(op.rows) + r;
  const A total = state[kSum * op.row_count()], others = state[kOthers * op.row_count()];
  const A g = static_cast<const A*>(op.grad_loss)[r * op.grad_loss_stride] * gradient_scale(op, p.T);
  if (op.probabilities) return {g * others / total, g, {0, 0}};
  return labels.gradient(s, g, p, others, total);
}

template <class S> const S* logits_of(const CrossEntropy& op, int64_t r) {
  return static_cast<const S*>(op.logits) + r / op.d * op.stride_n + r % op.d * op.stride_d;
}
template <class A> const A* probabilities_of(const CrossEntropy& op, int64_t r) {
  return static_cast<const A*>(op.probabilities) + r / op.d * op.probability_stride_n +
         r % op.d * op.probability_stride_d;
}
template <class S> S* grad_of(const CrossEntropy& op, int64_t r) {
  return static_cast<S*>(op.grad) + r / op.d * op.grad_stride_n + r % op.d * op.grad_stride_d;
}

// Class of the largest probability: what a target rank is the rank of.
template <class A> int64_t most_probable(const A* q, int64_t c, int64_t stride) {
  int64_t best = 0;
  for (int64_t j = 1; j < c; ++j)
    if (q[j * stride] > q[best * stride]) best = j;
  return best;
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
