// Tempered cross-entropy over logits seen as [N, C, D] (any strides), with class-index targets.
//
// A row is one (n, d); rows are counted r = n * D + d, R = N * D. With z the row's logits, m = max z,
// x = (z - m) / T, e = exp(x), w the class weights, s the label smoothing and y the target:
//
//   loss_r  = (1 - s) w_y (log S - x_y) + s / C (W log S - sum_j w_j x_j),   S = sum_j e_j,  W = sum_j w_j
//   dz_j    = g / T ((1 - s) w_y e_j / S              + s / C (W e_j / S - w_j))                      j != y
//   dz_y    = g / T (-(1 - s) w_y (S - e_y) / S       + s / C (W e_y / S - w_y))
//   dT      = -g / T sum_j (d loss_r / d x_j) x_j = -g / T * slope
//
// `S - e_y` is never a subtraction: it is summed without y, so a target probability near 1 keeps its digits.
// 16-bit and 32-bit logits are computed and accumulated in float, 64-bit ones in double ("acc" below).
#pragma once

#include <stdint.h>

#include "common/simd.h"

namespace fastrank {

enum class Dtype { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };

// What the forward pass leaves for each row, as planes [plane][R] of acc. Stats are planes too, when asked for.
enum RowPlane {
  kMax, kSum, kOthers, kSlope,
  kLogsumexp, kMaxProb, kEntropy, kSumZ, kSumZ2, kTargetRank
};
constexpr int kStatePlanes = 4;
constexpr int kStatsPlanes = 6;

struct CrossEntropy {
  Dtype dtype;
  int64_t n, c, d;
  const void* logits;
  int64_t stride_n, stride_c, stride_d;  // in elements
  const int64_t* target;                 // [R]
  int64_t ignore_index;
  const void* weight;                    // [c] of acc, or null for ones
  double weight_sum;
  double smoothing;
  const void* temperature;               // acc, one per n at stride temperature_stride, or null
  int64_t temperature_stride;
  double temperature_value;              // where temperature is null
  void* rows;                            // [kStatePlanes (+ kStatsPlanes)][R] of acc
  bool stats;
  void* loss;                            // forward: [R] of acc, before reduction; 0 where ignored
  const void* grad_loss;                 // backward: acc, one per row at stride grad_loss_stride
  int64_t grad_loss_stride;
  double grad_scale;                     // 1 / denominator of the mean, in acc's precision
  void* grad;                            // [n, c, d] of dtype; forward: null, or (no smoothing) for grad_loss = 1
  int64_t grad_stride_n, grad_stride_c, grad_stride_d;

  int64_t row_count() const { return n * d; }
};

// Rows gathered at a time where a row's logits are not adjacent in memory.
constexpr int kTileRows = 16;

// Rows [begin, end). `scratch` holds kTileRows * c of acc where logits or gradient have stride_c != 1, otherwise c of
// acc where a forward pass writes a gradient; else it may be null.
#define FASTRANK_DECLARE(isa)                                                                      \
  namespace isa_##isa {                                                                            \
  void cross_entropy_forward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch);  \
  void cross_entropy_backward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch); \
  }
FASTRANK_DECLARE(scalar)
FASTRANK_DECLARE(avx2)
FASTRANK_DECLARE(avx512)
#undef FASTRANK_DECLARE

}  // namespace fastrank
