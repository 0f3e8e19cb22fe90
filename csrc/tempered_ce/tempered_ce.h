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

#include "tempered_loss/problem.h"

namespace fastrank {

// What the forward pass leaves for each row, as planes [plane][R] of acc: max z, S, kOthers (S without the targets; for
// class probabilities: t), slope. Stats are planes too, when asked for.
enum RowPlane {
  kMax, kSum, kOthers, kSlope,
  kLogsumexp, kMaxProb, kEntropy, kSumZ, kSumZ2, kTargetRank
};
constexpr int kStatePlanes = 4;
constexpr int kStatsPlanes = 6;

struct CrossEntropy : TemperedLoss {
  double weight_sum;
  bool slope, stats;  // whether forward fills kSlope, and the planes of statistics
  bool stream;        // writes grad past the caches

  void prepare() {
    slope = temperature != nullptr;
    stats = planes > kStatePlanes;
    constexpr int64_t itemsize[] = {8, 4, 2, 2};
    stream = grad && n * c * d * itemsize[static_cast<int>(dtype)] >= kStreamBytes;
    weight_sum = !weight ? static_cast<double>(c) : 0;
    for (int64_t j = 0; weight && j < c; ++j)
      weight_sum += dtype == Dtype::f64 ? static_cast<const double*>(weight)[j] : static_cast<const float*>(weight)[j];
  }
  // Whether the rows go through a tile, a row in each lane (narrow.h): where classes are few, or apart in memory.
  bool narrow() const { return c <= kNarrow || !neighbours(); }
  // Rows that go through wide.h together: what they leave for the gradient should stay near the processor.
  int64_t wide_rows() const { return c >= kBlock ? 1 : kBlock / c < kLanes ? kBlock / c : kLanes; }
  // Rows that a kernel takes at once, and elements of acc that it needs for its own.
  int64_t together() const { return narrow() || c < kBlock ? kLanes : 1; }
  int64_t scratch() const { return narrow() ? kLanes * c * (probabilities ? 2 : 1) : grad ? wide_rows() * c : 0; }

  static constexpr int64_t kNarrow = 24;   // classes up to which rows in lanes are the faster way
  static constexpr int64_t kBlock = 4096;  // logits of a block of rows
  // From this size on, a gradient goes past the caches: it would have left them before anybody reads it.
  static constexpr int64_t kStreamBytes = int64_t{32} << 20;
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
