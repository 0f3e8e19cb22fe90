// The emulator's twin of nvcc/common/tensor.cuh.
#pragma once

#include <cuda_runtime.h>

namespace fastrank {

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulate::this_block().dynamic_shared);
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
template <int Count>
void load_matrix_transposed(uint32_t (&r)[Count], const void* row) {
  emulate::load_matrix<Count, true>(r, row);
}
inline void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulate::mma_m16n8k16(d, a, b, emulate::Bf16());
}
inline void multiply_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulate::mma_m16n8k16(d, a, b, emulate::Fp16());
}
inline void multiply_fp64(double (&d)[2], double a, double b) { emulate::mma_m8n8k4(d, {a}, {b}); }

}  // namespace fastrank
