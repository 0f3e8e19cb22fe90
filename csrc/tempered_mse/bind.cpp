// Python's entry to the tempered squared error: checks labels, temperatures and shares, splits rows over threads,
// reduces.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>

#include "common/parallel.h"
#include "tempered_mse/tempered_mse.h"

namespace py = pybind11;

namespace fastrank {
namespace {

// Below this many logits a call stays on its own thread: waking another costs about as much as the work.
constexpr int64_t kSerialElements = 1 << 15;
// Logits in one task: small enough to balance, large enough that handing it out costs nothing.
constexpr int64_t kTaskElements = 1 << 14;

// As kernels/tempered_ce/validate.py.
constexpr double kLowestT = 0x1p-100, kHighestT = 0x1p100;

using Kernel = void (*)(const SquaredError&, int64_t, int64_t, void*);

Kernel kernel_of(bool forward) {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return forward ? isa_avx512::squared_error_forward : isa_avx512::squared_error_backward;
  if (isa() == Isa::avx2) return forward ? isa_avx2::squared_error_forward : isa_avx2::squared_error_backward;
#endif
  return forward ? isa_scalar::squared_error_forward : isa_scalar::squared_error_backward;
}

void over_rows(Kernel kernel, const SquaredError& op, int threads) {
  const int64_t rows = op.row_count(), lanes = op.across() ? 1 : SquaredError::kLanes;
  const int64_t step = std::max<int64_t>(1, kTaskElements / op.c / lanes) * lanes;
  const int64_t bytes = op.scratch() * (op.dtype == 0 ? 8 : 4);
  if (rows * op.c <= kSerialElements) threads = 1;
  parallel_for((rows + step - 1) / step, threads, [&](int64_t task) {
    const std::unique_ptr<char[]> scratch(new char[bytes]);
    kernel(op, task * step, std::min(rows, (task + 1) * step), scratch.get());
  });
}

struct Fault {
  enum Kind { none, label, second_label, temperature, share } kind = none;
  int64_t at = 0;  // the row of a label, the n of a temperature or share
};

Fault label_fault(const SquaredError& op, const int64_t* labels, bool may_be_ignored, Fault::Kind kind) {
  for (int64_t r = 0; labels && r < op.row_count(); ++r)
    if ((labels[r] < 0 || labels[r] >= op.c) && !(may_be_ignored && labels[r] == op.ignore_index)) return {kind, r};
  return {};
}

template <class A> Fault first_fault(const SquaredError& op) {
  Fault fault = label_fault(op, op.target, !op.second, Fault::label);
  if (fault.kind == Fault::none) fault = label_fault(op, op.second, false, Fault::second_label);
  if (fault.kind != Fault::none) return fault;
  const A* const T = static_cast<const A*>(op.temperature);
  for (int64_t i = 0; T && i < (op.temperature_stride ? op.n : 1); ++i)
    if (!(T[i] >= A(kLowestT) && T[i] <= A(kHighestT))) return {Fault::temperature, i};
  const A* const share = static_cast<const A*>(op.share);
  for (int64_t i = 0; share && i < (op.share_stride ? op.n : 1); ++i)
    if (!(share[i] >= 0 && share[i] <= 1)) return {Fault::share, i};
  return {};
}

Fault first_fault_any(const SquaredError& op) {
  return op.dtype == 0 ? first_fault<double>(op) : first_fault<float>(op);
}

// What a mean divides by: C times the weights of the rows that count; with class probabilities, C times the rows.
template <class A> double mean_divisor(const SquaredError& op) {
  double total = 0;
  const auto weight_of = [&](int64_t y) { return op.weight ? static_cast<const A*>(op.weight)[y] : A(1); };
  for (int64_t r = 0; r < op.row_count(); ++r) {
    if (op.probabilities || op.second) {
      total += 1;
    } else if (!op.ignored(r)) {
      total += weight_of(op.target[r]);
    }
  }
  return total * static_cast<double>(op.c);
}

// Forward into `result`. Rows are summed in order and in double, so that the number of threads changes nothing.
template <class A> void run_forward(SquaredError& op, int reduction, void* result, void* denominator, int threads) {
  const double divisor = reduction == 1 ? mean_divisor<A>(op) : 1;
  *static_cast<A*>(denominator) = static_cast<A>(divisor);
  op.grad_scale = 1 / static_cast<double>(*static_cast<A*>(denominator));
  std::unique_ptr<A[]> unreduced;
  if (reduction != 0) unreduced.reset(new A[op.row_count()]);
  op.loss = reduction != 0 ? unreduced.get() : result;
  over_rows(kernel_of(true), op, threads);
  if (reduction == 0) return;
  double loss = 0;
  for (int64_t r = 0; r < op.row_count(); ++r) loss += unreduced[r];
  *static_cast<A*>(result) = static_cast<A>(loss / divisor);
}

void* address(uintptr_t p) { return reinterpret_cast<void*>(p); }

// The arguments that forward and backward share. `target` and `second` are addresses of int64, `probabilities` and its
// strides stand in for them; addresses that are 0 mean none.
SquaredError describe(int dtype, uintptr_t logits, py::tuple sizes, py::tuple strides, uintptr_t target,
                      uintptr_t second, uintptr_t share, int64_t share_stride, uintptr_t probabilities,
                      py::tuple probability_strides, int64_t ignore_index, uintptr_t weight, double smoothing,
                      uintptr_t temperature, int64_t temperature_stride, double temperature_value, int grad_power,
                      uintptr_t rows) {
  SquaredError op{};
  op.dtype = dtype;
  op.n = sizes[0].cast<int64_t>(), op.c = sizes[1].cast<int64_t>(), op.d = sizes[2].cast<int64_t>();
  op.stride_n = strides[0].cast<int64_t>(), op.stride_c = strides[1].cast<int64_t>();
  op.stride_d = strides[2].cast<int64_t>();
  op.logits = address(logits);
  op.target = static_cast<const int64_t*>(address(target));
  op.second = static_cast<const int64_t*>(address(second));
  op.share = address(share);
  op.share_stride = share_stride;
  op.probabilities = address(probabilities);
  if (probabilities) {
    op.probability_stride_n = probability_strides[0].cast<int64_t>();
    op.probability_stride_c = probability_strides[1].cast<int64_t>();
    op.probability_stride_d = probability_strides[2].cast<int64_t>();
  }
  op.ignore_index = ignore_index;
  op.weight = address(weight);
  op.smoothing = smoothing;
  op.temperature = address(temperature);
  op.temperature_stride = temperature_stride;
  op.temperature_value = temperature_value;
  op.grad_power = grad_power;
  op.rows = address(rows);
  return op;
}

void set_grad(SquaredError& op, uintptr_t grad, py::tuple strides) {
  op.grad = address(grad);
  op.grad_stride_n = strides[0].cast<int64_t>();
  op.grad_stride_c = strides[1].cast<int64_t>();
  op.grad_stride_d = strides[2].cast<int64_t>();
}

py::tuple answer(Fault fault) { return py::make_tuple(static_cast<int>(fault.kind), fault.at); }

}  // namespace

void bind_tempered_mse(py::module_& m) {
  m.def(
      "tempered_mse_forward",
      [](int dtype, uintptr_t logits, py::tuple sizes, py::tuple strides, uintptr_t target, uintptr_t second,
         uintptr_t share, int64_t share_stride, uintptr_t probabilities, py::tuple probability_strides,
         int64_t ignore_index, uintptr_t weight, double smoothing, uintptr_t temperature, int64_t temperature_stride,
         double temperature_value, int grad_power, uintptr_t rows, uintptr_t loss, int reduction, uintptr_t denominator,
         uintptr_t grad, py::tuple grad_strides, int threads) {
        SquaredError op = describe(dtype, logits, sizes, strides, target, second, share, share_stride, probabilities,
                                   probability_strides, ignore_index, weight, smoothing, temperature,
                                   temperature_stride, temperature_value, grad_power, rows);
        if (grad) set_grad(op, grad, grad_strides);
        Fault fault;
        {
          py::gil_scoped_release release;
          fault = first_fault_any(op);
          if (fault.kind == Fault::none)
            (op.dtype == 0 ? run_forward<double> : run_forward<float>)(op, reduction, address(loss),
                                                                       address(denominator), threads);
        }
        return answer(fault);
      },
      "(fault kind, position): kind 0 none, 1 and 2 a label of target and second outside [0, C), 3 a temperature\n"
      "outside [1e-30, 1e30], 4 a share outside [0, 1]. reduction: 0 none (loss: [N * D]), 1 mean, 2 sum (loss: one\n"
      "value); denominator: what the mean divides by, else 1. grad: 0, or where the gradient for grad_loss = 1 goes.");
  m.def(
      "tempered_mse_backward",
      [](int dtype, uintptr_t logits, py::tuple sizes, py::tuple strides, uintptr_t target, uintptr_t second,
         uintptr_t share, int64_t share_stride, uintptr_t probabilities, py::tuple probability_strides,
         int64_t ignore_index, uintptr_t weight, double smoothing, uintptr_t temperature, int64_t temperature_stride,
         double temperature_value, int grad_power, uintptr_t rows, uintptr_t grad_loss, int64_t grad_loss_stride,
         uintptr_t denominator, uintptr_t grad, py::tuple grad_strides, int threads) {
        SquaredError op = describe(dtype, logits, sizes, strides, target, second, share, share_stride, probabilities,
                                   probability_strides, ignore_index, weight, smoothing, temperature,
                                   temperature_stride, temperature_value, grad_power, rows);
        op.grad_loss = address(grad_loss);
        op.grad_loss_stride = grad_loss_stride;
        op.grad_scale = 1 / (op.dtype == 0 ? *static_cast<const double*>(address(denominator))
                                           : *static_cast<const float*>(address(denominator)));
        set_grad(op, grad, grad_strides);
        Fault fault;
        {
          py::gil_scoped_release release;
          fault = first_fault_any(op);
          if (fault.kind == Fault::none) over_rows(kernel_of(false), op, threads);
        }
        return answer(fault);
      },
      "Writes the gradient of the loss with respect to the logits, for rows left by tempered_mse_forward.");
}

}  // namespace fastrank
