// The Gram matrix of the patches that a convolution sees, without the patches.
//
// Row (image, group, oy, ox) of the patch matrix P has, in column c * taps + ky * kernel[1] + kx, the number
// x[c][oy * step + ky * dilation - pad][ox * step + kx * dilation - pad] of the group's channel c, and 0 where that lies
// outside the image. P is never formed. Two ways:
//
// General: any step. Each number of P is read from x when it is packed or staged.
//
// Shifts (step 1 in both directions): position u = o + k * dilation - pad of x meets tap k in every output o, so with
// delta = (k' - k) * dilation,
//
//   G[(c, k), (c', k')] = sum over u in W_k of x[c][u] x[c'][u + delta],
//
// W_k being the positions that tap k reaches. But for W_k this depends on k' - k alone: a 3 x 3 kernel has 81 pairs of
// taps and 25 differences. Cut the image where some W_k begins or ends (Cuts below); every W_k is then a union of the
// pieces, and with R_delta[piece] the sum over one piece,
//
//   G[(c, k), (c', k')] = sum over the pieces in W_k of R_delta[piece][c][c'].
//
// Nothing is subtracted, and no product is computed twice: (2 kernel - 1)^2 channel products in place of kernel^4.
//
// The shift is one number s_c for each channel, the same for all its taps; padding stands for 0 - s_c. With
// Y = x - s on the image and 0 in the padding, and I the indicator of the image, a shifted patch is Y_k - s (1 - I_k), so
//
//   sum (Y_k - s (1 - I_k)) (Y'_k' - s' (1 - I_k')) = sum Y_k Y'_k' - s' sum Y_k (1 - I_k')
//     - s sum (1 - I_k) Y'_k' + s s' sum (1 - I_k) (1 - I_k').
//
// The four sums are over outputs with both taps in the image, one, the other, and neither: they are disjoint, so an
// error relative to the sum of the absolute values stays that. The second and third are therefore summed over the
// positions whose partner lies outside, not as a difference of two sums.
#pragma once

#include "gram/gram.h"

namespace fastrank {
namespace gram {

struct Patches {
  const void* data;  // x [images, groups * channels, size[0], size[1]]
  DType dtype;
  int64_t images, groups, channels;  // channels of one group
  int64_t stride_image, stride_channel, stride[2];  // in elements
  int64_t size[2], kernel[2], step[2], pad[2], dilation[2];

  int64_t outputs(int axis) const {
    return (size[axis] + 2 * pad[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / step[axis] + 1;
  }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t rows() const { return images * groups * outputs(0) * outputs(1); }
  int64_t columns() const { return channels * taps(); }
};

// One axis of an image, cut at the ends of the taps' windows: piece i is [edge[i], edge[i + 1]), and tap k reaches the
// pieces [first[k], last[k]). Empty pieces do not occur.
struct Cuts {
  static constexpr int kTaps = 11;  // of a kernel, at most; larger ones go the general way
  int pieces;
  int64_t edge[2 * kTaps + 2];
  int first[kTaps], last[kTaps];

  Cuts(const Patches& p, int axis) {
    const int64_t size = p.size[axis], taps = p.kernel[axis];
    const auto begin = [&](int64_t k) { return within(k * p.dilation[axis] - p.pad[axis], size); };
    const auto end = [&](int64_t k) { return within(k * p.dilation[axis] - p.pad[axis] + p.outputs(axis), size); };
    pieces = 0;
    edge[0] = 0;
    while (edge[pieces] < size) {  // the next end of a window behind the last edge
      int64_t next = size;
      for (int64_t k = 0; k < taps; ++k) {
        if (begin(k) > edge[pieces] && begin(k) < next) next = begin(k);
        if (end(k) > edge[pieces] && end(k) < next) next = end(k);
      }
      edge[++pieces] = next;
    }
    for (int64_t k = 0; k < taps; ++k) {
      first[k] = last[k] = 0;
      while (first[k] < pieces && edge[first[k]] < begin(k)) ++first[k];
      last[k] = first[k];
      while (last[k] < pieces && edge[last[k]] < end(k)) ++last[k];
    }
  }

 private:
  static int64_t within(int64_t at, int64_t size) { return at < 0 ? 0 : at > size ? size : at; }
};

// Which of the two ways: the one of fewer products, or one by name (to measure it; shifts need step 1).
enum class PatchWay : int { cheaper = 0, general = 1, shifts = 2 };

// CUDA (patches.cu): lower(C) += P^T P and total += column sums of P, of P = patches - shift, where `shift` has a
// number for each channel of a group, or is null. `workspace` has workspace_patches_cuda doubles; else as accumulate_cuda. In
// mode fast a factor of a product is rounded four times in fp32, and not in fp64 (`Shift` in patch_tile.cuh).
int64_t workspace_patches_cuda(const Patches& p, bool fast, PatchWay way = PatchWay::cheaper);
Depth depth_patches_cuda(const Patches& p, bool fast, PatchWay way = PatchWay::cheaper);
void patches_cuda(const Patches& p, const double* shift, double* c, int64_t ldc, double* total, bool fast,
                  double* workspace, void* stream, PatchWay way = PatchWay::cheaper);

}  // namespace gram
}  // namespace fastrank
