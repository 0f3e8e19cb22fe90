// The emulator's twin of csrc/common/tensor.cuh.
#pragma once

#include <cuda_runtime.h>

namespace fastrank {

template <class T>
T* in_global(T* p) {
  return p;
}
inline void copy_async_16(void* to, const void* from, int source_bytes) {
  emulate::copy_async(to, from, 16, source_bytes);
}
inline void commit_copies() { emulate::commit_copies(); }
template <int Pending>
void wait_copies() {
  emulate::wait_copies(Pending);
}
inline void load_matrix(uint32_t (&r)[4], const void* row) { emulate::load_matrix<4, false>(r, row); }
inline void load_matrix_transposed(uint32_t (&r)[4], const void* row) { emulate::load_matrix<4, true>(r, row); }

template <class In>
void multiply_16bit(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  float d[4] = {d0, d1, d2, d3};
  emulate::mma_m16n8k16(d, a, {b0, b1}, In());
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}
inline void multiply_bf16(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                          uint32_t b1) {
  multiply_16bit<emulate::Bf16>(d0, d1, d2, d3, a, b0, b1);
}
inline void multiply_fp16(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                          uint32_t b1) {
  multiply_16bit<emulate::Fp16>(d0, d1, d2, d3, a, b0, b1);
}
inline void multiply_fp64(double& d0, double& d1, double& d2, double& d3, const double (&a)[4],
                          const double (&b)[2]) {
  double d[4] = {d0, d1, d2, d3};
  emulate::mma_m16n8k8(d, a, b);
  d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
}

}  // namespace fastrank
