// Run-time choice of instruction set.
//
// csrc/<op>/cpu.cpp is compiled once per entry of ISAS in CMakeLists.txt, with FASTRANK_ISA set to its name and
// that set's compiler flags. It puts everything into FASTRANK_ISA_NAMESPACE and includes nothing but C headers and
// intrinsics: an inline function of the C++ library compiled there with AVX-512 could be the copy the linker keeps
// for the whole module, and would then crash an older processor. csrc/<op>/bind.cpp (baseline flags) declares the
// namespaces and picks one with isa().
#pragma once

#define FASTRANK_CONCAT_(a, b) a##b
#define FASTRANK_CONCAT(a, b) FASTRANK_CONCAT_(a, b)
#ifdef FASTRANK_ISA
#define FASTRANK_ISA_NAMESPACE FASTRANK_CONCAT(isa_, FASTRANK_ISA)
#endif

namespace fastrank {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2 };

// The best set that this processor and this build have; FASTRANK_ISA=scalar|avx2|avx512 in the environment lowers it.
Isa isa();
const char* isa_name(Isa isa);
// Whether AMX's integer tiles may be used beside AVX-512: the processor has them, the system lets this process, and
// FASTRANK_ISA is not set, or to amx.
bool amx();

}  // namespace fastrank
