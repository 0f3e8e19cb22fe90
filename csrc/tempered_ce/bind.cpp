// Python's entry to the tempered cross-entropy.
#include "tempered_ce/tempered_ce.h"
#include "tempered_loss/bind.h"

namespace fastrank {
namespace {

Kernel<CrossEntropy> kernel(bool forward) {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return forward ? isa_avx512::cross_entropy_forward : isa_avx512::cross_entropy_backward;
  if (isa() == Isa::avx2) return forward ? isa_avx2::cross_entropy_forward : isa_avx2::cross_entropy_backward;
#endif
  return forward ? isa_scalar::cross_entropy_forward : isa_scalar::cross_entropy_backward;
}

}  // namespace

void bind_tempered_ce(pybind11::module_& m) { bind_loss<CrossEntropy>(m, "tempered_ce", kernel, false); }

}  // namespace fastrank
