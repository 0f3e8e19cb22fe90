// Symmetric eigenvalue problems in fp64, each with a bound on its own error; DevNotes.md derives the bounds.
//
// A matrix is the lower triangle of m rows with stride ld; nothing above the diagonal is read. One thread works on a
// matrix; schedule.h spreads a call's matrices over threads.
#pragma once

#include <stdint.h>

namespace fastrank {
namespace small_eigh {

// Doubles of workspace that each function needs for an m x m matrix, at a multiple of 64 bytes.
inline int64_t round_up(int64_t m, int64_t to) { return (m + to - 1) / to * to; }
inline int64_t leading(int64_t m) { return round_up(m, 8) + 8; }  // odd multiples of 64 bytes spread over cache sets
inline int64_t packed_size(int64_t m) { return round_up(m, 8) * (round_up(m, 8) + 8) / 2; }  // a lower triangle
inline int64_t values_workspace(int64_t m) { return packed_size(m) + 20 * round_up(m + 64, 64); }
constexpr int64_t kMostPanel = 48;  // rows, in ldlt.h
inline int64_t inertia_workspace(int64_t m) { return (round_up(m, 8) + kMostPanel + 4) * leading(m); }
inline int64_t vectors_workspace(int64_t m) { return 2 * m * leading(m); }

constexpr int64_t kMostVectors = 64;  // Jacobi, whose matrices stay in L1

struct Kernels {
  // values[m], ascending; returns the error bound: every |values[i] - lambda_i| is at most that. NaN where G is not
  // finite.
  double (*values)(const double* g, int64_t ld, int64_t m, double* values, double* workspace);
  // *count: the eigenvalues above `shift` of some matrix within the returned slack of G; -1 where G is not finite.
  double (*inertia)(const double* g, int64_t ld, int64_t m, double shift, int64_t* count, double* workspace);
  // values[m], ascending, and q [m, m] with the eigenvectors as columns; m <= kMostVectors.
  void (*vectors)(const double* g, int64_t ld, int64_t m, double* values, double* q, double* workspace);
};

#define FASTRANK_EIGH_DECLARE(isa) \
  namespace isa {                  \
  extern const Kernels kKernels;   \
  }
FASTRANK_EIGH_DECLARE(isa_scalar)
FASTRANK_EIGH_DECLARE(isa_avx2)
FASTRANK_EIGH_DECLARE(isa_avx512)
#undef FASTRANK_EIGH_DECLARE

}  // namespace small_eigh
}  // namespace fastrank
