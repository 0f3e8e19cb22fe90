// Chosen rows of the patch matrix of patches.h, copied out: the sample of a layer's input that a subspace is found in.
#pragma once

#include <string.h>

#include <vector>

#include "common/parallel.h"
#include "gram/patches.h"

namespace fastrank {
namespace gram {

// The taps of one row of the kernel that are inside the image: the place of the first in a channel's part of the patch,
// and how far its number is from the channel's first.
struct Run { int64_t place, from; };

// `count` runs of `length` numbers in each channel, `step` apart; R, L: as many, side by side, known to the compiler, or 0.
template <int R, int L, class E>
inline void copy_runs(const E* channel, int64_t stride, int64_t channels, int64_t taps, const Run* runs, int64_t count,
                      int64_t length, int64_t step, E* to) {
  for (int64_t c = 0; c < channels; ++c, channel += stride, to += taps)
    for (int64_t r = 0; r < (R ? R : count); ++r) {
      if constexpr (L != 0) {
        memcpy(to + runs[r].place, channel + runs[r].from, L * sizeof(E));
      } else {
        for (int64_t l = 0; l < length; ++l) to[runs[r].place + l] = channel[runs[r].from + l * step];
      }
    }
}

// The copy_runs of 3 x 3 kernels inside, at an edge and in a corner, and of single taps.
template <class E>
inline auto runs_of(int64_t count, int64_t length, bool together) {
  if (length == 1 && count == 1) return copy_runs<1, 1, E>;
  if (together && length == 3) return count == 3 ? copy_runs<3, 3, E> : count == 2 ? copy_runs<2, 3, E> : copy_runs<0, 3, E>;
  if (together && length == 2) return count == 3 ? copy_runs<3, 2, E> : count == 2 ? copy_runs<2, 2, E> : copy_runs<0, 2, E>;
  return copy_runs<0, 0, E>;
}

// out[i] = row rows[i] of the patch matrix, [count, columns] contiguous; E has the size of a number. 0 <= rows[i] < rows.
template <class E>
void copy_patches(const Patches& a, const int64_t* rows, int64_t count, E* out, int threads) {
  constexpr int64_t kTogether = 16;  // rows of a task
  const int64_t height = a.outputs(0), width = a.outputs(1), columns = a.columns(), taps = a.taps();
  parallel_for((count + kTogether - 1) / kTogether, threads, [&](int64_t task) {
    std::vector<Run> runs(static_cast<size_t>(a.kernel[0]));
    for (int64_t i = task * kTogether; i < count && i < (task + 1) * kTogether; ++i) {
      const int64_t ox = rows[i] % width, oy = rows[i] / width % height, slot = rows[i] / width / height;
      const int64_t y0 = oy * a.step[0] - a.pad[0], x0 = ox * a.step[1] - a.pad[1];
      // The taps inside are a rectangle of the kernel.
      int64_t first = 0, end = a.kernel[1], inside = 0;
      while (first < end && x0 + first * a.dilation[1] < 0) ++first;
      while (end > first && x0 + (end - 1) * a.dilation[1] >= a.size[1]) --end;
      const int64_t length = end - first, step = a.dilation[1] * a.stride[1];
      for (int64_t ky = 0; ky < a.kernel[0] && length; ++ky) {
        const int64_t y = y0 + ky * a.dilation[0];
        if (y >= 0 && y < a.size[0])
          runs[static_cast<size_t>(inside++)] = {ky * a.kernel[1] + first,
                                                y * a.stride[0] + (x0 + first * a.dilation[1]) * a.stride[1]};
      }
      E* const to = out + i * columns;
      if (inside * length < taps) memset(to, 0, static_cast<size_t>(columns) * sizeof(E));  // +0 in every type
      const E* const channel = static_cast<const E*>(a.data) + slot / a.groups * a.stride_image +
                               slot % a.groups * a.channels * a.stride_channel;
      runs_of<E>(inside, length, step == 1)(channel, a.stride_channel, a.channels, taps, runs.data(), inside, length, step,
                                           to);
    }
  });
}

}  // namespace gram
}  // namespace fastrank
