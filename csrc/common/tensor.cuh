// What CUDA C++ has no names for: PTX instructions, and facts that the compiler cannot see. The emulator's twin is
// tests/emulate/shim/common/tensor.cuh.
#pragma once

#include <stdint.h>

namespace fastrank {

// p, known to lie in global memory. The compiler does not see that of a pointer that it finds in memory itself, and
// then every access has to ask, and may be to shared memory.
template <class T>
__device__ __forceinline__ T* in_global(T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies `source_bytes` of 16 bytes to shared memory and fills up with zeros; complete after commit and wait.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, int source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrix_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// D (16 x 8) += A (16 x 16) B (16 x 8): 16-bit factors, fp32 sums. Of D, a lane holds row lane / 4 and columns
// 2 (lane % 4), + 1 in d0, d1, and the same of row lane / 4 + 8 in d2, d3.
#define FASTRANK_MMA_16X8X16(name, type)                                                                             \
  __device__ __forceinline__ void name(float& d0, float& d1, float& d2, float& d3, const uint32_t(&a)[4],            \
                                       uint32_t b0, uint32_t b1) {                                                   \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, " \
                 "{%8, %9}, {%0, %1, %2, %3};"                                                                       \
                 : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                    \
  }
FASTRANK_MMA_16X8X16(multiply_bf16, "bf16")
FASTRANK_MMA_16X8X16(multiply_fp16, "f16")
#undef FASTRANK_MMA_16X8X16

// D (16 x 8) += A (16 x 8) B (8 x 8) in fp64, D as above. Of A a lane holds, in order, rows lane / 4 and lane / 4 + 8
// of column lane % 4, then of column lane % 4 + 4; of B rows lane % 4 and + 4 of column lane / 4. sm_90 has this shape
// as one instruction; sm_80 makes it of four.
__device__ __forceinline__ void multiply_fp64(double& d0, double& d1, double& d2, double& d3, const double (&a)[4],
                                              const double (&b)[2]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+d"(d0), "+d"(d1), "+d"(d2), "+d"(d3)
               : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+d"(d0), "+d"(d1)
                 : "d"(a[2 * k]), "d"(b[k]));
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+d"(d2), "+d"(d3)
                 : "d"(a[2 * k + 1]), "d"(b[k]));
  }
#endif
}

}  // namespace fastrank
