// A tempered loss of logits seen as [N, C, D] (any strides), forward or backward: what the losses are all told.
//
// A row is one (n, d); rows are counted r = n * D + d, R = N * D. 16-bit and 32-bit logits are computed and accumulated
// in float, 64-bit ones in double ("acc").
#pragma once

#include <stdint.h>

#include "common/simd.h"

namespace fastrank {

enum class Dtype { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };

struct TemperedLoss {
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
  double smoothing;
  const void* temperature;               // acc, one per n at stride temperature_stride, or null
  int64_t temperature_stride;
  double temperature_value;              // where temperature is null
  int grad_power;                        // k: the gradient of the logits is multiplied by T^k
  void* rows;                            // [planes][R] of acc: what the forward pass leaves for each row
  int planes;
  void* loss;                            // forward: [R] of acc, before reduction; 0 where ignored
  const void* grad_loss;                 // backward: acc, one per row at stride grad_loss_stride
  int64_t grad_loss_stride;
  double grad_scale;                     // 1 / denominator of the mean, in acc's precision
  void* grad;                            // [n, c, d] of dtype; forward: null, or the gradient for grad_loss = 1
  int64_t grad_stride_n, grad_stride_c, grad_stride_d;

  int64_t row_count() const { return n * d; }
  bool ignored(int64_t r) const { return target && !second && target[r] == ignore_index; }
  // Whether a row can go across the lanes of vectors: its classes are neighbours in memory.
  bool neighbours() const {
    return stride_c == 1 && (!grad || grad_stride_c == 1) && (!probabilities || probability_stride_c == 1);
  }

  static constexpr int64_t kLanes = 16;  // of a vector, at most: float in AVX-512
};

}  // namespace fastrank
