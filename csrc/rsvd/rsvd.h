// Test matrices, sketches and warm steps of block subspace iteration on the CPU.
//
// The work is products of A with blocks of a few dozen columns, padded with zeros to whole vectors ("width") or packed
// (pack()). cpu.cpp's parts have them, once per instruction set, and the small dense algebra (small.h); step.h spreads
// them over matrices, row ranges and threads. Products are in T: float for float32 and 16-bit data, double for float64.
// Everything of size q x q is double.
#pragma once

#include <stdint.h>

namespace fastrank {
namespace rsvd {

enum class DType : int { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };
enum class Kind : int { gaussian = 0, rademacher = 1, sparse_sign = 2 };

// [rows, columns], elements of a row side by side.
struct Matrix {
  const void* data;
  DType dtype;
  int64_t rows, columns, stride;
};

// Terms that times() and times_packed() add up in T before they join the rest. A number of A X has at most
// kDepth + d / kDepth roundings.
constexpr int64_t kDepth = 256;
// Rows of A that are multiplied by V, and their transpose by the result, while they are in the cache; so many terms of
// A^T Y are added up in T before they join the rest.
constexpr int64_t kBlockRows = 32;

// Small matrices are square with rows of `ld` doubles, zero beyond the q of the columns.
struct Kernels {
  int64_t lanes;         // widths are multiples of it
  int64_t element_size;  // of T

  // `count` rows of [rows, columns] in T, side by side, from data of any type.
  void (*widen)(const Matrix& a, int64_t row, int64_t count, void* to);
  // to[rows, width] = x[rows, columns] (row stride ld), and zeros
  void (*copy)(const void* x, int64_t ld, int64_t rows, int64_t columns, void* to, int64_t width);
  // y[rows, width] = or += a[rows, depth] x[depth, width]
  void (*times)(const void* a, int64_t lda, int64_t rows, int64_t depth, const void* x, int64_t width, void* y,
                bool add);
  // x[rows, columns] (row stride ld) times scale, as times_packed() reads it: no more than round_up(rows, 4) padded rows
  void (*pack)(const void* x, int64_t ld, int64_t rows, int64_t columns, double scale, void* packed);
  // y[rows, width] = a[rows, depth] x[depth, columns], with zeros behind the columns up to whole vectors, `width`
  void (*times_packed)(const void* a, int64_t lda, int64_t rows, int64_t depth, const void* packed, int64_t columns,
                       void* y, int64_t width);
  // z[columns, ldz] = or += x[rows, :columns]^T a[rows, depth], rows <= kBlockRows; ldz: `depth`, and whole vectors
  void (*turned_columns)(const void* a, int64_t lda, int64_t rows, int64_t depth, const void* x, int64_t width,
                         int64_t columns, void* z, int64_t ldz, bool add);
  // to[rows, width] = z[columns, ldz]^T and zeros
  void (*upright)(const void* z, int64_t ldz, int64_t rows, int64_t columns, void* to, int64_t width);
  // z[depth, width] += a[rows, depth]^T x[rows, width], rows <= kBlockRows
  void (*turned)(const void* a, int64_t lda, int64_t rows, int64_t depth, const void* x, int64_t width, void* z);
  // The same of a in float, widened on the way.
  void (*times_floats)(const void* a, int64_t lda, int64_t rows, int64_t depth, const void* x, int64_t width, void* y,
                       bool add);
  void (*turned_floats)(const void* a, int64_t lda, int64_t rows, int64_t depth, const void* x, int64_t width, void* z);
  // The lower triangle of g[:columns, :columns] += x^T x, g [width, width], x [rows, width]; above it nothing is meant.
  void (*gram)(const void* x, int64_t rows, int64_t width, int64_t columns, double* g);
  // y[rows, :columns] (row stride ldy) = the first `depth` columns of x[rows, width] times m[depth, ld], rounded to T
  // once; y may lie in x
  void (*product)(const void* x, int64_t rows, int64_t width, const double* m, int64_t depth, int64_t ld, int64_t columns,
                  void* y, int64_t ldy);
  // sums[j] += sum over rows of ((z x - v y)_j)^2, for z [rows, width], v [rows, q], x and y [width, width]; products
  // in T
  void (*difference)(const void* z, const void* v, int64_t rows, int64_t width, int64_t q, const double* x,
                     const double* y, double* sums);
  // sums[j] += sum over rows of (r - u s)_j^2, for j < k; r [rows, width], u [rows, k]
  void (*residual)(const void* r, int64_t width, const void* u, const double* s, int64_t rows, int64_t k, double* sums);
  // sum of (scale a_ij)^2 over a[rows, columns], of a few squares in T, then in double
  double (*squares)(const void* a, int64_t lda, int64_t rows, int64_t columns, double scale);
  // found[0] += sum of (x - y)^2, found[1] += sum of x^2, each x - y rounded to T and of a few squares in T
  void (*distance)(const void* x, int64_t ldx, const void* y, int64_t ldy, int64_t rows, int64_t columns, double* found);
  // to[i] = sum over parts p of from[p * stride + i]
  void (*sum)(const void* from, int64_t parts, int64_t stride, int64_t count, void* to);
  // The largest |a_ij| of some rows; NaN and infinities are infinite.
  double (*largest)(const Matrix& a, int64_t row, int64_t count);

  // Rows [first, first + rows) of a test matrix, row stride ld.
  void (*test_matrix)(int64_t first, int64_t rows, int64_t columns, uint64_t seed, uint32_t stream, Kind kind, void* to,
                      int64_t ld);

  // small.h
  void (*orthonormaliser)(const double* g, int64_t q, int64_t ld, double dependent, const int64_t* order, double* turned,
                          double* space);
  void (*eigen)(const double* g, int64_t q, int64_t ld, double tolerance, double* roots, double* turned, double* space);
  // c = t g t^T
  void (*congruence)(const double* t, const double* g, int64_t q, int64_t ld, double* c, double* space);
  // c = a b
  void (*multiply)(const double* a, const double* b, int64_t q, int64_t ld, double* c);
};

#define FASTRANK_RSVD_DECLARE(isa)  \
  namespace isa {                   \
  extern const Kernels kDouble;     \
  extern const Kernels kFloat;      \
  }
FASTRANK_RSVD_DECLARE(isa_scalar)
FASTRANK_RSVD_DECLARE(isa_avx2)
FASTRANK_RSVD_DECLARE(isa_avx512)
#undef FASTRANK_RSVD_DECLARE

}  // namespace rsvd
}  // namespace fastrank
