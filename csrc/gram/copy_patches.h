// Chosen rows of the patch matrix of patches.h, copied out: the sample of a layer's input that a subspace is found in.
#pragma once

#include <string.h>

#include "common/parallel.h"
#include "gram/patches.h"

namespace fastrank {
namespace gram {

// out[i] = row rows[i] of the patch matrix, [count, columns] contiguous; E has the size of a number. 0 <= rows[i] < rows.
template <class E>
void copy_patches(const Patches& a, const int64_t* rows, int64_t count, E* out, int threads) {
  constexpr int64_t kTogether = 16;  // rows of a task
  const int64_t height = a.outputs(0), width = a.outputs(1), columns = a.columns();
  const bool adjacent = a.stride[1] == 1 && a.dilation[1] == 1;  // a row of taps is a piece of a row of pixels
  parallel_for((count + kTogether - 1) / kTogether, threads, [&](int64_t task) {
    for (int64_t i = task * kTogether; i < count && i < (task + 1) * kTogether; ++i) {
      const int64_t ox = rows[i] % width, oy = rows[i] / width % height, slot = rows[i] / width / height;
      const int64_t y0 = oy * a.step[0] - a.pad[0], x0 = ox * a.step[1] - a.pad[1];
      const E* channel = static_cast<const E*>(a.data) + slot / a.groups * a.stride_image +
                         slot % a.groups * a.channels * a.stride_channel;
      const bool whole = adjacent && x0 >= 0 && x0 + a.kernel[1] <= a.size[1];
      E* to = out + i * columns;
      for (int64_t c = 0; c < a.channels; ++c, channel += a.stride_channel)
        for (int64_t ky = 0; ky < a.kernel[0]; ++ky, to += a.kernel[1]) {
          const int64_t y = y0 + ky * a.dilation[0];
          const E* const line = channel + y * a.stride[0];
          if (y < 0 || y >= a.size[0]) {
            memset(to, 0, static_cast<size_t>(a.kernel[1]) * sizeof(E));  // +0 in every type
          } else if (whole && a.kernel[1] == 3) {
            memcpy(to, line + x0, 3 * sizeof(E));
          } else {
            for (int64_t kx = 0; kx < a.kernel[1]; ++kx) {
              const int64_t x = x0 + kx * a.dilation[1];
              to[kx] = x >= 0 && x < a.size[1] ? line[x * a.stride[1]] : E(0);
            }
          }
        }
    }
  });
}

}  // namespace gram
}  // namespace fastrank
