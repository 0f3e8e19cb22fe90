// Python bindings of the symmetric eigenproblems: addresses and sizes; the GIL is released while they run.
#include <pybind11/pybind11.h>

#include <vector>

#include "common/simd.h"
#include "small_eigh/schedule.h"
#include "small_eigh/small_eigh.h"

namespace py = pybind11;

namespace fastrank {
namespace {

const small_eigh::Kernels& kernels() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::avx512: return small_eigh::isa_avx512::kKernels;
    case Isa::avx2: return small_eigh::isa_avx2::kKernels;
    default: break;
  }
#endif
  return small_eigh::isa_scalar::kKernels;
}

// Of (data, ld, m, further addresses ...).
struct Item { int64_t field[5]; };

std::vector<Item> items_of(py::list list, std::vector<int64_t>& m) {
  std::vector<Item> items;
  for (py::handle each : list) {
    const auto tuple = py::cast<py::tuple>(each);
    Item item{};
    for (size_t i = 0; i < tuple.size() && i < 5; ++i) item.field[i] = tuple[i].cast<int64_t>();
    items.push_back(item);
    m.push_back(item.field[2]);
  }
  return items;
}

template <class T>
T* at(int64_t address) { return reinterpret_cast<T*>(static_cast<uintptr_t>(address)); }

void eigvalsh_many(py::list list, uintptr_t error, int threads) {
  std::vector<int64_t> m;
  const std::vector<Item> items = items_of(list, m);
  const py::gil_scoped_release released;
  small_eigh::each(m, threads, small_eigh::values_workspace, [&](int64_t i, double* workspace) {
    const Item& item = items[i];
    at<double>(error)[i] = item.field[2] ? kernels().values(at<const double>(item.field[0]), item.field[1],
                                                            item.field[2], at<double>(item.field[3]), workspace)
                                         : 0;
  });
}

void inertia_many(py::list list, uintptr_t shift, uintptr_t count, uintptr_t slack, int threads) {
  std::vector<int64_t> m;
  const std::vector<Item> items = items_of(list, m);
  const py::gil_scoped_release released;
  small_eigh::each(m, threads, small_eigh::inertia_workspace, [&](int64_t i, double* workspace) {
    const Item& item = items[i];
    at<double>(slack)[i] = kernels().inertia(at<const double>(item.field[0]), item.field[1], item.field[2],
                                             at<const double>(shift)[i], at<int64_t>(count) + i, workspace);
  });
}

void eigh_many(py::list list, int threads) {
  std::vector<int64_t> m;
  const std::vector<Item> items = items_of(list, m);
  for (int64_t size : m)
    if (size > small_eigh::kMostVectors) throw py::value_error("eigh_many_cpu: a matrix has too many rows");
  const py::gil_scoped_release released;
  small_eigh::each(m, threads, small_eigh::vectors_workspace, [&](int64_t i, double* workspace) {
    const Item& item = items[i];
    kernels().vectors(at<const double>(item.field[0]), item.field[1], item.field[2], at<double>(item.field[3]),
                      at<double>(item.field[4]), workspace);
  });
}

}  // namespace

void bind_small_eigh(py::module_& m) {
  m.def("eigvalsh_many_cpu", &eigvalsh_many,
        "Of each (address, row stride, size, address of the values): the eigenvalues of its lower triangle, ascending, "
        "and error[i] >= |computed - true| of all of them. fp64.");
  m.def("inertia_many_cpu", &inertia_many,
        "Of each (address, row stride, size) and shift: count, the eigenvalues that exceed the shift, and slack, the "
        "2-norm of a change of the matrix that would make the count exact.");
  m.def("eigh_many_cpu", &eigh_many,
        "Of each (address, row stride, size, address of the values, address of the vectors): eigenvalues, ascending, "
        "and eigenvectors as columns, of at most 64 rows.");
}

}  // namespace fastrank
