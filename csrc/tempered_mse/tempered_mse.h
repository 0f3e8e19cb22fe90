// Squared error between the softmax of logits over T and their target, over logits seen as [N, C, D] (any strides).
//
// A row is one (n, d); rows are counted r = n * D + d, R = N * D. With z the row's logits, m = max z, x = (z - m) / T,
// e = exp(x), S = sum_j e_j, p = e / S, t' the target, s the label smoothing, v the class weights,
// t = (1 - s) t' + s / C and w = sum_j v_j t'_j:
//
//   loss_r = w sum_j d_j^2            d_j = p_j - t_j
//   dz_j   = 2 w g / T p_j (d_j - D)  D = sum_k p_k d_k; times T^k where the caller asks for it
//   dT     = -g / T sum_j (d loss / d x_j) x_j = -g / T * slope
//
// Nothing of this may be left to cancel where p is near 0 or 1. p_j > 1/2 holds for one class a at most, the one with
// e_a = 1, and just where S < 2. Let q = sum_{j != a} e_j / S = 1 - p_a, summed without e_a, and
// M = sum_{j != a} p_j d_j. Then
//
//   d_a     = (1 - t_a) - q,          with 1 - t_a = (1 - s) (1 - t'_a) + s (C - 1) / C
//   D       = p_a d_a + M
//   d_a - D = (1 - p_a) d_a - M = q d_a - M,
//
// where every term is a product with q or a p_j beside it, however small those are; for all other classes p_j <= 1/2,
// and p_j - t_j and d_j - D cancel no further than the value itself is close to 0. Rows with S >= 2 have no such class.
// 16-bit and 32-bit logits are computed and accumulated in float, 64-bit ones in double ("acc").
#pragma once

#include "tempered_loss/problem.h"

namespace fastrank {

// What the forward pass leaves for each row, as planes [plane][R] of acc; kTop is p_a (q d_a - M) (S < 2).
enum SquaredErrorPlane { kMseMax, kMseTotal, kMseMean, kMseSlope, kMseTop, kMseWeight };

struct SquaredError : TemperedLoss {
  void prepare() {}
  // Whether a row goes across the lanes of vectors; else each lane takes a row: where classes are few, or apart in
  // memory.
  bool across() const { return c > kFew && neighbours(); }
  // Rows that a kernel takes at once, and elements of acc that it needs for its own.
  int64_t together() const { return across() ? 1 : kLanes; }
  int64_t scratch() const { return across() ? c + kLanes : kLanes * c * (probabilities ? 3 : 2); }

  static constexpr int64_t kFew = 64;  // classes up to which rows in lanes are the faster way
};

// Rows [begin, end); `scratch` as the problem says.
#define FASTRANK_DECLARE(isa)                                                                       \
  namespace isa_##isa {                                                                             \
  void squared_error_forward(const SquaredError& op, int64_t begin, int64_t end, void* scratch);   \
  void squared_error_backward(const SquaredError& op, int64_t begin, int64_t end, void* scratch);  \
  }
FASTRANK_DECLARE(scalar)
FASTRANK_DECLARE(avx2)
FASTRANK_DECLARE(avx512)
#undef FASTRANK_DECLARE

}  // namespace fastrank
