#include "common/simd.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fastrank {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  Isa best = Isa::scalar;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      best = Isa::avx512;
  }
#else
  Isa best = Isa::scalar;
#endif
  if (const char* wanted = std::getenv("FASTRANK_ISA")) {
    for (Isa lower : {Isa::scalar, Isa::avx2, Isa::avx512})
      if (std::strcmp(wanted, isa_name(lower)) == 0 && lower < best) best = lower;
  }
  return best;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "scalar";
  }
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

}  // namespace fastrank
