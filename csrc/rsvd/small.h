// Dense algebra of a few dozen rows, in double: what a step of subspace iteration does between its products. Rows are
// padded with zeros to whole vectors.
#pragma once

#include "rsvd/limits.h"
#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

// (a, b) = (c a - s b, s a + c b)
inline void rotate(double* a, double* b, double c, double s, int64_t ld) {
  using V = Vector<double, kLanes<double>>;
  const V cosine = every<V>(c), sine = every<V>(s);
  for (int64_t i = 0; i < ld; i += kLanes<double>) {
    const V x = load<V>(a + i), y = load<V>(b + i);
    store(a + i, fma(cosine, x, -sine * y));
    store(b + i, fma(sine, x, cosine * y));
  }
}

// The sum of the lanes: halves are added until one is left.
inline double added(Vector<double, kLanes<double>> x) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  // The unmasked forms make GCC 12 warn about its own header.
  const __m256d four =
      _mm512_maskz_extractf64x4_pd(0xf, (__m512d)x, 0) + _mm512_maskz_extractf64x4_pd(0xf, (__m512d)x, 1);
#else
  const __m256d four = (__m256d)x;
#endif
  const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
  return two[0] + two[1];
#else
  double lanes[kLanes<double>];
  store(lanes, x);
  for (int64_t half = kLanes<double> / 2; half; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

inline double dot(const double* a, const double* b, int64_t ld) {
  using V = Vector<double, kLanes<double>>;
  V sum = {};
  for (int64_t i = 0; i < ld; i += kLanes<double>) sum = fma(load<V>(a + i), load<V>(b + i), sum);
  return added(sum);
}

// y += a x
inline void axpy(double a, const double* x, double* y, int64_t ld) {
  using V = Vector<double, kLanes<double>>;
  const V factor = every<V>(a);
  for (int64_t i = 0; i < ld; i += kLanes<double>) store(y + i, fma(factor, load<V>(x + i), load<V>(y + i)));
}

inline void multiply(const double* a, const double* b, int64_t q, int64_t ld, double* c) {
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j < ld; ++j) c[i * ld + j] = 0;
    for (int64_t k = 0; k < q; ++k) axpy(a[i * ld + k], b + k * ld, c + i * ld, ld);
  }
}

inline void congruence(const double* t, const double* g, int64_t q, int64_t ld, double* c, double* space) {
  multiply(t, g, q, ld, space);
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < ld; ++j) c[i * ld + j] = j < q ? dot(space + i * ld, t + j * ld, ld) : 0;
}

// The transpose of T [q, q] with T^T G T the identity: by Cholesky of G with a unit diagonal. A column that the ones
// before it leave less than `dependent` of has a zero column in T. `order` says who comes before whom; null: the largest
// remainder comes first. `space` has 2 q ld doubles.
inline void orthonormaliser(const double* g, int64_t q, int64_t ld, double dependent, const int64_t* order,
                            double* turned, double* space) {
  double* const rest = space;
  double* const row = rest + q * ld;
  double* const scale = row + ld;
  bool done[kMaxColumns] = {};
  for (int64_t i = 0; i < q; ++i) scale[i] = g[i * ld + i] > 0 ? 1 / __builtin_sqrt(g[i * ld + i]) : 0;
  for (int64_t i = 0; i < q; ++i)
    for (int64_t j = 0; j < ld; ++j) {
      rest[i * ld + j] = j < q ? g[i * ld + j] * scale[i] * scale[j] : 0;
      turned[i * ld + j] = i == j ? scale[i] : 0;
    }
  for (int64_t step = 0; step < q; ++step) {
    int64_t p = order ? order[step] : -1;
    for (int64_t i = 0; !order && i < q; ++i)
      if (!done[i] && (p < 0 || rest[i * ld + i] > rest[p * ld + p])) p = i;
    done[p] = true;
    const double left = rest[p * ld + p];
    double* const mine = turned + p * ld;
    if (!(left > dependent * dependent)) {
      for (int64_t j = 0; j < ld; ++j) mine[j] = 0;
      continue;
    }
    const double factor = 1 / __builtin_sqrt(left);
    for (int64_t j = 0; j < ld; ++j) {
      row[j] = rest[p * ld + j] * factor;
      mine[j] *= factor;
    }
    for (int64_t i = 0; i < q; ++i) {
      if (done[i]) continue;
      axpy(-row[i], mine, turned + i * ld, ld);
      axpy(-row[i], row, rest + i * ld, ld);
    }
  }
}

// The eigenvalues of G, as their square roots in descending order, and the transpose of its eigenvectors: Cholesky with
// pivoting, G = F^T F, and one-sided Jacobi on the columns of F (Demmel & Veselic, Jacobi's method is more accurate than
// QR, 1992), which keeps small eigenvalues of a graded G accurate. Rotations stop at cosines of `tolerance`. The other
// Jacobi, small_eigh/jacobi.h, would do the same at about twice the time (AVX-512, 27 and 64 columns, eigenvalues
// over half a decade to twelve); this one cannot take its place, as it wants no negative eigenvalue.
// `space` has (2 q + 2) ld doubles.
inline void eigen(const double* g, int64_t q, int64_t ld, double tolerance, double* roots, double* turned,
                  double* space) {
  constexpr double kEps = 0x1p-52;
  double* const rest = space;              // [q, ld]
  double* const columns = rest + q * ld;   // [q, ld]: row j is column j of F
  double* const row = columns + q * ld;
  bool done[kMaxColumns] = {};
  for (int64_t i = 0; i < q * ld; ++i) rest[i] = g[i], columns[i] = 0, turned[i] = 0;
  for (int64_t step = 0; step < q; ++step) {
    int64_t p = -1;
    for (int64_t i = 0; i < q; ++i)
      if (!done[i] && (p < 0 || rest[i * ld + i] > rest[p * ld + p])) p = i;
    done[p] = true;
    const double left = rest[p * ld + p];
    if (!(left > static_cast<double>(q) * kEps * g[p * ld + p])) continue;
    const double factor = 1 / __builtin_sqrt(left);
    for (int64_t j = 0; j < ld; ++j) row[j] = rest[p * ld + j] * factor;
    for (int64_t i = 0; i < q; ++i) {
      if (i != p && done[i]) continue;
      columns[i * ld + step] = row[i];
      if (i != p) axpy(-row[i], row, rest + i * ld, ld);
    }
  }
  for (int64_t i = 0; i < q; ++i) turned[i * ld + i] = 1;

  double* const norms = row;  // squared
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int64_t i = 0; i < q; ++i) norms[i] = dot(columns + i * ld, columns + i * ld, ld);
    bool rotated = false;
    // Round after round of disjoint pairs (the schedule of a tournament): all dot products, then all angles, then turns.
    const int64_t players = q + q % 2, others = players - 1;
    for (int64_t round = 0; round < others; ++round) {
      int64_t low[kMaxColumns / 2], high[kMaxColumns / 2], count = 0;
      double product[kMaxColumns / 2], first[kMaxColumns / 2], second[kMaxColumns / 2];
      double tangent[kMaxColumns / 2], cosine[kMaxColumns / 2];
      for (int64_t pair = 0; pair < players / 2; ++pair) {
        const int64_t up = round + pair, down = round - pair;  // modulo `others`
        const int64_t x = !pair ? others : up < others ? up : up - others, y = down < 0 ? down + others : down;
        const int64_t i = x < y ? x : y, j = x < y ? y : x;
        if (j >= q) continue;
        const double both = dot(columns + i * ld, columns + j * ld, ld);
        if (!(both * both > tolerance * tolerance * norms[i] * norms[j])) continue;
        low[count] = i, high[count] = j, product[count] = both, first[count] = norms[i], second[count++] = norms[j];
      }
      for (int64_t p = 0; p < count; ++p) {
        const double zeta = (second[p] - first[p]) / (2 * product[p]);
        const double root = __builtin_sqrt(1 + zeta * zeta);
        const double t = 1 / (zeta >= 0 ? zeta + root : zeta - root);
        tangent[p] = t, cosine[p] = 1 / __builtin_sqrt(1 + t * t);
      }
      for (int64_t p = 0; p < count; ++p) {
        const int64_t i = low[p], j = high[p];
        const double c = cosine[p], s = c * tangent[p];
        rotate(columns + i * ld, columns + j * ld, c, s, ld);
        rotate(turned + i * ld, turned + j * ld, c, s, ld);
        norms[i] -= tangent[p] * product[p];
        norms[j] += tangent[p] * product[p];
      }
      rotated = rotated || count;
    }
    if (!rotated) break;
  }
  // Selection sort: rows of `turned` move with their values.
  for (int64_t i = 0; i < q; ++i) roots[i] = __builtin_sqrt(dot(columns + i * ld, columns + i * ld, ld));
  for (int64_t i = 0; i < q; ++i) {
    int64_t best = i;
    for (int64_t j = i + 1; j < q; ++j)
      if (roots[j] > roots[best]) best = j;
    if (best == i) continue;
    const double value = roots[i];
    roots[i] = roots[best], roots[best] = value;
    for (int64_t k = 0; k < ld; ++k) {
      const double x = turned[i * ld + k];
      turned[i * ld + k] = turned[best * ld + k], turned[best * ld + k] = x;
    }
  }
}

}  // namespace
}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
