// The extension module fastrank.kernels._core. Each op adds its functions in csrc/<op>/bind.cpp.
#include <pybind11/pybind11.h>

#include "common/simd.h"

namespace py = pybind11;

namespace fastrank {
void bind_common(py::module_& m);
void bind_gram(py::module_& m);
void bind_rsvd(py::module_& m);
void bind_small_eigh(py::module_& m);
void bind_tempered_ce(py::module_& m);
void bind_tempered_mse(py::module_& m);
}  // namespace fastrank

PYBIND11_MODULE(_core, m) {
  m.doc() = "Torch-free kernels of fastrank: raw addresses, sizes and strides in, results in place.";
  m.attr("isa") = fastrank::isa_name(fastrank::isa());
  m.attr("built_isas") = FASTRANK_ISAS;
#ifdef FASTRANK_WITH_CUDA
  m.attr("cuda") = true;
  m.attr("cuda_version") = FASTRANK_CUDA_VERSION;
  m.attr("cuda_architectures") = FASTRANK_CUDA_ARCHITECTURES;
#else
  m.attr("cuda") = false;
#endif
  fastrank::bind_common(m);
  fastrank::bind_gram(m);
  fastrank::bind_rsvd(m);
  fastrank::bind_small_eigh(m);
  fastrank::bind_tempered_ce(m);
  fastrank::bind_tempered_mse(m);
}
