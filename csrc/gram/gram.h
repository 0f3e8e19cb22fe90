// Gram matrices: C[i][j] += sum_k a(k, i) a(k, j) for i >= j, with fp64 results.
//
// One problem serves both ops. gram_accumulate_ sums over the rows of X, so a(k, i) = X[k][i] - shift[i];
// gram_dual sums over its columns, so a(k, i) = X[i][k]. Matrix holds the strides, and nothing is copied first.
//
// The CPU path packs a chunk of rows into panels (converting, shifting and summing on the way) and multiplies the
// panels; cpu.cpp has both steps, once per instruction set, and schedule.h spreads them over threads.
#pragma once

#include <stdint.h>

namespace fastrank {
namespace gram {

enum class DType : int { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };

// a(k, i) lies at data + (k / inner) * stride_outer + (k % inner) * stride_inner + i * stride_column, in elements.
// A channel view [B, d, S] has rows = B * S and inner = S; a plain matrix has inner = rows.
struct Matrix {
  const void* data;
  DType dtype;
  int64_t rows, columns, inner;
  int64_t stride_outer, stride_inner, stride_column;
};

// Exact: fp64 products and sums (a product of two fp32 or 16-bit numbers is exact there).
// Fast: fp32 products and sums inside a chunk, fp64 across chunks. fp64 input is always exact.
// Digits: the numbers rounded to 24 bits of the largest in a column of a chunk, and their exact products (digits.cpp).
constexpr int64_t kExactChunk = 256;
constexpr int64_t kFastChunk = 128;
constexpr int64_t kDigitsChunk = 512;

// The most fp64 roundings that one product goes through: `before` on its way to C, and `adds` additions to each number
// of C. Error bounds are made of these (kernels/gram/bound.py).
struct Depth {
  int64_t before, adds;
};

struct Patches;  // patches.h

// Panel p of a packed chunk holds columns [p * lanes, (p + 1) * lanes): row k of it is `lanes` numbers at
// packed + p * panel_stride + k * lanes (in elements). Columns beyond the matrix are zeros.
struct Kernels {
  int64_t lanes;         // columns in a panel
  int64_t element_size;  // bytes of a packed number: 8 exact, 4 fast
  int64_t chunk;         // rows packed at a time
  int64_t tile_rows, tile_panels;  // of a tile that add_tile computes, at most

  // Packs rows [row, row + count) of panels [first, last). `sums` (may be null; else indexed by column, written, not
  // added to) gets sum_k a(k, i); `shift` (may be null) is subtracted from every row.
  void (*pack)(const Matrix& a, const double* shift, int64_t row, int64_t count, int64_t first, int64_t last,
               void* packed, int64_t panel_stride, double* sums);
  // The same of a convolution's patches; `shift` is of columns here too.
  void (*pack_patches)(const Patches& a, const double* shift, int64_t row, int64_t count, int64_t first, int64_t last,
                       void* packed, int64_t panel_stride, double* sums);

  // c[i * ldc + j] = or += sum over the chunk's `count` rows, for i in [i0, i1), j in [j0, j1), j <= i.
  // i0 and j0 are multiples of `lanes`; i1, j1 are multiples or the matrix's edge.
  void (*multiply)(const void* packed, int64_t panel_stride, int64_t count, int64_t i0, int64_t i1, int64_t j0,
                   int64_t j1, double* c, int64_t ldc, bool add);

  // For packed rows that are positions of images: tile[r][l] += sum of a(at, i + r) a(at + delta, j + l) over the
  // `count` positions at[], for r < tile_rows and the `panels` panels from column j on. i is a multiple of tile_rows, j
  // of lanes.
  void (*add_tile)(const void* packed, int64_t panel_stride, const int32_t* at, int64_t count, int64_t delta, int64_t i,
                   int64_t j, int64_t panels, double* tile);
  // sums[l] += sum of a(at, j + l) over the positions, for the panel of column j.
  void (*add_sums)(const void* packed, int64_t panel_stride, const int32_t* at, int64_t count, int64_t j, double* sums);
  // to[q] = sum of terms[t][q] over t, for q < size, a multiple of 8.
  void (*sum)(const double* const* terms, int64_t count, int64_t size, double* to);

  // Null where packing rounds nothing. Else the square of the Frobenius norm of what it changed in the chunk, at most.
  double (*rounded)(const void* packed, int64_t panel_stride, int64_t panels);
};

#define FASTRANK_GRAM_DECLARE(isa)  \
  namespace isa {                   \
  extern const Kernels kExact;      \
  extern const Kernels kFast;       \
  }
FASTRANK_GRAM_DECLARE(isa_scalar)
FASTRANK_GRAM_DECLARE(isa_avx2)
FASTRANK_GRAM_DECLARE(isa_avx512)
#undef FASTRANK_GRAM_DECLARE
namespace isa_amx {
extern const Kernels kDigits;  // without patches
}

// CUDA (cuda.cu). `stream` is a cudaStream_t. A failed launch throws std::runtime_error with the kernel's name.
struct Product {
  Matrix a;
  const double* shift;  // [columns], subtracted from every row, or null
  double* c;            // lower(C) += A^T A, and its upper triangle the mirror of that where `symmetric`
  int64_t ldc;
  double* total;        // [columns] += column sums of A, or null
  int* nonfinite;       // set to 1 where a number of A is NaN or Inf, else left alone; or null
  bool fast, symmetric;
};

// One product. `workspace` has workspace_cuda(rows, columns) doubles.
int64_t workspace_cuda(int64_t rows, int64_t columns);
Depth depth_cuda(int64_t rows, int64_t columns, bool fast);
void accumulate_cuda(const Product& product, double* workspace, void* stream);

// Many products, of any shapes and types, in one launch for each kernel that they need (dtype, mode, width of tiles)
// and one for all reductions: group_fill writes a table of group_bytes(count) bytes to the host, the caller copies it
// to the device (16-byte aligned) and group_launch takes both. The bits are those of one product at a time.
int64_t group_bytes(int64_t count);
int64_t group_workspace(const Product* products, int64_t count);  // doubles
void group_fill(const Product* products, int64_t count, double* workspace, void* table);
void group_launch(const void* table, const void* device_table, void* stream);

}  // namespace gram
}  // namespace fastrank
