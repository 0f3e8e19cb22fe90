// Python bindings of the randomized SVD kernels: addresses, sizes and strides as integers; the GIL is released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "common/philox.h"
#include "common/simd.h"
#include "rsvd/distance.h"
#include "rsvd/step.h"

namespace py = pybind11;

namespace fastrank {
namespace {

using rsvd::DType;
using rsvd::Kernels;
using rsvd::Kind;

const Kernels& kernels_of(bool is_double) {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::avx512: return is_double ? rsvd::isa_avx512::kDouble : rsvd::isa_avx512::kFloat;
    case Isa::avx2: return is_double ? rsvd::isa_avx2::kDouble : rsvd::isa_avx2::kFloat;
    default: break;
  }
#endif
  return is_double ? rsvd::isa_scalar::kDouble : rsvd::isa_scalar::kFloat;
}

rsvd::Matrix matrix(uintptr_t data, int dtype, int64_t rows, int64_t columns, int64_t stride) {
  return {reinterpret_cast<const void*>(data), static_cast<DType>(dtype), rows, columns, stride};
}

void test_matrix(int64_t first, int64_t rows, int64_t columns, uint64_t seed, uint32_t stream, int kind, uintptr_t to,
                 bool is_double, int threads) {
  const Kernels& kernels = kernels_of(is_double);
  constexpr int64_t some = 256;
  parallel_for((rows + some - 1) / some, threads, [&](int64_t task) {
    const int64_t row = task * some;
    kernels.test_matrix(first + row, std::min(some, rows - row), columns, seed, stream, static_cast<Kind>(kind),
                        reinterpret_cast<char*>(to) + row * columns * kernels.element_size, columns);
  });
}

void sketch(uintptr_t data, int dtype, int64_t rows, int64_t columns, int64_t stride, int64_t q, uint64_t seed,
            uint32_t stream, int kind, uintptr_t y, int threads) {
  const rsvd::Matrix a = matrix(data, dtype, rows, columns, stride);
  const bool is_double = a.dtype == DType::f64;
  (is_double ? rsvd::sketch<double> : rsvd::sketch<float>)(kernels_of(is_double), a, q, seed, stream,
                                                           static_cast<Kind>(kind), reinterpret_cast<void*>(y),
                                                           threads);
}

// Each of `items`: data, dtype, rows, columns, stride, v, q, k, u, s, v_out, residual, entering, norm.
void steps(py::list items, int threads) {
  std::vector<rsvd::Problem> problems;
  for (py::handle each : items) {
    const auto item = py::cast<py::tuple>(each);
    const auto integer = [&](size_t i) { return item[i].cast<int64_t>(); };
    const auto address = [&](size_t i) { return reinterpret_cast<void*>(item[i].cast<uintptr_t>()); };
    const rsvd::Matrix a = matrix(item[0].cast<uintptr_t>(), item[1].cast<int>(), integer(2), integer(3), integer(4));
    problems.push_back({&kernels_of(a.dtype == DType::f64), a, address(5), integer(6), integer(7), address(8),
                        address(9), address(10), address(11), address(12), address(13)});
  }
  const py::gil_scoped_release released;
  rsvd::Steps(std::move(problems), threads).run();
}

// Each of `items`: x, is_double, stride, d, q, out, fresh, seed, stream.
void orthonormal_many(py::list items, int threads) {
  std::vector<rsvd::Block> blocks;
  for (py::handle each : items) {
    const auto item = py::cast<py::tuple>(each);
    blocks.push_back({&kernels_of(item[1].cast<bool>()), reinterpret_cast<const void*>(item[0].cast<uintptr_t>()),
                      item[2].cast<int64_t>(), item[3].cast<int64_t>(), item[4].cast<int64_t>(),
                      reinterpret_cast<void*>(item[5].cast<uintptr_t>()), item[6].cast<int64_t>(),
                      item[7].cast<uint64_t>(), item[8].cast<uint32_t>()});
  }
  const py::gil_scoped_release released;
  rsvd::orthonormal_many(blocks, threads);
}

// Each of `items`: x, y, is_double, rows, columns, strides of their rows, found.
void distances(py::list items, int threads) {
  std::vector<rsvd::Pair> pairs;
  for (py::handle each : items) {
    const auto item = py::cast<py::tuple>(each);
    const auto integer = [&](size_t i) { return item[i].cast<int64_t>(); };
    const auto address = [&](size_t i) { return reinterpret_cast<void*>(item[i].cast<uintptr_t>()); };
    pairs.push_back({&kernels_of(item[2].cast<bool>()), address(0), address(1), integer(3), integer(4), integer(5),
                     integer(6), static_cast<double*>(address(7))});
  }
  const py::gil_scoped_release released;
  rsvd::distances(pairs, threads);
}

}  // namespace

void bind_rsvd(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("philox4x32", [](std::vector<uint32_t> counter, uint32_t key0, uint32_t key1) {
    const auto found = philox::philox4x32({{counter.at(0), counter.at(1), counter.at(2), counter.at(3)}}, key0, key1);
    return py::make_tuple(found.w[0], found.w[1], found.w[2], found.w[3]);
  }, "Philox 4x32-10 of one counter");
  m.def("test_matrix_cpu", &test_matrix, release,
        "rows [first, first + rows) of a test matrix, to contiguous float or double memory");
  m.def("sketch_cpu", &sketch, release, "y = A times a test matrix [columns, q]; y contiguous");
  m.def("subspace_step_many_cpu", &steps, "one warm step for each of a list of its arguments; see rsvd.h");
  m.def("orthonormal_many_cpu", &orthonormal_many, "an orthonormal basis for each of a list of blocks and test matrices");
  m.def("distances_cpu", &distances, "||x - y|| and ||x||, Frobenius norms, for each of a list of its arguments");
  m.attr("rsvd_max_columns") = rsvd::kMaxColumns;
  m.attr("rsvd_fill_seed") = rsvd::kFillSeed;
  m.def(
      "rsvd_precision",
      [](bool is_double) {
        const rsvd::Precision p = rsvd::precision(is_double);
        return py::make_tuple(p.dependent, p.noise, p.negligible);
      },
      "the constants DEPENDENT, NOISE and NEGLIGIBLE of products in double or float");
}

}  // namespace fastrank
