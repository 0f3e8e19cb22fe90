// Tempered cross-entropy over logits seen as [N, C, D] (any strides).
//
// A row is one (n, d); rows are counted r = n * D + d, R = N * D. With z the row's logits, m = max z,
// x = (z - m) / T, e = exp(x), S = sum_j e_j, w the class weights and s the label smoothing, every target is a weight
// t_j for each class, and
//
//   loss_r = sum_j t_j (log S - x_j)                                  t = sum_j t_j
//   dz_j   = g / T (t e_j / S - t_j)                                  times T^k where the caller asks for it
//   dT     = -g / T sum_j (t e_j / S - t_j) x_j = -g / T * slope
//
//   class index y                 t_j = w_j ((1 - s) [j = y] + s / C)
//   two indices, share l of y1    t_j = w_j ((1 - s) (l [j = y1] + (1 - l) [j = y2]) + s / C)
//   class probabilities q         t_j = w_j ((1 - s) q_j + s / C)
//
// With indices, t e_y / S - t_y is never left to cancel: S is summed without the targets, so a target probability near
// 1 keeps its digits. 16-bit and 32-bit logits are computed and accumulated in float, 64-bit ones in double ("acc").
#pragma once

#include <stdint.h>

#include "common/simd.h"

namespace fastrank {

enum class Dtype { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };

// What the forward pass leaves for each row, as planes [plane][R] of acc: max z, S, kOthers (S without the targets; for
// class probabilities: t), slope. Stats are planes too, when asked for.
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
  const int64_t* target;                 // [R]; null with class probabilities
  const int64_t* second;                 // [R], the second index of a mixed target; or null
  const void* share;                     // acc, of `target` beside `second`, one per n at stride share_stride
  int64_t share_stride;
  const void* probabilities;             // [n, c, d] of acc, in place of target; or null
  int64_t probability_stride_n, probability_stride_c, probability_stride_d;
  int64_t ignore_index;                  // for a target alone
  const void* weight;                    // [c] of acc, or null for ones
  double weight_sum;
  double smoothing;
  const void* temperature;               // acc, one per n at stride temperature_stride, or null
  int64_t temperature_stride;
  double temperature_value;              // where temperature is null
  int grad_power;                        // k: the gradient of the logits is multiplied by T^k
  void* rows;                            // [kStatePlanes (+ kStatsPlanes)][R] of acc
  bool slope;                            // whether forward fills kSlope
  bool stats;
  void* loss;                            // forward: [R] of acc, before reduction; 0 where ignored
  const void* grad_loss;                 // backward: acc, one per row at stride grad_loss_stride
  int64_t grad_loss_stride;
  double grad_scale;                     // 1 / denominator of the mean, in acc's precision
  void* grad;                            // [n, c, d] of dtype; forward: null, or the gradient for grad_loss = 1
  int64_t grad_stride_n, grad_stride_c, grad_stride_d;
  bool stream;                           // writes grad past the caches

  int64_t row_count() const { return n * d; }
  bool ignored(int64_t r) const { return target && !second && target[r] == ignore_index; }
  // Whether the rows go through a tile, a row in each lane (narrow.h): where classes are few, or apart in memory.
  bool narrow() const {
    return c <= kNarrow || stride_c != 1 || (grad && grad_stride_c != 1) ||
           (probabilities && probability_stride_c != 1);
  }
  // Rows that go through wide.h together: what they leave for the gradient should stay near the processor.
  int64_t wide_rows() const { return c >= kBlock ? 1 : kBlock / c < kLanes ? kBlock / c : kLanes; }
  // Elements of acc that a call needs for its own.
  int64_t scratch() const { return narrow() ? kLanes * c * (probabilities ? 2 : 1) : grad ? wide_rows() * c : 0; }

  static constexpr int64_t kNarrow = 64;  // classes up to which rows in lanes are the faster way
  static constexpr int64_t kLanes = 16;   // at most: float in AVX-512
  static constexpr int64_t kBlock = 4096; // logits of a block of rows
};

// Rows [begin, end); `scratch` as the problem says, or null.
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
