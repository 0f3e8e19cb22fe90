// Eigenvalues and eigenvectors of a small symmetric matrix by cyclic Jacobi rotations, which find small eigenvectors
// as well as large ones and leave the vectors orthonormal to a few roundings. Eigenvalues may be negative; where none
// is, rsvd/small.h has a faster one.
#pragma once

#include <math.h>

#include "small_eigh/vectors.h"

namespace fastrank {
namespace small_eigh {
namespace FASTRANK_ISA_NAMESPACE {

// Rows p and q of a: (p, q) <- (c p - s q, s p + c q), over `length` numbers, a multiple of kLanes.
inline void rotate(double* p, double* q, double c, double s, int64_t length) {
  for (int64_t j = 0; j < length; j += kLanes) {
    const V x = load(p + j), y = load(q + j);
    store(p + j, c * x - s * y);
    store(q + j, s * x + c * y);
  }
}

// A [m, ld], symmetric and full, and Q [m, ld], which becomes the eigenvectors as rows, in the order of A's diagonal.
// ld is a multiple of kLanes; columns from m on are 0. Converges quadratically: 6 to 9 sweeps.
inline void jacobi(double* a, double* q, int64_t ld, int64_t m) {
  constexpr int kSweeps = 30;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < ld; ++j) q[i * ld + j] = i == j;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool rotated = false;
    for (int64_t i = 0; i + 1 < m; ++i)
      for (int64_t j = i + 1; j < m; ++j) {
        const double off = a[i * ld + j], x = a[i * ld + i], y = a[j * ld + j];
        // Relative to both diagonal numbers, so that small eigenvalues of a graded matrix keep their digits.
        if (off * off <= kU * kU * fabs(x * y) || fabs(off) < 0x1p-500) continue;
        rotated = true;
        const double theta = (y - x) / (2 * off);
        const double t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(1 + theta * theta));
        const double c = 1 / sqrt(1 + t * t), s = t * c;
        rotate(a + i * ld, a + j * ld, c, s, ld);
        rotate(q + i * ld, q + j * ld, c, s, ld);
        // The columns follow from symmetry, and the 2 x 2 block from the formulas.
        for (int64_t k = 0; k < m; ++k) {
          a[k * ld + i] = a[i * ld + k];
          a[k * ld + j] = a[j * ld + k];
        }
        a[i * ld + i] = x - t * off;
        a[j * ld + j] = y + t * off;
        a[i * ld + j] = a[j * ld + i] = 0;
      }
    if (!rotated) break;
  }
}

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace small_eigh
}  // namespace fastrank
