// Row kernels of the tempered cross-entropy (definitions in tempered_ce.h).
//
// Forward reads a row twice (maximum; exponentials), backward once: between the two reads the row lies in cache, so
// the memory sees N*C elements forward and 2*N*C backward. The backward pass computes the exponentials again: no slower
// than reading a stored gradient and scaling it (1024 x 1000 float32, one AVX-512 thread: 542 + 361 against
// 540 + 392 microseconds). A forward pass that writes the gradient for grad_loss = 1 on its way, though, replaces both
// where that is the grad_loss that comes (540 microseconds in all); where another comes, nothing was lost.
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
};

template <class A> Shared<A> shared(const CrossEntropy& op) {
  return {static_cast<const A*>(op.weight), static_cast<A>(op.weight_sum), static_cast<A>(1 - op.smoothing),
          static_cast<A>(op.smoothing / static_cast<double>(op.c))};
}

template <class A> A temperature(const CrossEntropy& op, int64_t n) {
  if (!op.temperature) return static_cast<A>(op.temperature_value);
  return static_cast<const A*>(op.temperature)[n * op.temperature_stride];
}

template <class A> A exp_one(A x) { return exp_of_nonpositive(splat(x))[0]; }

// body(j, count) for each stretch of a row: whole vectors, with the target's vector and the tail told apart.
// `plain(j)` gets whole vectors without the target (y = -1: none has it), `special(j, count)` the others.
template <class A, class Plain, class Special>
FASTRANK_INLINE void over_row(int64_t c, int64_t y, Plain plain, Special special) {
  constexpr int width = Lanes<A>::width;
  const int64_t whole = c / width * width;
  const int64_t target_at = y < 0 || y >= whole ? whole : y / width * width;
  int64_t j = 0;
  for (; j < target_at; j += width) plain(j);
  if (j < whole) {
    special(j, width);
    for (j += width; j < whole; j += width) plain(j);
  }
  if (whole < c) special(whole, static_cast<int>(c - whole));
}

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

// What grad_loss and the row's temperature and weight make of a gradient: dz_j = each * e_j, dz_y = target.
template <class A> struct Factors { A each, target; };

template <class A> Factors<A> factors(A g, A hard, A soft_weight, A rest, A total) {
  return {g * (hard + soft_weight) / total, g * (-hard * rest / total)};
}

// FULL: with label smoothing or stats. KEEP: leaves the exponentials in `kept` (which may be z) and returns the factors
// that turn them into the gradient for grad_loss = 1.
template <bool FULL, bool KEEP, class S>
Factors<Acc<S>> forward_row(const CrossEntropy& op, const Shared<Acc<S>>& s, const S* z, Acc<S>* kept, int64_t r) {
  using A = Acc<S>;
  using V = Vec<A>;
  const int64_t c = op.c, rows = op.row_count(), label = op.target[r];
  const int64_t y = label == op.ignore_index ? -1 : label;
  A* const out = static_cast<A*>(op.rows) + r;
  A* const loss = static_cast<A*>(op.loss) + r;

  const A T = temperature<A>(op, r / op.d), inverse = 1 / T, m = row_max(z, c);
  const A zy = y < 0 ? 0 : widen(z[y]);
  V others{}, moment{}, weighted{}, sum_z{}, sum_z2{};
  Int<A> above{};
  const auto add = [&](V v, V e, V x, Int<A> inside) __attribute__((always_inline)) {
    others += e;
    moment += e > A(0) ? e * x : e;  // e = 0 takes x = -inf out
    if constexpr (FULL) {
      const V kept = keep<A>(inside, v);
      sum_z += kept;
      sum_z2 += kept * kept;
      above -= inside & (v > zy);
    }
  };
  const auto smooth = [&](int64_t j, int count, V x) __attribute__((always_inline)) {
    if (!FULL || s.soft == 0) return;
    const Int<A> inside = iota<A>() < count;
    weighted += keep<A>(inside, s.weight ? load_some(s.weight + j, count, A(0)) * x : x);
  };
  over_row<A>(
      c, y,
      [&](int64_t j) __attribute__((always_inline)) {
        const V v = load(z + j), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        add(v, e, x, iota<A>() >= 0);
        if (KEEP) store(kept + j, e);
        if (FULL && s.soft != 0) weighted += s.weight ? load(s.weight + j) * x : x;
      },
      [&](int64_t j, int count) __attribute__((always_inline)) {
        const Int<A> inside = iota<A>() < count;
        const int target_lane = y >= j && y - j < count ? static_cast<int>(y - j) : -1;
        const Int<A> counted = inside & (iota<A>() != target_lane);
        const V v = load_some(z + j, count, m), x = (v - m) * inverse, e = exp_of_nonpositive(x);
        add(v, keep<A>(counted, e), x, inside);
        if (KEEP) store_some(kept + j, e, count);
        smooth(j, count, x);
      });

  const A xy = y < 0 ? 0 : (zy - m) / T, ey = y < 0 ? 0 : exp_one(xy);
  const A rest = sum<A>(others), total = rest + ey;
  const A log_total = xy == 0 && y >= 0 ? log1p_of(rest) : log_of(total);
  const A all_moment = sum<A>(moment), moment_y = ey > 0 ? ey * xy : 0;
  const A hard = y < 0 ? 0 : s.hard * (s.weight ? s.weight[y] : 1);
  A value = 0, slope = 0;
  if (y >= 0) {
    value = hard * (log_total - xy);
    slope = hard * (all_moment - (xy == -__builtin_huge_val() ? 0 : xy * rest)) / total;
    if (FULL && s.soft != 0) {
      const A w = sum<A>(weighted);
      value += s.soft * (s.weight_sum * log_total - w);
      slope += s.soft * (s.weight_sum * (all_moment + moment_y) / total - w);
    }
  }
  *loss = value;
  out[kMax * rows] = m;
  out[kSum * rows] = total;
  out[kOthers * rows] = rest;
  out[kSlope * rows] = slope;
  if (FULL && op.stats) {
    A rank = 0;
    for (int i = 0; i < Lanes<A>::width; ++i) rank += static_cast<A>(above[i]);
    out[kLogsumexp * rows] = m / T + log_total;
    out[kMaxProb * rows] = 1 / total;
    out[kEntropy * rows] = log_total - (all_moment + moment_y) / total;
    out[kSumZ * rows] = sum<A>(sum_z);
    out[kSumZ2 * rows] = sum<A>(sum_z2);
    out[kTargetRank * rows] = y < 0 ? -1 : rank;
  }
  return factors<A>(static_cast<A>(op.grad_scale) / T, hard, 0, rest, total);
}

template <class G> void clear_row(G* grad, int64_t c) {
  for (int64_t j = 0; j < c; ++j) grad[j] = G{};
}

// The gradient of a row from its exponentials (which may be `grad`); zero where the row is ignored.
template <class G>
void write_gradient(const CrossEntropy& op, const Acc<G>* e, const Factors<Acc<G>>& factor, G* grad, int64_t r) {
  using A = Acc<G>;
  constexpr int width = Lanes<A>::width;
  const int64_t c = op.c, y = op.target[r];
  if (y == op.ignore_index) return clear_row(grad, c);
  int64_t j = 0;
  for (; j + width <= c; j += width) store(grad + j, load(e + j) * factor.each);
  if (j < c) store_some(grad + j, load_some(e + j, static_cast<int>(c - j), A(0)) * factor.each, static_cast<int>(c - j));
  grad[y] = narrow<G>(factor.target);
}

template <bool SMOOTH, class S, class G>
void backward_row(const CrossEntropy& op, const Shared<Acc<S>>& s, const S* z, G* grad, int64_t r) {
  using A = Acc<S>;
  using V = Vec<A>;
  constexpr int width = Lanes<A>::width;
  const int64_t c = op.c, rows = op.row_count(), y = op.target[r];
  const A* const state = static_cast<const A*>(op.rows) + r;
  const A m = state[kMax * rows], total = state[kSum * rows], rest = state[kOthers * rows];
  const A T = temperature<A>(op, r / op.d), inverse = 1 / T;
  const A g = static_cast<const A*>(op.grad_loss)[r * op.grad_loss_stride] * static_cast<A>(op.grad_scale) / T;
  const A hard = s.hard * (s.weight ? s.weight[y] : 1);
  const A ey = SMOOTH ? exp_one((widen(z[y]) - m) / T) : 0;  // now: grad may be z
  const Factors<A> factor = factors<A>(g, hard, SMOOTH ? s.soft * s.weight_sum : 0, rest, total);
  const A soft = g * s.soft;

  const auto gradient = [&](V v, V w) __attribute__((always_inline)) {
    const V p = exp_of_nonpositive((v - m) * inverse) * factor.each;
    return SMOOTH ? p - soft * w : p;
  };
  int64_t j = 0;
  for (; j + width <= c; j += width)
    store(grad + j, gradient(load(z + j), SMOOTH && s.weight ? load(s.weight + j) : splat(A(1))));
  if (j < c) {
    const int count = static_cast<int>(c - j);
    const V w = SMOOTH && s.weight ? load_some(s.weight + j, count, A(0)) : splat(A(1));
    store_some(grad + j, gradient(load_some(z + j, count, m), w), count);
  }
  const A smooth = SMOOTH ? soft * (s.weight_sum * ey / total - (s.weight ? s.weight[y] : 1)) : 0;
  grad[y] = narrow<G>(factor.target + smooth);
}

template <class S> const S* logits_of(const CrossEntropy& op, int64_t r) {
  return static_cast<const S*>(op.logits) + r / op.d * op.stride_n + r % op.d * op.stride_d;
}

// Rows [begin, end) of logits, one after the other in `tile`. The class runs outside: neighbouring rows of a
// [N, C, D] tensor are neighbours in memory.
template <class S> void gather(const CrossEntropy& op, int64_t begin, int64_t end, Acc<S>* tile) {
  const S* from[kTileRows];
  for (int64_t r = begin; r < end; ++r) from[r - begin] = logits_of<S>(op, r);
  for (int64_t j = 0; j < op.c; ++j)
    for (int64_t i = 0; i < end - begin; ++i) tile[i * op.c + j] = widen(from[i][j * op.stride_c]);
}

template <class S> S* grad_of(const CrossEntropy& op, int64_t r) {
  return static_cast<S*>(op.grad) + r / op.d * op.grad_stride_n + r % op.d * op.grad_stride_d;
}

template <class S> void scatter(const CrossEntropy& op, int64_t begin, int64_t end, const Acc<S>* tile) {
  S* to[kTileRows];
  for (int64_t r = begin; r < end; ++r) to[r - begin] = grad_of<S>(op, r);
  for (int64_t j = 0; j < op.c; ++j)
    for (int64_t i = 0; i < end - begin; ++i) to[i][j * op.grad_stride_c] = narrow<S>(tile[i * op.c + j]);
}

template <bool FULL, bool KEEP, class S>
void forward(const CrossEntropy& op, int64_t begin, int64_t end, Acc<S>* scratch) {
  const auto common = shared<Acc<S>>(op);
  if (op.stride_c == 1 && (!KEEP || op.grad_stride_c == 1)) {
    for (int64_t r = begin; r < end; ++r) {
      const auto factor = forward_row<FULL, KEEP>(op, common, logits_of<S>(op, r), scratch, r);
      if (KEEP) write_gradient(op, scratch, factor, grad_of<S>(op, r), r);
    }
    return;
  }
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t last = first + kTileRows < end ? first + kTileRows : end;
    gather<S>(op, first, last, scratch);
    for (int64_t r = first; r < last; ++r) {
      Acc<S>* const tile = scratch + (r - first) * op.c;
      const auto factor = forward_row<FULL, KEEP>(op, common, static_cast<const Acc<S>*>(tile), tile, r);
      if (KEEP) write_gradient(op, tile, factor, tile, r);
    }
    if (KEEP) scatter<S>(op, first, last, scratch);
  }
}

template <bool SMOOTH, class S>
void backward(const CrossEntropy& op, int64_t begin, int64_t end, Acc<S>* scratch) {
  const auto common = shared<Acc<S>>(op);
  const auto row = [&](const auto* z, auto* grad, int64_t r) {
    if (op.target[r] == op.ignore_index) return clear_row(grad, op.c);
    backward_row<SMOOTH>(op, common, z, grad, r);
  };
  if (op.stride_c == 1 && op.grad_stride_c == 1) {
    for (int64_t r = begin; r < end; ++r)
      row(logits_of<S>(op, r), grad_of<S>(op, r), r);
    return;
  }
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t last = first + kTileRows < end ? first + kTileRows : end;
    gather<S>(op, first, last, scratch);
    for (int64_t r = first; r < last; ++r) {
      Acc<S>* const tile = scratch + (r - first) * op.c;
      row(static_cast<const Acc<S>*>(tile), tile, r);
    }
    scatter<S>(op, first, last, scratch);
  }
}

template <class S> void forward_dtype(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  const auto tile = static_cast<Acc<S>*>(scratch);
  if (op.stats || op.smoothing != 0)
    op.grad ? forward<true, true, S>(op, begin, end, tile) : forward<true, false, S>(op, begin, end, tile);
  else
    op.grad ? forward<false, true, S>(op, begin, end, tile) : forward<false, false, S>(op, begin, end, tile);
}

template <class S> void backward_dtype(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  const auto tile = static_cast<Acc<S>*>(scratch);
  op.smoothing != 0 ? backward<true, S>(op, begin, end, tile) : backward<false, S>(op, begin, end, tile);
}

}  // namespace

void cross_entropy_forward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  switch (op.dtype) {
    case Dtype::f64: return forward_dtype<double>(op, begin, end, scratch);
    case Dtype::f32: return forward_dtype<float>(op, begin, end, scratch);
    case Dtype::bf16: return forward_dtype<Bf16>(op, begin, end, scratch);
    case Dtype::f16: return forward_dtype<F16>(op, begin, end, scratch);
  }
}

void cross_entropy_backward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  switch (op.dtype) {
    case Dtype::f64: return backward_dtype<double>(op, begin, end, scratch);
    case Dtype::f32: return backward_dtype<float>(op, begin, end, scratch);
    case Dtype::bf16: return backward_dtype<Bf16>(op, begin, end, scratch);
    case Dtype::f16: return backward_dtype<F16>(op, begin, end, scratch);
  }
}

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
