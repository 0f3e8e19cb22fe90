#include "common/simd.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

bool detect_amx() {
  const char* wanted = std::getenv("FASTRANK_ISA");
  if (isa() != Isa::avx512 || (wanted && std::strcmp(wanted, "amx") != 0)) return false;
#if defined(__x86_64__) && defined(__linux__) && defined(FASTRANK_WITH_AMX)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kVbmi = 1u << 1, kTile = 1u << 24, kInt8 = 1u << 25;  // of ecx, edx, edx
  if (!(c & kVbmi) || !(d & kTile) || !(d & kInt8)) return false;
  // A process has no tiles until it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
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

bool amx() {
  static const bool usable = detect_amx();
  return usable;
}

}  // namespace fastrank
