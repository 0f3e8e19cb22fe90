// The rows that one vector holds: one row across its lanes (ACROSS), or a row in each lane. Every quantity of a row is
// a vector, the same in all lanes of a row that lies across; so both ways share every formula, and differ in where
// class j lies and in how a sum ends.
#pragma once

#include "tempered_loss/math.h"
#include "tempered_mse/tempered_mse.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

template <class S, bool ACROSS> struct Rows {
  using A = Acc<S>;
  using V = Vec<A>;
  using I = Int<A>;
  static constexpr int width = Lanes<A>::width;
  static constexpr int64_t step = ACROSS ? width : 1;  // classes of one vector
  static constexpr int64_t kChunk = 64;                // vectors summed before they join the row's sum

  const SquaredError& op;
  const int64_t first;  // row
  const int count;      // rows
  const S* z = nullptr;                                        // ACROSS
  const A* q = nullptr;                                        // ACROSS: probabilities
  A *e, *z_tile = nullptr, *q_tile = nullptr;                  // in lanes: class j at [j * width]
  const A hard, soft, spread;                                  // 1 - s, s / C, s (C - 1) / C
  V inverse{}, temperature{}, mass[2]{};                       // masses of the labels, unsmoothed
  I label[2]{}, used{};                                        // -1 where there is none
  V m{};

  Rows(const SquaredError& problem, int64_t row, int64_t end, A* scratch)
      : op(problem), first(row), count(ACROSS ? 1 : static_cast<int>(end - row < width ? end - row : width)),
        e(scratch), hard(static_cast<A>(1 - op.smoothing)),
        soft(static_cast<A>(op.smoothing / static_cast<double>(op.c))),
        spread(static_cast<A>(op.smoothing * static_cast<double>(op.c - 1) / static_cast<double>(op.c))) {
    for (int lane = 0; lane < (ACROSS ? 1 : width); ++lane) describe(row_of(lane), lane);
    if (ACROSS) {
      temperature = splat<A>(temperature[0]), used = I{} + used[0];
      for (int i = 0; i < 2; ++i) mass[i] = splat<A>(mass[i][0]), label[i] = I{} + label[i][0];
    }
    inverse = 1 / temperature;
    if (ACROSS) {
      z = logits_of(row);
      if (op.probabilities) q = probabilities_of(row);
    } else {
      z_tile = scratch + op.c * width;
      gather(z_tile, op.stride_c, [&](int64_t r) { return logits_of(r); });
      if (op.probabilities) {
        q_tile = z_tile + op.c * width;
        gather(q_tile, op.probability_stride_c, [&](int64_t r) { return probabilities_of(r); });
      }
    }
  }

  void describe(int64_t r, int lane) {
    const A* const T = static_cast<const A*>(op.temperature);
    const int64_t n = r / op.d;
    temperature[lane] = T ? T[n * op.temperature_stride] : static_cast<A>(op.temperature_value);
    used[lane] = op.ignored(r) ? 0 : -1;
    label[0][lane] = label[1][lane] = -1;
    if (!op.target || op.ignored(r)) return;
    label[0][lane] = static_cast<int32_t>(op.target[r]);
    mass[0][lane] = 1;
    if (!op.second || op.second[r] == op.target[r]) return;
    label[1][lane] = static_cast<int32_t>(op.second[r]);
    mass[0][lane] = static_cast<const A*>(op.share)[n * op.share_stride];
    mass[1][lane] = 1 - mass[0][lane];
  }

  // Lanes without a row of their own repeat the first.
  int64_t row_of(int lane) const { return first + (!ACROSS && lane < count ? lane : 0); }

  const S* logits_of(int64_t r) const {
    return static_cast<const S*>(op.logits) + r / op.d * op.stride_n + r % op.d * op.stride_d;
  }
  const A* probabilities_of(int64_t r) const {
    return static_cast<const A*>(op.probabilities) + r / op.d * op.probability_stride_n +
           r % op.d * op.probability_stride_d;
  }
  S* grad_of(int64_t r) const {
    return static_cast<S*>(op.grad) + r / op.d * op.grad_stride_n + r % op.d * op.grad_stride_d;
  }

  template <class From> void gather(A* tile, int64_t stride, From from) {
    decltype(from(first)) rows[width];
    for (int lane = 0; lane < width; ++lane) rows[lane] = from(row_of(lane));
    for (int64_t j = 0; j < op.c; ++j)
      for (int lane = 0; lane < width; ++lane) tile[j * width + lane] = widen(rows[lane][j * stride]);
  }

  // ---- over classes ----

  // body(j, count) for every vector of classes [from, to).
  template <class Body> FASTRANK_INLINE void over(int64_t from, int64_t to, Body body) const {
    int64_t j = from;
    for (; j + step <= to; j += step) body(j, width);
    if (ACROSS && j < to) body(j, static_cast<int>(to - j));
  }

  // The sums of body(j, count, sums) over all classes, in chunks: one lane alone would add up rounding with every
  // class.
  template <int N, class Body> FASTRANK_INLINE void sums(V (&total)[N], Body body) const {
    for (V& t : total) t = V{};
    for (int64_t j = 0; j < op.c; j += kChunk * step) {
      V some[N] = {};
      over(j, j + kChunk * step < op.c ? j + kChunk * step : op.c,
           [&](int64_t k, int n) __attribute__((always_inline)) { body(k, n, some); });
      for (int i = 0; i < N; ++i) total[i] += some[i];
    }
    if (ACROSS)
      for (V& t : total) t = splat(sum<A>(t));
  }

  // Beyond the last class -inf, and a probability of 0.
  FASTRANK_INLINE V logits(int64_t j, int n) const {
    return ACROSS ? load_up_to(z + j, n, -static_cast<A>(__builtin_huge_val())) : load(z_tile + j * width);
  }
  FASTRANK_INLINE V kept(int64_t j) const { return load(e + (ACROSS ? j : j * width)); }
  FASTRANK_INLINE void keep_exponentials(int64_t j, V v) { store(e + (ACROSS ? j : j * width), v); }
  FASTRANK_INLINE I classes(int64_t j) const {
    const I at = I{} + static_cast<int32_t>(j);
    return ACROSS ? at + iota<A>() : at;
  }
  static FASTRANK_INLINE I inside(int n) { return iota<A>() < n; }
  FASTRANK_INLINE V exponentials(V v) const { return exp_of_nonpositive((v - m) * inverse); }

  // t'_j.
  FASTRANK_INLINE V unsmoothed(int64_t j, int n) const {
    if (op.probabilities) return ACROSS ? load_up_to(q + j, n, A(0)) : load(q_tile + j * width);
    const I at = classes(j);
    return keep<A>(at == label[0], mass[0]) +
           keep<A>(at == label[1], mass[1]);
  }

  // ---- rows in and out ----

  V state(int plane) const {
    V v;
    for (int lane = 0; lane < width; ++lane)
      v[lane] = static_cast<const A*>(op.rows)[plane * op.row_count() + row_of(lane)];
    return v;
  }
  void put(void* plane, V v) const {
    for (int lane = 0; lane < count; ++lane) static_cast<A*>(plane)[first + lane] = v[lane];
  }
  void put_state(int plane, V v) const { put(static_cast<A*>(op.rows) + plane * op.row_count(), v); }

  // What a unit of loss weighs in the gradient of the logits.
  V scale() const {
    const V g = splat(static_cast<A>(op.grad_scale));
    return op.grad_power == 2 ? g * temperature : op.grad_power == 1 ? g : g / temperature;
  }

  // The gradient, grad_loss included in `scale`, from the exponentials in e. One function for both passes, so that they
  // leave the same bits.
  FASTRANK_INLINE void write_gradient(V total, V mean, V top, V weight, V scale) {
    const V factor = scale * weight * A(2), share = 1 / total, at_top = factor * top;
    const I single = total < A(2);
    S* const grad = ACROSS ? grad_of(first) : nullptr;
    over(0, op.c, [&](int64_t j, int n) __attribute__((always_inline)) {
      const V p = kept(j) * share, t = unsmoothed(j, n) * hard + soft;
      V g = factor * p * (p - t - mean);
      g = single & (logits(j, n) == m) ? at_top : g;
      g = keep<A>(used, g);  // an ignored row may hold NaN
      if (!ACROSS) store(e + j * width, g);
      else store_up_to(grad + j, g, n);
    });
    if (ACROSS) return;
    S* rows[width];
    for (int lane = 0; lane < count; ++lane) rows[lane] = grad_of(first + lane);
    for (int64_t j = 0; j < op.c; ++j)
      for (int lane = 0; lane < count; ++lane) rows[lane][j * op.grad_stride_c] = narrow<S>(e[j * width + lane]);
  }

  // ---- the two passes ----

  void forward() {
    V best = splat(-static_cast<A>(__builtin_huge_val()));
    over(0, op.c, [&](int64_t j, int n) __attribute__((always_inline)) {
      const V v = logits(j, n);
      best = v > best ? v : best;
    });
    m = ACROSS ? splat(largest<A>(best)) : best;

    const Sums row = op.target && op.smoothing == 0 ? hard_sums() : soft_sums();
    const V share = 1 / row.total, weight = row_weight();
    const V mean = keep<A>(row.total < A(2), share * row.d_a) + row.M, top = share * (row.q_a * row.d_a - row.M);
    put(op.loss, keep<A>(used, weight * row.squares));
    put_state(kMseMax, m);
    put_state(kMseTotal, row.total);
    put_state(kMseMean, mean);
    put_state(kMseSlope, keep<A>(used, 2 * weight * (row.moment - mean * row.all_moment)));
    put_state(kMseTop, top);
    put_state(kMseWeight, weight);
    if (op.grad) write_gradient(row.total, mean, top, weight, scale());
  }

  // Of a row: S and q; sums of d^2, of p d beside a, of d at a; of p d x and p x, where a temperature needs them.
  struct Sums {
    V total, q_a, squares, M, d_a, moment, all_moment;
  };

  // One pass over the exponentials, for labels without smoothing: d_j = p_j but at the labels, so that e_j^2 can be
  // summed before S is known, and nothing is subtracted.
  Sums hard_sums() {
    const bool moments = op.temperature != nullptr;
    V sum[5];  // beside the maximum e, at it a count; beside maximum and labels e^2 and e^2 x; e x
    sums(sum, [&](int64_t j, int n, V (&some)[5]) __attribute__((always_inline)) {
      const V v = logits(j, n), shifted = (v - m) * inverse, e_j = exp_of_nonpositive(shifted);
      keep_exponentials(j, e_j);
      const I at_maximum = v == m, at = classes(j);
      const V beside = at_maximum ? V{} : e_j, plain = (at == label[0]) | (at == label[1]) ? V{} : beside;
      some[0] += beside;
      some[1] += keep<A>(at_maximum, splat(A(1)));
      some[2] += plain * plain;
      if (moments) {
        const V x = e_j > A(0) ? shifted : V{};
        some[3] += plain * plain * x;
        some[4] += e_j * x;
      }
    });
    // A maximum that is infinite leaves no probabilities: (inf - inf) is NaN.
    const V others = sum[0] + (m - m), total = others + sum[1], share = 1 / total, q_a = others / total;
    const I single = total < A(2);
    V free = sum[1], at_a{}, squares{}, M{}, moment = sum[3] * share * share;
    for (int i = 0; i < 2; ++i) {
      V z_y = m;
      for (int lane = 0; lane < width; ++lane)
        if (label[i][lane] >= 0) z_y[lane] = ACROSS ? widen(z[label[i][lane]]) : z_tile[label[i][lane] * width + lane];
      const I present = label[i] >= 0, at_maximum = present & (z_y == m), counts = present & ~(single & at_maximum);
      const V shifted = (z_y - m) * inverse, p = exp_of_nonpositive(shifted) * share, d = p - mass[i];
      const V pd = keep<A>(counts, p * d);
      free -= keep<A>(at_maximum, splat(A(1)));
      at_a += keep<A>(single & at_maximum, mass[i]);
      squares += keep<A>(counts, d * d);
      M += pd;
      moment += pd * (p > A(0) ? shifted : V{});
    }
    // Where several share the maximum, all are as any other class.
    const V plain = (sum[2] + keep<A>(~single, free)) * share * share;
    const V d_a = keep<A>(single, (1 - at_a) - q_a);
    return {total, q_a, squares + plain + d_a * d_a, M + plain, d_a, moment, sum[4] * share};
  }

  // Two passes, for every target: d_j^2 from its parts would cancel where p is close to t.
  Sums soft_sums() {
    V e_sums[2];  // beside the maximum; at it (a count)
    sums(e_sums, [&](int64_t j, int n, V (&some)[2]) __attribute__((always_inline)) {
      const V v = logits(j, n), e_j = exponentials(v);
      keep_exponentials(j, e_j);
      const I at_maximum = v == m;
      some[0] += at_maximum ? V{} : e_j;
      some[1] += keep<A>(at_maximum, splat(A(1)));
    });
    const V others = e_sums[0] + (m - m), total = others + e_sums[1], share = 1 / total, q_a = others / total;
    const I single = total < A(2);
    const bool moments = op.temperature != nullptr;
    V sum[5];  // d^2, p d beside a, d at a, p d x, p x
    sums(sum, [&](int64_t j, int n, V (&some)[5]) __attribute__((always_inline)) {
      const V z_j = logits(j, n), p = kept(j) * share, t = unsmoothed(j, n);
      const I top = single & (z_j == m), beside = ACROSS ? ~top & inside(n) : ~top;
      const V at_top = (1 - t) * hard + spread - q_a;
      const V d = keep<A>(top, at_top) + keep<A>(beside, p - (t * hard + soft));
      const V pd = keep<A>(beside, p * d);
      some[0] += d * d;
      some[1] += pd;
      some[2] += keep<A>(top, at_top);
      if (moments) {
        const V x = p > A(0) ? (z_j - m) * inverse : V{};
        some[3] += pd * x;
        some[4] += p * x;
      }
    });
    return {total, q_a, sum[0], sum[1], sum[2], sum[3], sum[4]};
  }

  void backward() {
    m = state(kMseMax);
    over(0, op.c, [&](int64_t j, int n) __attribute__((always_inline)) {
      keep_exponentials(j, exponentials(logits(j, n)));
    });
    V g;
    for (int lane = 0; lane < width; ++lane)
      g[lane] = static_cast<const A*>(op.grad_loss)[row_of(lane) * op.grad_loss_stride];
    write_gradient(state(kMseTotal), state(kMseMean), state(kMseTop), state(kMseWeight), g * scale());
  }

  // w = sum_j v_j t'_j.
  V row_weight() const {
    const A* const v = static_cast<const A*>(op.weight);
    if (!v) return splat(A(1));
    V w[1] = {};
    if (op.probabilities)
      sums(w, [&](int64_t j, int n, V (&some)[1]) __attribute__((always_inline)) {
        some[0] += unsmoothed(j, n) * (ACROSS ? load_up_to(v + j, n, A(0)) : splat(v[j]));
      });
    else
      for (int i = 0; i < 2; ++i)
        for (int lane = 0; lane < width; ++lane)
          if (label[i][lane] >= 0) w[0][lane] += mass[i][lane] * v[label[i][lane]];
    return w[0];
  }
};

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
