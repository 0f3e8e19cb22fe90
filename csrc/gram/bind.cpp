// Python bindings of the Gram kernels: addresses, sizes and strides as integers; the GIL is released while they run.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "common/simd.h"
#include "gram/copy_patches.h"
#include "gram/gram.h"
#include "gram/patch_schedule.h"

namespace py = pybind11;

namespace fastrank {
namespace {

using gram::DType;
using gram::Kernels;
using gram::Matrix;

// Numbers may be rounded to digits where somebody takes up by how much.
const Kernels& kernels_of(bool fast, bool may_round = false) {
#if defined(FASTRANK_WITH_AMX)
  if (fast && may_round && amx()) return gram::isa_amx::kDigits;
#endif
  (void)may_round;
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::avx512: return fast ? gram::isa_avx512::kFast : gram::isa_avx512::kExact;
    case Isa::avx2: return fast ? gram::isa_avx2::kFast : gram::isa_avx2::kExact;
    default: break;
  }
#endif
  return fast ? gram::isa_scalar::kFast : gram::isa_scalar::kExact;
}

// rows x columns of `dtype`; see gram.h for the strides (in elements).
Matrix matrix(uintptr_t data, int dtype, int64_t rows, int64_t columns, int64_t inner, int64_t stride_outer,
              int64_t stride_inner, int64_t stride_column) {
  return {reinterpret_cast<const void*>(data), static_cast<DType>(dtype), rows, columns, inner, stride_outer,
          stride_inner, stride_column};
}

void accumulate_cpu(uintptr_t data, int dtype, int64_t rows, int64_t columns, int64_t inner, int64_t stride_outer,
                    int64_t stride_inner, int64_t stride_column, uintptr_t shift, uintptr_t c, int64_t ldc,
                    uintptr_t total, bool fast, uintptr_t rounded, int threads) {
  gram::accumulate(kernels_of(fast, rounded != 0),
                   matrix(data, dtype, rows, columns, inner, stride_outer, stride_inner, stride_column),
                   reinterpret_cast<const double*>(shift),
                   {reinterpret_cast<double*>(c), ldc, reinterpret_cast<double*>(total),
                    reinterpret_cast<double*>(rounded)},
                   threads);
}

// Here and not in Python, where looking for the least and the largest takes as long as a small copy.
void check_rows(const int64_t* rows, int64_t count, int64_t total) {
  if (!count) return;
  const auto [least, most] = std::minmax_element(rows, rows + count);
  if (*least < 0 || *most >= total)
    throw py::value_error("rows: expected " + (total ? "0 .. " + std::to_string(total - 1) : "none, of an empty x") +
                          ", got " + std::to_string(*least) + " .. " + std::to_string(*most));
}

gram::Patches patches(uintptr_t data, int dtype, py::tuple sizes, py::tuple strides, int64_t groups, py::tuple kernel,
                      py::tuple step, py::tuple pad, py::tuple dilation) {
  gram::Patches p{};
  p.data = reinterpret_cast<const void*>(data);
  p.dtype = static_cast<DType>(dtype);
  p.images = sizes[0].cast<int64_t>();
  p.groups = groups;
  p.channels = sizes[1].cast<int64_t>() / groups;
  p.stride_image = strides[0].cast<int64_t>();
  p.stride_channel = strides[1].cast<int64_t>();
  for (size_t axis = 0; axis < 2; ++axis) {
    p.size[axis] = sizes[axis + 2].cast<int64_t>();
    p.stride[axis] = strides[axis + 2].cast<int64_t>();
    p.kernel[axis] = kernel[axis].cast<int64_t>();
    p.step[axis] = step[axis].cast<int64_t>();
    p.pad[axis] = pad[axis].cast<int64_t>();
    p.dilation[axis] = dilation[axis].cast<int64_t>();
  }
  return p;
}

#ifdef FASTRANK_WITH_CUDA
void accumulate_cuda(uintptr_t data, int dtype, int64_t rows, int64_t columns, int64_t inner, int64_t stride_outer,
                     int64_t stride_inner, int64_t stride_column, uintptr_t shift, uintptr_t c, int64_t ldc,
                     uintptr_t total, bool fast, uintptr_t workspace, uintptr_t stream, uintptr_t nonfinite,
                     bool symmetric) {
  gram::accumulate_cuda({matrix(data, dtype, rows, columns, inner, stride_outer, stride_inner, stride_column),
                         reinterpret_cast<const double*>(shift), reinterpret_cast<double*>(c), ldc,
                         reinterpret_cast<double*>(total), reinterpret_cast<int*>(nonfinite), fast, symmetric},
                        reinterpret_cast<double*>(workspace), reinterpret_cast<void*>(stream));
}

// From rows of integers, in the order of accumulate_cuda's arguments without workspace and stream.
constexpr int64_t kProductFields = 15;
std::vector<gram::Product> products(uintptr_t address, int64_t count) {
  std::vector<gram::Product> found;
  found.reserve(count);
  const int64_t* x = reinterpret_cast<const int64_t*>(address);
  for (int64_t i = 0; i < count; ++i, x += kProductFields)
    found.push_back({matrix(x[0], static_cast<int>(x[1]), x[2], x[3], x[4], x[5], x[6], x[7]),
                     reinterpret_cast<const double*>(x[8]), reinterpret_cast<double*>(x[9]), x[10],
                     reinterpret_cast<double*>(x[11]), reinterpret_cast<int*>(x[13]), x[12] != 0, x[14] != 0});
  return found;
}

void group_fill(uintptr_t address, int64_t count, uintptr_t workspace, uintptr_t table) {
  gram::group_fill(products(address, count).data(), count, reinterpret_cast<double*>(workspace),
                   reinterpret_cast<void*>(table));
}
#endif

// Each of `items`: (data, dtype, n, d, stride_row, stride_column, k, fast, rounded) of data [n, d].
void dual_many_cpu(py::list items, int threads) {
  std::vector<gram::Dual> all;
  for (py::handle each : items) {
    const auto item = py::cast<py::tuple>(each);
    const auto integer = [&](size_t i) { return item[i].cast<int64_t>(); };
    const auto address = [&](size_t i) { return item[i].cast<uintptr_t>(); };
    const int64_t n = integer(2), d = integer(3);
    // The columns of data are the rows that are summed over.
    all.push_back({matrix(address(0), item[1].cast<int>(), d, n, d, 0, integer(5), integer(4)),
                   {reinterpret_cast<double*>(address(6)), n, nullptr, reinterpret_cast<double*>(address(8)), true},
                   item[7].cast<bool>()});
  }
  const py::gil_scoped_release released;
  gram::dual_many(kernels_of, all, threads);
}

py::tuple pair(gram::Depth depth) { return py::make_tuple(depth.before, depth.adds); }

}  // namespace

void bind_gram(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("gram_accumulate_cpu", &accumulate_cpu, release,
        "lower(C) += A^T A and total += column sums of A, for A = data - shift; in fp64, row stride ldc.\n"
        "rounded: a double that takes up the square of what rounding A changed, or 0: A is not rounded");
  m.def(
      "gram_patches_cpu",
      [](uintptr_t data, int dtype, py::tuple sizes, py::tuple strides, int64_t groups, py::tuple kernel,
         py::tuple step, py::tuple pad, py::tuple dilation, uintptr_t shift, uintptr_t c, int64_t ldc, uintptr_t total,
         bool fast, int threads) {
        const gram::Patches p = patches(data, dtype, sizes, strides, groups, kernel, step, pad, dilation);
        const py::gil_scoped_release released;
        gram::accumulate_patches(kernels_of(fast), fast, p, reinterpret_cast<const double*>(shift),
                                 {reinterpret_cast<double*>(c), ldc, reinterpret_cast<double*>(total)}, threads);
      },
      "lower(C) += P^T P and total += column sums of P, the patches of data [images, channels, height, width] less\n"
      "shift, one number a channel (or 0); kernel, step, pad and dilation are pairs. See patches.h.");
  m.def(
      "patch_rows_cpu",
      [](uintptr_t data, int dtype, py::tuple sizes, py::tuple strides, int64_t groups, py::tuple kernel,
         py::tuple step, py::tuple pad, py::tuple dilation, uintptr_t rows, int64_t count, uintptr_t out, int threads) {
        const gram::Patches p = patches(data, dtype, sizes, strides, groups, kernel, step, pad, dilation);
        const auto* index = reinterpret_cast<const int64_t*>(rows);
        check_rows(index, count, p.rows());
        const py::gil_scoped_release released;
        switch (p.dtype) {
          case gram::DType::f64: return gram::copy_patches(p, index, count, reinterpret_cast<uint64_t*>(out), threads);
          case gram::DType::f32: return gram::copy_patches(p, index, count, reinterpret_cast<uint32_t*>(out), threads);
          default: return gram::copy_patches(p, index, count, reinterpret_cast<uint16_t*>(out), threads);
        }
      },
      "out[i] = row rows[i] of the patch matrix of gram_patches_cpu, in data's own type; ValueError where there is no such\n"
      "row. See copy_patches.h.");
  m.def(
      "gram_depth_patches_cpu",
      [](py::tuple sizes, int64_t groups, py::tuple kernel, py::tuple step, py::tuple pad, py::tuple dilation,
         bool fast) {
        const gram::Patches p = patches(0, 0, sizes, py::make_tuple(0, 0, 0, 0), groups, kernel, step, pad, dilation);
        return pair(gram::patch_depth(kernels_of(fast), p, fast));
      },
      "gram_depth_cpu for gram_patches_cpu");
  m.def("gram_dual_many_cpu", &dual_many_cpu,
        "K = data data^T, both triangles, for each of a list of (data, dtype, n, d, stride_row, stride_column, K, fast,\n"
        "rounded): K is contiguous, data [n, d] not empty, rounded as in gram_accumulate_cpu");
  m.def(
      "gram_depth_cpu",
      [](int64_t rows, int64_t columns, bool fast, bool may_round) {
        const Kernels& kernels = kernels_of(fast, may_round);
        return pair(gram::Plan(kernels, rows, columns).depth(kernels, rows));
      },
      "(before, adds): the most fp64 roundings of one product of gram_accumulate_cpu; see Depth in gram.h");
  m.attr("gram_fast_chunk") = gram::kFastChunk;
  m.attr("gram_digits_chunk") = gram::kDigitsChunk;
  m.attr("gram_digits") = kernels_of(true, true).rounded != nullptr;
#ifdef FASTRANK_WITH_CUDA
  using namespace py::literals;
  m.def("gram_accumulate_cuda", &accumulate_cuda, release,
        "gram_accumulate_cpu on a CUDA stream. nonfinite: int32 on the device, set to 1 where a number of A is NaN or "
        "Inf, or 0; symmetric: C's upper triangle becomes the lower's mirror",
        "data"_a, "dtype"_a, "rows"_a, "columns"_a, "inner"_a, "stride_outer"_a, "stride_inner"_a, "stride_column"_a,
        "shift"_a, "c"_a, "ldc"_a, "total"_a, "fast"_a, "workspace"_a, "stream"_a, "nonfinite"_a = 0,
        "symmetric"_a = false);
  m.def("gram_workspace_cuda", &gram::workspace_cuda, "doubles of workspace that gram_accumulate_cuda needs");
  m.def(
      "gram_depth_cuda",
      [](int64_t rows, int64_t columns, bool fast) { return pair(gram::depth_cuda(rows, columns, fast)); },
      "gram_depth_cpu for gram_accumulate_cuda");
  // A group: `products` is the address of `count` rows of gram_group_fields int64.
  m.attr("gram_group_fields") = kProductFields;
  m.def("gram_group_cuda_size", &gram::group_bytes, "bytes of the table of a group of `count` products", "count"_a);
  m.def(
      "gram_group_cuda_workspace",
      [](uintptr_t address, int64_t count) { return gram::group_workspace(products(address, count).data(), count); },
      "doubles of workspace that a group needs. A row of `products`: data, dtype, rows, columns, inner, stride_outer, "
      "stride_inner, stride_column, shift, c, ldc, total, fast, nonfinite, symmetric, as in gram_accumulate_cuda",
      "products"_a, "count"_a);
  m.def("gram_group_cuda_fill", &group_fill, release,
        "write a group's table to host memory; it names the addresses in `products` and `workspace`, and stays good "
        "for every launch with the same ones",
        "products"_a, "count"_a, "workspace"_a, "table"_a);
  m.def(
      "gram_group_cuda_launch",
      [](uintptr_t table, uintptr_t device_table, uintptr_t stream) {
        gram::group_launch(reinterpret_cast<const void*>(table), reinterpret_cast<const void*>(device_table),
                           reinterpret_cast<void*>(stream));
      },
      release,
      "launch a group from its table on the host and the copy of that on the device (16-byte aligned), ordered before "
      "on the same stream; bit for bit what gram_accumulate_cuda gives one by one",
      "table"_a, "device_table"_a, "stream"_a);
  m.def(
      "gram_patches_cuda",
      [](uintptr_t data, int dtype, py::tuple sizes, py::tuple strides, int64_t groups, py::tuple kernel,
         py::tuple step, py::tuple pad, py::tuple dilation, uintptr_t shift, uintptr_t c, int64_t ldc, uintptr_t total,
         bool fast, uintptr_t workspace, uintptr_t stream, int way) {
        const gram::Patches p = patches(data, dtype, sizes, strides, groups, kernel, step, pad, dilation);
        const py::gil_scoped_release released;
        gram::patches_cuda(p, reinterpret_cast<const double*>(shift), reinterpret_cast<double*>(c), ldc,
                           reinterpret_cast<double*>(total), fast, reinterpret_cast<double*>(workspace),
                           reinterpret_cast<void*>(stream), static_cast<gram::PatchWay>(way));
      },
      "data"_a, "dtype"_a, "sizes"_a, "strides"_a, "groups"_a, "kernel"_a, "step"_a, "pad"_a, "dilation"_a, "shift"_a,
      "c"_a, "ldc"_a, "total"_a, "fast"_a, "workspace"_a, "stream"_a, "way"_a = 0,
      "gram_patches_cpu on a CUDA stream; way: 0 the cheaper, 1 general, 2 by shifts (needs step 1)");
  m.def(
      "gram_workspace_patches_cuda",
      [](py::tuple sizes, int64_t groups, py::tuple kernel, py::tuple step, py::tuple pad, py::tuple dilation,
         bool fast, int way) {
        const gram::Patches p = patches(0, 1, sizes, py::make_tuple(0, 0, 0, 0), groups, kernel, step, pad, dilation);
        return gram::workspace_patches_cuda(p, fast, static_cast<gram::PatchWay>(way));
      },
      "sizes"_a, "groups"_a, "kernel"_a, "step"_a, "pad"_a, "dilation"_a, "fast"_a, "way"_a = 0,
      "doubles of workspace that gram_patches_cuda needs");
  m.def(
      "gram_depth_patches_cuda",
      [](py::tuple sizes, int64_t groups, py::tuple kernel, py::tuple step, py::tuple pad, py::tuple dilation,
         bool fast, int way) {
        const gram::Patches p = patches(0, 1, sizes, py::make_tuple(0, 0, 0, 0), groups, kernel, step, pad, dilation);
        return pair(gram::depth_patches_cuda(p, fast, static_cast<gram::PatchWay>(way)));
      },
      "sizes"_a, "groups"_a, "kernel"_a, "step"_a, "pad"_a, "dilation"_a, "fast"_a, "way"_a = 0,
      "gram_depth_cpu for gram_patches_cuda");
#endif
}

}  // namespace fastrank
