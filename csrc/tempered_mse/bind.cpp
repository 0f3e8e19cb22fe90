// Python's entry to the tempered squared error.
#include "tempered_mse/tempered_mse.h"
#include "tempered_loss/bind.h"

namespace fastrank {
namespace {

Kernel<SquaredError> kernel(bool forward) {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return forward ? isa_avx512::squared_error_forward : isa_avx512::squared_error_backward;
  if (isa() == Isa::avx2) return forward ? isa_avx2::squared_error_forward : isa_avx2::squared_error_backward;
#endif
  return forward ? isa_scalar::squared_error_forward : isa_scalar::squared_error_backward;
}

}  // namespace

void bind_tempered_mse(pybind11::module_& m) { bind_loss<SquaredError>(m, "tempered_mse", kernel, true); }

}  // namespace fastrank
