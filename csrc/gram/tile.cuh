// Device code that all Gram kernels share: the triangle's tiles, and numbers of any dtype in fp64.
#pragma once

#include <stdint.h>

namespace fastrank {
namespace gram {
namespace device {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tile t of the triangle, counted row by row: (0,0) (1,0) (1,1) (2,0) ...
__device__ __forceinline__ void tile_of(int64_t t, int64_t& i, int64_t& j) {
  i = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) * 0.5);
  while (i * (i + 1) / 2 > t) --i;  // the square root may be off by one either way
  while ((i + 1) * (i + 2) / 2 <= t) ++i;
  j = t - i * (i + 1) / 2;
}

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ double widen(float x) { return static_cast<double>(x); }
__device__ __forceinline__ double widen(__nv_bfloat16 x) { return static_cast<double>(__bfloat162float(x)); }
__device__ __forceinline__ double widen(__half x) { return static_cast<double>(__half2float(x)); }

}  // namespace device
}  // namespace gram
}  // namespace fastrank
