// The scalars of rows: their labels, and what loss, state, statistics and gradient follow from a row's sums. A vector's
// worth of rows at a time, a row in each lane, whichever way the sums come about: wide.h (a row across the lanes) or
// narrow.h (a row in each lane there too).
#pragma once

#include "tempered_loss/math.h"
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

// What rows add up to. Exponentials and moment (of e * x) leave the labels out; mass and weighted are of t_j and
// t_j * x_j, of probabilities or of smoothing's part over soft.
template <class A> struct Sums { Vec<A> exponentials{}, moment{}, mass{}, weighted{}, z{}, z2{}, above{}; };

// dz_j = each * e_j - soft * (t_j of smoothing or of the probabilities), but `at[i]` at label i.
template <class A> struct Gradient { Vec<A> each{}, soft{}, at[2]{}; };

// The rows [first, first + count).
template <class A> struct Rows {
  using V = Vec<A>;
  using I = Int<A>;
  static constexpr int width = Lanes<A>::width;

  const CrossEntropy& op;
  const Shared<A>& s;
  const int64_t first;
  const int count;
  int64_t label[2][width];            // -1 where there is none, and in lanes without a row
  I present[2];
  V mass[2]{};                        // t of the labels, smoothing apart
  V T, inverse;
  V m{}, z[2]{}, x[2]{}, e[2]{};      // the row's maximum, and its labels' logits
  V ranked{};                         // the logit that a target rank is the rank of

  Rows(const CrossEntropy& problem, const Shared<A>& shared, int64_t begin, int64_t end)
      : op(problem), s(shared), first(begin), count(static_cast<int>(end - begin < width ? end - begin : width)) {
    A masses[2][width] = {}, temperatures[width];
    for (int lane = 0; lane < width; ++lane) {
      label[0][lane] = label[1][lane] = -1;
      temperatures[lane] = 1;
      if (lane >= count) continue;
      const int64_t r = first + lane, n = op.d == 1 ? r : r / op.d;
      temperatures[lane] = op.temperature ? static_cast<const A*>(op.temperature)[n * op.temperature_stride]
                                          : static_cast<A>(op.temperature_value);
      if (!op.target || op.ignored(r)) continue;
      const int64_t y = label[0][lane] = op.target[r];
      masses[0][lane] = s.hard * s.weight_of(y);
      if (!op.second || op.second[r] == y) continue;
      const A share = static_cast<const A*>(op.share)[n * op.share_stride];
      label[1][lane] = op.second[r];
      masses[0][lane] *= share;
      masses[1][lane] = s.hard * (1 - share) * s.weight_of(label[1][lane]);
      second_larger[lane] = share < A(0.5) ? -1 : 0;
    }
    for (int i = 0; i < 2; ++i) {
      I there{};
      for (int lane = 0; lane < width; ++lane) there[lane] = label[i][lane] >= 0 ? -1 : 0;
      present[i] = there;
      mass[i] = load(masses[i]);
    }
    T = load(temperatures);
    inverse = A(1) / T;
  }

  // logit(lane, y) is a row's logit of class y.
  template <class Logit> void look_up(Logit logit) {
    for (int i = 0; i < 2; ++i) {
      A logits[width] = {};
      for (int lane = 0; lane < count; ++lane)
        if (label[i][lane] >= 0) logits[lane] = logit(lane, label[i][lane]);
      z[i] = load(logits);
    }
    ranked = second_larger ? z[1] : z[0];
  }

  void set_maximum(V maximum) {
    m = maximum;
    for (int i = 0; i < 2; ++i) {
      x[i] = keep<A>(present[i], (z[i] - m) / T);
      e[i] = keep<A>(present[i], exp_of_nonpositive(x[i]));
    }
  }

  // Writes loss, state and statistics of the rows; returns their gradient for grad_loss = 1.
  Gradient<A> finish(const Sums<A>& sums) const {
    const int64_t rows = op.row_count();
    const V rest = sums.exponentials, total = rest + e[0] + e[1];
    // The maximum's own exponential is 1: where it is a label's, that label stays out of the sum, and what the others
    // add to 1 keeps its digits.
    const V beside = present[0] & (x[0] == 0)   ? rest + e[1]
                     : present[1] & (x[1] == 0) ? rest + e[0]
                                                : total - A(1);
    const V log_total = log_of_one_plus<A>(beside);
    const V scale = gradient_scale();
    V value{}, slope{}, moment = sums.moment;
    Gradient<A> gradient;
    if (op.probabilities) {
      value = sums.mass * log_total - sums.weighted;
      slope = sums.mass * moment / total - sums.weighted;
      gradient.each = scale * sums.mass / total;
      gradient.soft = scale;
    } else {
      const V lowest = splat(-static_cast<A>(__builtin_huge_val()));
      for (int i = 0; i < 2; ++i) {
        const V other = e[1 - i] > 0 ? e[1 - i] * x[1 - i] : V{};  // e = 0 takes x = -inf out
        moment += e[i] > 0 ? e[i] * x[i] : V{};
        value += present[i] ? mass[i] * (log_total - x[i]) : V{};
        slope += present[i] ? mass[i] * (sums.moment + other - (x[i] == lowest ? V{} : x[i] * (rest + e[1 - i]))) / total
                            : V{};
      }
      if (s.soft != 0) {
        value += keep<A>(present[0], s.soft * (s.weight_sum * log_total - sums.weighted));
        slope += keep<A>(present[0], s.soft * (s.weight_sum * moment / total - sums.weighted));
      }
      gradient = of_labels(scale, rest, total);
    }
    A* const out = static_cast<A*>(op.rows) + first;
    const auto leave = [&](RowPlane plane, V v) { store_up_to(out + plane * rows, v, count); };
    store_up_to(static_cast<A*>(op.loss) + first, value, count);
    leave(kMax, m);
    leave(kSum, total);
    leave(kOthers, op.probabilities ? sums.mass : rest);
    leave(kSlope, slope);
    if (op.stats) {
      leave(kLogsumexp, m / T + log_total);
      leave(kMaxProb, A(1) / total);
      leave(kEntropy, log_total - moment / total);
      leave(kSumZ, sums.z);
      leave(kSumZ2, sums.z2);
      leave(kTargetRank, op.probabilities ? sums.above : present[0] ? sums.above : splat(A(-1)));
    }
    return gradient;
  }

  // The gradient in the backward pass, from what the forward pass left.
  Gradient<A> gradient() const {
    const A* const state = static_cast<const A*>(op.rows) + first;
    const A* const grad_loss = static_cast<const A*>(op.grad_loss);
    const V total = load_up_to(state + kSum * op.row_count(), count, A(1));
    const V others = load_up_to(state + kOthers * op.row_count(), count);
    const V scale = gradient_scale() * (op.grad_loss_stride ? load_up_to(grad_loss + first, count) : splat(*grad_loss));
    if (!op.probabilities) return of_labels(scale, others, total);
    Gradient<A> gradient;
    gradient.each = scale * others / total;
    gradient.soft = scale;
    return gradient;
  }

 private:
  I second_larger{};

  // What a unit of loss weighs in the gradient of the logits: T^k / T and the mean's divisor.
  V gradient_scale() const {
    return static_cast<A>(op.grad_scale) * (op.grad_power == 2 ? T : op.grad_power == 1 ? splat(A(1)) : inverse);
  }

  // `rest` sums the exponentials of all but the labels.
  Gradient<A> of_labels(V scale, V rest, V total) const {
    Gradient<A> gradient;
    gradient.each = scale * (mass[0] + mass[1] + s.soft * s.weight_sum) / total;
    gradient.soft = scale * s.soft;
    for (int i = 0; i < 2; ++i) {
      gradient.at[i] = scale * (mass[1 - i] * e[i] - mass[i] * (rest + e[1 - i])) / total;
      if (s.soft == 0) continue;
      A weights[width] = {};
      for (int lane = 0; lane < count; ++lane)
        if (label[i][lane] >= 0) weights[lane] = s.weight_of(label[i][lane]);
      gradient.at[i] += scale * s.soft * (s.weight_sum * e[i] / total - load(weights));
    }
    return gradient;
  }
};

template <class S> const S* logits_of(const CrossEntropy& op, int64_t r) {
  const S* const z = static_cast<const S*>(op.logits);
  return op.d == 1 ? z + r * op.stride_n : z + r / op.d * op.stride_n + r % op.d * op.stride_d;
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
