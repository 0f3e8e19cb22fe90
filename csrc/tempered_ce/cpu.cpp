// Row kernels of the tempered cross-entropy (definitions in tempered_ce.h).
//
// Forward reads a row twice (maximum; exponentials), backward once: between the two reads the row lies in cache, so
// the memory sees N*C elements forward and 2*N*C backward. The backward pass computes the exponentials again: no slower
// than reading a stored gradient and scaling it. A forward pass that writes the gradient for grad_loss = 1 on its way,
// though, replaces both where that is the grad_loss that comes; where another comes, nothing was lost.
#include "tempered_ce/tempered_ce.h"

#include "tempered_ce/math.h"

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

template <class A> A temperature(const CrossEntropy& op, int64_t n) {
  if (!op.temperature) return static_cast<A>(op.temperature_value);
  return static_cast<const A*>(op.temperature)[n * op.temperature_stride];
}

// What the gradient of the logits owes to the temperature: T^k / T.
template <class A> A gradient_scale(const CrossEntropy& op, A T) {
  return op.grad_power == 2 ? T : op.grad_power == 1 ? A(1) : 1 / T;
}

template <class A> A exp_one(A x) { return exp_of_nonpositive(splat(x))[0]; }

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

// body(j, count) over a row: `plain(j)` gets whole vectors, `special(j, count)` those with one of the two labels and the
// tail. A label of -1 is in none.
template <class A, class Plain, class Special>
FASTRANK_INLINE void over_row(int64_t c, const int64_t (&labels)[2], Plain plain, Special special) {
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

// Logits and target of the loss with respect to e: what makes a row's gradient out of its exponentials,
// dz_j = each * e_j - soft * w_j, but `at[i]` at label i.
template <class A> struct Gradient { A each, soft, at[2]; };

// The labels of a row and their weights t_y, smoothing apart; -1 where there is none.
template <class A> struct Labels {
  int64_t at[2] = {-1, -1};
  A mass[2] = {0, 0};
  int larger = 0;  // which has the larger share

  Labels(const CrossEntropy& op, const Shared<A>& s, int64_t r) {
    if (op.ignored(r)) return;
    at[0] = op.target[r];
    mass[0] = s.hard * s.weight_of(at[0]);
    if (!op.second || op.second[r] == at[0]) return;
    const A share = static_cast<const A*>(op.share)[r / op.d * op.share_stride];
    at[1] = op.second[r];
    larger = share < A(0.5);
    mass[0] *= share;
    mass[1] = s.hard * (1 - share) * s.weight_of(at[1]);
  }

  // g is what one unit of loss weighs, over T; `e` are the labels' exponentials, `rest` the sum of all others.
  Gradient<A> gradient(const Shared<A>& s, A g, const A (&e)[2], A rest, A total) const {
    Gradient<A> grad{g * (mass[0] + mass[1] + s.soft * s.weight_sum) / total, g * s.soft, {0, 0}};
    for (int i = 0; i < 2; ++i)
      if (at[i] >= 0)
        grad.at[i] = g * ((mass[1 - i] * e[i] - mass[i] * (rest + e[1 - i])) / total +
                          s.soft * (s.weight_sum * e[i] / total - s.weight_of(at[i])));
    return grad;
  }
};

// Sums over a row that both kinds of target need.
template <class A> struct Sums {
  Vec<A> exponentials{}, moment{}, z{}, z2{};
  Int<A> above{};

  void add_moment(Vec<A> e, Vec<A> x) { moment += e > A(0) ? e * x : e; }  // e = 0 takes x = -inf out
  void add_stats(Vec<A> v, A label_logit, Int<A> inside) {
    const Vec<A> kept = keep<A>(inside, v);
    z += kept;
    z2 += kept * kept;
    above -= inside & (v > label_logit);
  }
  void write_stats(const CrossEntropy& op, A* out, A m, A T, A total, A log_total, A all_moment, bool ranked) const {
    const int64_t rows = op.row_count();
    A rank = 0;
    for (int i = 0; i < Lanes<A>::width; ++i) rank += static_cast<A>(above[i]);
    out[kLogsumexp * rows] = m / T + log_total;
    out[kMaxProb * rows] = 1 / total;
    out[kEntropy * rows] = log_total - all_moment / total;
    out[kSumZ * rows] = sum<A>(z);
    out[kSumZ2 * rows] = sum<A>(z2);
    out[kTargetRank * rows] = ranked ? rank : -1;
  }
};

// FULL: with label smoothing or stats. KEEP: leaves the exponentials in `kept` (which may be z) and returns what turns
// them into the gradient for grad_loss = 1.
template <bool FULL, bool KEEP, class S>
Gradient<Acc<S>> forward_row(const CrossEntropy& op, const Shared<Acc<S>>& s, const S* z, Acc<S>* kept, int64_t r) {
  using A = Acc<S>;
  using V = Vec<A>;
  const int64_t c = op.c, rows = op.row_count();
  const Labels<A> labels(op, s, r);
  A* const out = static_cast<A*>(op.rows) + r;
  const bool used = labels.at[0] >= 0, moments = FULL || op.slope;
  const A T = temperature<A>(op, r / op.d), inverse = 1 / T, m = row_max(z, c);
  A label_z[2] = {0, 0}, x_at[2] = {0, 0}, e_at[2] = {0, 0};
  for (int i = 0; i < 2; ++i)
    if (labels.at[i] >= 0) {
      label_z[i] = widen(z[labels.at[i]]);
      x_at[i] = (label_z[i] - m) / T;
      e_at[i] = exp_one(x_at[i]);
    }
  const A ranked = label_z[labels.larger];

  Sums<A> sums;  // of e and e * x without the labels
  V weighted{};
  over_row<A>(
      c, labels.at,
      [&](int64_t j) __attribute__((always_inline)) {
        const V v = load(z + j), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        sums.exponentials += e;
        if (moments) sums.add_moment(e, x);
        if (KEEP) store(kept + j, e);
        if (FULL) {
          sums.add_stats(v, ranked, iota<A>() >= 0);
          if (s.soft != 0) weighted += s.weight ? load(s.weight + j) * x : x;
        }
      },
      [&](int64_t j, int count) __attribute__((always_inline)) {
        const Int<A> lane = iota<A>(), inside = lane < count;
        const auto lane_of = [&](int64_t y) { return y >= j && y - j < count ? static_cast<int>(y - j) : -1; };
        const V v = load_some(z + j, count, m), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        const V others = keep<A>(inside & (lane != lane_of(labels.at[0])) & (lane != lane_of(labels.at[1])), e);
        sums.exponentials += others;
        if (moments) sums.add_moment(others, x);
        if (KEEP) store_some(kept + j, e, count);
        if (FULL) {
          sums.add_stats(v, ranked, inside);
          if (s.soft != 0) weighted += keep<A>(inside, s.weight ? load_some(s.weight + j, count, A(0)) * x : x);
        }
      });

  const A rest = sum<A>(sums.exponentials), total = rest + e_at[0] + e_at[1];
  // Where a label is the maximum its e is 1: log1p keeps what the others add to it.
  const A log_total = used && x_at[0] == 0                ? log1p_of(rest + e_at[1])
                      : labels.at[1] >= 0 && x_at[1] == 0 ? log1p_of(rest + e_at[0])
                                                          : log_of(total);
  const A moment = sum<A>(sums.moment), lowest = -__builtin_huge_val();
  A all_moment = moment, value = 0, slope = 0;
  for (int i = 0; i < 2; ++i) {
    if (labels.at[i] < 0) continue;
    const A other_e = e_at[1 - i], other_x = x_at[1 - i];
    if (e_at[i] > 0) all_moment += e_at[i] * x_at[i];
    value += labels.mass[i] * (log_total - x_at[i]);
    slope += labels.mass[i] * (moment + (other_e > 0 ? other_e * other_x : 0) -
                               (x_at[i] == lowest ? 0 : x_at[i] * (rest + other_e))) / total;
  }
  if (FULL && s.soft != 0 && used) {
    const A w = sum<A>(weighted);
    value += s.soft * (s.weight_sum * log_total - w);
    slope += s.soft * (s.weight_sum * all_moment / total - w);
  }
  static_cast<A*>(op.loss)[r] = value;
  out[kMax * rows] = m;
  out[kSum * rows] = total;
  out[kOthers * rows] = rest;
  out[kSlope * rows] = slope;
  if (FULL && op.stats) sums.write_stats(op, out, m, T, total, log_total, all_moment, used);
  return labels.gradient(s, static_cast<A>(op.grad_scale) * gradient_scale(op, T), e_at, rest, total);
}

template <class G> void clear_row(G* grad, int64_t c) {
  for (int64_t j = 0; j < c; ++j) grad[j] = G{};
}

// body(j, count) over whole vectors and the tail.
template <class A, class Body> FASTRANK_INLINE void over_vectors(int64_t c, Body body) {
  constexpr int width = Lanes<A>::width;
  int64_t j = 0;
  for (; j + width <= c; j += width) body(j, width);
  if (j < c) body(j, static_cast<int>(c - j));
}

template <class P> FASTRANK_INLINE auto load_up_to(const P* p, int count) -> Vec<Acc<P>> {
  return count == Lanes<Acc<P>>::width ? load(p) : load_some(p, count, Acc<P>(0));
}
template <class P> FASTRANK_INLINE void store_up_to(P* p, Vec<Acc<P>> v, int count) {
  count == Lanes<Acc<P>>::width ? store(p, v) : store_some(p, v, count);
}

// The gradient of a row from exponentials(j, count), which may read `grad`; zero where the row is ignored. One function
// for both passes, so that they leave the same bits.
template <class A, class G, class E>
FASTRANK_INLINE void write_gradient(const CrossEntropy& op, const Shared<A>& s, const Labels<A>& labels,
                                    const Gradient<A>& row, G* grad, E exponentials) {
  if (row.soft == 0)
    over_vectors<A>(op.c, [&](int64_t j, int count) __attribute__((always_inline)) {
      store_up_to(grad + j, exponentials(j, count) * row.each, count);
    });
  else
    over_vectors<A>(op.c, [&](int64_t j, int count) __attribute__((always_inline)) {
      const Vec<A> w = s.weight ? load_up_to(s.weight + j, count) : splat(A(1));
      store_up_to(grad + j, exponentials(j, count) * row.each - row.soft * w, count);
    });
  for (int i = 0; i < 2; ++i)
    if (labels.at[i] >= 0) grad[labels.at[i]] = narrow<G>(row.at[i]);
}

template <class S, class G>
void backward_row(const CrossEntropy& op, const Shared<Acc<S>>& s, const S* z, G* grad, int64_t r) {
  using A = Acc<S>;
  if (op.ignored(r)) return clear_row(grad, op.c);
  const int64_t rows = op.row_count();
  const Labels<A> labels(op, s, r);
  const A* const state = static_cast<const A*>(op.rows) + r;
  const A m = state[kMax * rows], total = state[kSum * rows], rest = state[kOthers * rows];
  const A T = temperature<A>(op, r / op.d), inverse = 1 / T;
  const A g = static_cast<const A*>(op.grad_loss)[r * op.grad_loss_stride] * static_cast<A>(op.grad_scale);
  A e_at[2] = {0, 0};  // now: grad may be z
  for (int i = 0; i < 2; ++i)
    if (labels.at[i] >= 0) e_at[i] = exp_one((widen(z[labels.at[i]]) - m) / T);
  const Gradient<A> row = labels.gradient(s, g * gradient_scale(op, T), e_at, rest, total);
  write_gradient(op, s, labels, row, grad, [&](int64_t j, int count) __attribute__((always_inline)) {
    return exp_of_nonpositive((load_up_to(z + j, count) - m) * inverse);
  });
}

// ---- class probabilities ----

// t_j of classes j .. j + count.
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
  const int64_t c = op.c, rows = op.row_count();
  A* const out = static_cast<A*>(op.rows) + r;
  const A T = temperature<A>(op, r / op.d), inverse = 1 / T, m = row_max(z, c);
  A ranked = 0;
  if (op.stats) {
    int64_t best = 0;
    for (int64_t j = 1; j < c; ++j) best = q[j] > q[best] ? j : best;
    ranked = widen(z[best]);
  }
  Sums<A> sums;
  V mass{}, weighted{};
  over_vectors<A>(c, [&](int64_t j, int count) __attribute__((always_inline)) {
    const Int<A> inside = iota<A>() < count;
    const V v = count == Lanes<A>::width ? load(z + j) : load_some(z + j, count, m);
    const V x = (v - m) * inverse, e = exp_of_nonpositive(x), t = target_mass(s, q, j, count);
    const V counted = keep<A>(inside, e);
    mass += t;
    weighted += t * x;
    sums.exponentials += counted;
    if (op.slope || op.stats) sums.add_moment(counted, x);
    if (op.stats) sums.add_stats(v, ranked, inside);
    if (KEEP) store_up_to(kept + j, e, count);
  });
  const A total = sum<A>(sums.exponentials), log_total = log_of(total), t = sum<A>(mass), tx = sum<A>(weighted);
  const A moment = sum<A>(sums.moment);
  static_cast<A*>(op.loss)[r] = t * log_total - tx;
  out[kMax * rows] = m;
  out[kSum * rows] = total;
  out[kOthers * rows] = t;
  out[kSlope * rows] = t * moment / total - tx;
  if (op.stats) sums.write_stats(op, out, m, T, total, log_total, moment, true);
  const A g = static_cast<A>(op.grad_scale) * gradient_scale(op, T);
  return {g * t / total, g, {0, 0}};
}

// dz_j = each * e_j - soft * t_j with e = exponentials(j, count).
template <class A, class G, class E>
FASTRANK_INLINE void write_soft_gradient(const CrossEntropy& op, const Shared<A>& s, const A* q,
                                         const Gradient<A>& row, G* grad, E exponentials) {
  over_vectors<A>(op.c, [&](int64_t j, int count) __attribute__((always_inline)) {
    store_up_to(grad + j, exponentials(j, count) * row.each - row.soft * target_mass(s, q, j, count), count);
  });
}

template <class S, class G>
void backward_soft_row(const CrossEntropy& op, const Shared<Acc<S>>& s, const S* z, const Acc<S>* q, G* grad,
                       int64_t r) {
  using A = Acc<S>;
  const int64_t rows = op.row_count();
  const A* const state = static_cast<const A*>(op.rows) + r;
  const A m = state[kMax * rows], total = state[kSum * rows], t = state[kOthers * rows];
  const A T = temperature<A>(op, r / op.d), inverse = 1 / T;
  const A g = static_cast<const A*>(op.grad_loss)[r * op.grad_loss_stride] * static_cast<A>(op.grad_scale) *
              gradient_scale(op, T);
  const Gradient<A> row = {g * t / total, g, {0, 0}};
  write_soft_gradient(op, s, q, row, grad, [&](int64_t j, int count) __attribute__((always_inline)) {
    return exp_of_nonpositive((load_up_to(z + j, count) - m) * inverse);
  });
}

// ---- rows in memory ----

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

// Rows [begin, end), `from(r)` being the first of each, one after the other in `tile`. The class runs outside:
// neighbouring rows of a [N, C, D] tensor are neighbours in memory.
template <class A, class From>
void gather(const CrossEntropy& op, int64_t begin, int64_t end, int64_t stride_c, From from, A* tile) {
  decltype(from(begin)) rows[kTileRows];
  for (int64_t r = begin; r < end; ++r) rows[r - begin] = from(r);
  for (int64_t j = 0; j < op.c; ++j)
    for (int64_t i = 0; i < end - begin; ++i) tile[i * op.c + j] = widen(rows[i][j * stride_c]);
}

template <class S> void scatter(const CrossEntropy& op, int64_t begin, int64_t end, const Acc<S>* tile) {
  S* to[kTileRows];
  for (int64_t r = begin; r < end; ++r) to[r - begin] = grad_of<S>(op, r);
  for (int64_t j = 0; j < op.c; ++j)
    for (int64_t i = 0; i < end - begin; ++i) to[i][j * op.grad_stride_c] = narrow<S>(tile[i * op.c + j]);
}

// row(z, q, grad, e, r) for each row: where rows are contiguous they are used in place, `e` being `scratch`; else they
// pass through a tile of acc, in which gradient and exponentials take the logits' place.
template <class S, class Row>
void over_rows(const CrossEntropy& op, int64_t begin, int64_t end, Acc<S>* scratch, Row row) {
  using A = Acc<S>;
  if (op.rows_contiguous()) {
    for (int64_t r = begin; r < end; ++r)
      row(logits_of<S>(op, r), op.probabilities ? probabilities_of<A>(op, r) : nullptr,
          op.grad ? grad_of<S>(op, r) : nullptr, scratch, r);
    return;
  }
  A* const probabilities = scratch + kTileRows * op.c;
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t last = first + kTileRows < end ? first + kTileRows : end;
    gather(op, first, last, op.stride_c, [&](int64_t r) { return logits_of<S>(op, r); }, scratch);
    if (op.probabilities)
      gather(op, first, last, op.probability_stride_c, [&](int64_t r) { return probabilities_of<A>(op, r); },
             probabilities);
    for (int64_t r = first; r < last; ++r) {
      A* const tile = scratch + (r - first) * op.c;
      row(static_cast<const A*>(tile), static_cast<const A*>(probabilities + (r - first) * op.c), tile, tile, r);
    }
    if (op.grad) scatter<S>(op, first, last, scratch);
  }
}

template <class S> void forward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  using A = Acc<S>;
  const Shared<A> s(op);
  const bool full = op.stats || op.smoothing != 0;
  over_rows<S>(op, begin, end, static_cast<A*>(scratch), [&](auto* z, const A* q, auto* grad, A* e, int64_t r) {
    const auto kept = [&](int64_t j, int count) __attribute__((always_inline)) { return load_up_to(e + j, count); };
    if (op.probabilities) {
      if (!op.grad) return void(forward_soft_row<false>(op, s, z, q, e, r));
      const auto gradient = forward_soft_row<true>(op, s, z, q, e, r);
      write_soft_gradient(op, s, q, gradient, grad, kept);
    } else if (!op.grad) {
      full ? forward_row<true, false>(op, s, z, e, r) : forward_row<false, false>(op, s, z, e, r);
    } else {
      const auto gradient = full ? forward_row<true, true>(op, s, z, e, r) : forward_row<false, true>(op, s, z, e, r);
      if (op.ignored(r)) return clear_row(grad, op.c);
      write_gradient(op, s, Labels<A>(op, s, r), gradient, grad, kept);
    }
  });
}

template <class S> void backward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  using A = Acc<S>;
  const Shared<A> s(op);
  over_rows<S>(op, begin, end, static_cast<A*>(scratch), [&](auto* z, const A* q, auto* grad, A*, int64_t r) {
    op.probabilities ? backward_soft_row(op, s, z, q, grad, r) : backward_row(op, s, z, grad, r);
  });
}

}  // namespace

void cross_entropy_forward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  switch (op.dtype) {
    case Dtype::f64: return forward<double>(op, begin, end, scratch);
    case Dtype::f32: return forward<float>(op, begin, end, scratch);
    case Dtype::bf16: return forward<Bf16>(op, begin, end, scratch);
    case Dtype::f16: return forward<F16>(op, begin, end, scratch);
  }
}

void cross_entropy_backward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  switch (op.dtype) {
    case Dtype::f64: return backward<double>(op, begin, end, scratch);
    case Dtype::f32: return backward<float>(op, begin, end, scratch);
    case Dtype::bf16: return backward<Bf16>(op, begin, end, scratch);
    case Dtype::f16: return backward<F16>(op, begin, end, scratch);
  }
}

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
