// Eigenvalues of a symmetric tridiagonal matrix between Sturm counts, many shifts at a time.
//
// The count comes from signs of the leading principal minors p_i of T - x I, which obey p_i = (d_i - x) p_{i-1} -
// e_{i-1}^2 p_{i-2}: no division. A computed sequence is the exact one of a T whose entries differ by a few roundings
// (DevNotes.md), so each count is exact for a matrix within `sturm_error` of T, and an interval between two counts
// holds the eigenvalue, up to that.
#pragma once

#include <math.h>

#include "small_eigh/vectors.h"

namespace fastrank {
namespace small_eigh {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// Vectors of shifts at once, to fill the time that a step of one of them takes.
#if defined(__AVX512F__)
constexpr int kShiftVectors = 4;
#else
constexpr int kShiftVectors = 3;
#endif
constexpr int kShifts = kShiftVectors * kLanes;
// Between two rescalings p neither overflows nor vanishes (DevNotes.md; m <= 2^14).
constexpr int64_t kScaled = 6;
constexpr double kLeast = 0x1p-120;
// Interpolations that an eigenvalue may take (about 8 are usual); then it is bisected, some 50 times at most.
constexpr int64_t kTries = 16;
constexpr int kPasses = 128;  // never reached

// Of kVectors vectors of shifts x: count = #{eigenvalues of T below x}, and the characteristic polynomial, of which p
// 2^exponent is the value up to a factor common to all shifts. e2[i] couples i - 1 and i; e2[0] is 0.
template <int kVectors>
inline void sturm_counts(const double* d, const double* e2, int64_t m, const double* x, int64_t* count, double* value,
                         int64_t* exponent) {
  V shift[kVectors], p[kVectors], before[kVectors];
  M changes[kVectors], powers[kVectors];
#pragma GCC unroll 4
  for (int s = 0; s < kVectors; ++s) {
    shift[s] = load(x + s * kLanes);
    p[s] = V{} + 1.0;
    before[s] = V{};
    changes[s] = powers[s] = M{};
  }
  for (int64_t first = 0; first < m; first += kScaled) {
    const int64_t last = first + kScaled < m ? first + kScaled : m;
    for (int64_t i = first; i < last; ++i) {
      const double di = d[i], ei = e2[i];
#pragma GCC unroll 4
      for (int s = 0; s < kVectors; ++s) {
        const V q = (di - shift[s]) * p[s] - ei * before[s];
        before[s] = p[s];
        p[s] = q;
        const M crossed = (M)q ^ (M)before[s];
        changes[s] += (crossed >> 63);  // -1 where the sign changed
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < kVectors; ++s) {
      // By a power of two, from the exponent of the larger of the two: 2^(1023 + 1023 - exponent) has field
      // 2046 - field.
      const M exponents = M{} + (int64_t{0x7ff} << 52);
      const M fp = (M)p[s] & exponents, fb = (M)before[s] & exponents;
      const M field = fp > fb ? fp : fb;
      const V scale = (V)((M{} + (int64_t{2046} << 52)) - field);
      p[s] *= scale;
      before[s] *= scale;
      powers[s] += field >> 52;
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < kVectors; ++s) {
    store(value + s * kLanes, p[s]);
    store(count + s * kLanes, -changes[s]);
    store(exponent + s * kLanes, powers[s]);
  }
}

// The same of n shifts; the arrays reach to the next multiple of kShifts.
inline void sturm_counts(const double* d, const double* e2, int64_t m, int64_t n, const double* x, int64_t* count,
                         double* value, int64_t* exponent) {
  for (; n > 0; n -= kShifts, x += kShifts, count += kShifts, value += kShifts, exponent += kShifts) {
    const int64_t vectors = ceil_div(n, kLanes);
    if (vectors >= kShiftVectors) sturm_counts<kShiftVectors>(d, e2, m, x, count, value, exponent);
    else if (vectors == 1) sturm_counts<1>(d, e2, m, x, count, value, exponent);
    else if (vectors == 2) sturm_counts<2>(d, e2, m, x, count, value, exponent);
    else sturm_counts<3>(d, e2, m, x, count, value, exponent);
  }
}

// Shifts, and the characteristic polynomial there.
struct Points {
  double *x, *value;
  int64_t* exponent;
  void copy(int64_t to, const Points& from, int64_t i) const {
    x[to] = from.x[i], value[to] = from.value[i], exponent[to] = from.exponent[i];
  }
  // Where the mask is set those of `yes`, else of `no`.
  void select(int64_t i, M mask, const Points& yes, const Points& no) const {
    const V at = mask ? load(yes.x + i) : load(no.x + i), f = mask ? load(yes.value + i) : load(no.value + i);
    const M power = mask ? load(yes.exponent + i) : load(no.exponent + i);
    store(x + i, at);
    store(value + i, f);
    store(exponent + i, power);
  }
};

// Intervals that hold the eigenvalues first <= k < end from below, in any order, each with the point `beyond` that was
// an end of it before. `tries` counts what was interpolated.
struct Intervals {
  Points lo, hi, beyond;
  int64_t *first, *end, *tries;
  int64_t size = 0;
  void copy(int64_t to, int64_t i) const {
    lo.copy(to, lo, i);
    hi.copy(to, hi, i);
    beyond.copy(to, beyond, i);
    first[to] = first[i], end[to] = end[i], tries[to] = tries[i];
  }
};

// 2^power of integers, those beyond 1000 cut to it.
inline V two_to(M power) {
  const M most = M{} + 1000;
  power = power > most ? most : power;
  power = power < -most ? -most : power;
  return (V)((power + 1023) << 52);
}

// Where to count next: in the middle, or, where one eigenvalue is left, at the root of the inverse quadratic through the
// three points if these look like one (Chandrupatla 1997), not nearer to an end than `step`. The choice decides only how
// many counts are needed: any number between the ends would do.
inline void choose(const Intervals& of, double step, double* x) {
  for (int64_t i = 0; i < of.size; i += kLanes) {
    const V lo = load(of.lo.x + i), hi = load(of.hi.x + i), c = load(of.beyond.x + i);
    const V f_lo = load(of.lo.value + i), f_hi = load(of.hi.value + i);
    const M e_lo = load(of.lo.exponent + i), e_hi = load(of.hi.exponent + i);
    // a is the point that came last, on whose side the interval was cut; the values are relative to b's.
    const M cut = c > hi;
    const V a = cut ? hi : lo, b = cut ? lo : hi, f_b = 1.0 / (cut ? f_lo : f_hi);
    const M e_b = cut ? e_lo : e_hi;
    const V f_a = (cut ? f_hi : f_lo) * f_b * two_to((cut ? e_hi : e_lo) - e_b);
    const V f_c = load(of.beyond.value + i) * f_b * two_to(load(of.beyond.exponent + i) - e_b);
    const V ab = f_a - 1, ac = f_c - f_a, bc = f_c - 1;
    const V root = a + f_a * (ac * f_c * (b - a) + ab * (c - a)) / (ab * ac * bc);
    // What Chandrupatla writes phi^2 < xi and (1 - phi)^2 < 1 - xi.
    const V all = magnitude(c - b), far = bc * bc;
    const M smooth = (f_a < 0) & (ab * ab * all < far * (hi - lo)) & (ac * ac * all < far * magnitude(c - a));
    const M alone = (load(of.end + i) - load(of.first + i) == 1) & (load(of.tries + i) < kTries);
    const M use = alone & smooth & (hi - lo > 2 * step);
    const V least = lo + step, most = hi - step;
    V to = root > least ? root : least;
    to = to < most ? to : most;
    store(x + i, use ? to : 0.5 * (lo + hi));
  }
}

// Cuts the intervals at the points `at`, where `count` eigenvalues are below.
inline void cut(Intervals& of, const Points& at, const int64_t* count) {
  const int64_t size = of.size;
  for (int64_t i = 0; i < size; ++i) {
    if (count[i] <= of.first[i] || count[i] >= of.end[i]) continue;
    // Eigenvalues on both sides: the right part is a new interval.
    const int64_t to = of.size++;
    of.lo.copy(to, at, i);
    of.hi.copy(to, of.hi, i);
    of.beyond.copy(to, of.lo, i);
    of.first[to] = count[i], of.end[to] = of.end[i], of.tries[to] = 0;
    of.end[i] = count[i];
  }
  for (int64_t i = 0; i < size; i += kLanes) {
    const M first = load(of.first + i), end = load(of.end + i), live = lane_numbers() + i < size;
    const M below = load(count + i) > first, left = live & below, right = live & ~below;
    of.beyond.select(i, right, of.lo, of.beyond);
    of.beyond.select(i, left, of.hi, of.beyond);
    of.lo.select(i, right, at, of.lo);
    of.hi.select(i, left, at, of.hi);
    const M tries = load(of.tries + i);
    store(of.tries + i, live & (end - first == 1) ? tries + 1 : tries);
  }
}

// values[m] of T, ascending; e2 as above, at least kLeast. Returns a bound on |values[i] - lambda_i(T)|. scratch: 16
// rows of m + kShifts + 8 numbers.
inline double bisect(const double* d, const double* e2, int64_t m, double* values, double* scratch) {
  double low = d[0], high = d[0], most = 0, e_most = 0;
  for (int64_t i = 0; i < m; ++i) {
    const double left = i ? sqrt(e2[i]) : 0, right = i + 1 < m ? sqrt(e2[i + 1]) : 0, reach = left + right;
    low = d[i] - reach < low ? d[i] - reach : low;
    high = d[i] + reach > high ? d[i] + reach : high;
    most = fabs(d[i]) > most ? fabs(d[i]) : most;
    e_most = right > e_most ? right : e_most;
  }
  // Gershgorin's discs, past their own rounding.
  const double pad = 8 * kU * (most + 2 * e_most) + 0x1p-1000;
  low -= pad;
  high += pad;
  const double extent = fabs(low) > fabs(high) ? fabs(low) : fabs(high);
  const double width = 2 * kU * extent;

  const int64_t room = ceil_div(m, kShifts) * kShifts + 8;  // no power of two: rows would meet in the cache
  const auto numbers = [&] { return (scratch += room) - room; };
  const auto integers = [&] { return reinterpret_cast<int64_t*>(numbers()); };
  const auto points = [&] { return Points{numbers(), numbers(), integers()}; };
  const Points at = points();
  int64_t* const count = integers();
  Intervals open{points(), points(), points(), integers(), integers(), integers()};

  // A grid first. At its ends Gershgorin has the counts.
  constexpr int kLast = kShifts - 1;
  for (int g = 0; g < kLast; ++g) at.x[g] = low + (high - low) * (static_cast<double>(g) / kLast);
  at.x[kLast] = high;
  sturm_counts(d, e2, m, kShifts, at.x, count, at.value, at.exponent);
  count[0] = 0;
  count[kLast] = m;
  for (int64_t g = 1, first = 0; g <= kLast; ++g) {
    if (count[g] <= first) continue;
    const int64_t to = open.size++;
    open.lo.copy(to, at, g - 1);
    open.hi.copy(to, at, g);
    open.beyond.copy(to, at, g > 1 ? g - 2 : 2);
    open.first[to] = first, open.end[to] = first = count[g], open.tries[to] = 0;
  }

  double widest = 0;
  for (int pass = 0; open.size; ++pass) {
    // An interval that is narrow enough is done, and so is one that no number can cut.
    for (int64_t i = open.size - 1; i >= 0; --i) {
      const double lo = open.lo.x[i], hi = open.hi.x[i], middle = 0.5 * (lo + hi);
      if (hi - lo > width && middle > lo && middle < hi && pass < kPasses) continue;
      for (int64_t k = open.first[i]; k < open.end[i]; ++k) values[k] = middle;
      widest = hi - lo > widest ? hi - lo : widest;
      open.copy(i, --open.size);
    }
    if (!open.size) break;
    choose(open, 0.9 * width, at.x);
    sturm_counts(d, e2, m, open.size, at.x, count, at.value, at.exponent);
    cut(open, at, count);
  }
  return 1.01 * (0.5 * widest + kU * extent + 3 * kU * (most + extent + e_most) + 0x1p-59);
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
