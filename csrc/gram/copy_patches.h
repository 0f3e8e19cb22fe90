// Chosen rows of the patch matrix of patches.h, copied out: the sample of a layer's input that a subspace is found in.
#pragma once

#include <string.h>

#include <vector>

#include "common/parallel.h"
#include "gram/patches.h"

namespace fastrank {
namespace gram {

// A tap inside the image: its place in a channel's part of the patch, and how far its number is from the channel's first.
struct Tap { int64_t place, from; };

// `count` taps of each channel; N: as many, known to the compiler, or 0.
template <int N, class E>
inline void copy_taps(const E* channel, int64_t stride, int64_t channels, int64_t taps, const Tap* inside,
                      int64_t count, E* to) {
  for (int64_t c = 0; c < channels; ++c, channel += stride, to += taps)
    for (int64_t t = 0; t < (N ? N : count); ++t) to[inside[t].place] = channel[inside[t].from];
}

// out[i] = row rows[i] of the patch matrix, [count, columns] contiguous; E has the size of a number. 0 <= rows[i] < rows.
template <class E>
void copy_patches(const Patches& a, const int64_t* rows, int64_t count, E* out, int threads) {
  constexpr int64_t kTogether = 16;  // rows of a task
  const int64_t height = a.outputs(0), width = a.outputs(1), columns = a.columns(), taps = a.taps();
  parallel_for((count + kTogether - 1) / kTogether, threads, [&](int64_t task) {
    std::vector<Tap> inside(static_cast<size_t>(taps));
    for (int64_t i = task * kTogether; i < count && i < (task + 1) * kTogether; ++i) {
      const int64_t ox = rows[i] % width, oy = rows[i] / width % height, slot = rows[i] / width / height;
      const int64_t y0 = oy * a.step[0] - a.pad[0], x0 = ox * a.step[1] - a.pad[1];
      int64_t found = 0;
      for (int64_t ky = 0; ky < a.kernel[0]; ++ky)
        for (int64_t kx = 0; kx < a.kernel[1]; ++kx) {
          const int64_t y = y0 + ky * a.dilation[0], x = x0 + kx * a.dilation[1];
          if (y >= 0 && y < a.size[0] && x >= 0 && x < a.size[1])
            inside[static_cast<size_t>(found++)] = {ky * a.kernel[1] + kx, y * a.stride[0] + x * a.stride[1]};
        }
      E* const to = out + i * columns;
      if (found < taps) memset(to, 0, static_cast<size_t>(columns) * sizeof(E));  // +0 in every type
      const E* const channel = static_cast<const E*>(a.data) + slot / a.groups * a.stride_image +
                               slot % a.groups * a.channels * a.stride_channel;
      // Those of a 3 x 3 kernel inside, at an edge and in a corner.
      const auto copy = found == 9 ? copy_taps<9, E> : found == 6 ? copy_taps<6, E> : found == 4 ? copy_taps<4, E>
                      : found == 1 ? copy_taps<1, E> : copy_taps<0, E>;
      copy(channel, a.stride_channel, a.channels, taps, inside.data(), found, to);
    }
  });
}

}  // namespace gram
}  // namespace fastrank
