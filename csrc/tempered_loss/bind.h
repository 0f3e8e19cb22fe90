// Python's entry to a tempered loss: checks labels, temperatures and shares, splits rows over threads, reduces.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <string>

#include "common/parallel.h"
#include "tempered_loss/problem.h"

namespace fastrank {
namespace {

// Below this many logits a call stays on its own thread: waking another costs about as much as the work.
constexpr int64_t kSerialElements = 1 << 15;
// Logits in one task: small enough to balance, large enough that handing it out costs nothing.
constexpr int64_t kTaskElements = 1 << 14;
// As kernels/tempered_loss/validate.py.
constexpr double kLowestT = 0x1p-100, kHighestT = 0x1p100;

template <class Op> using Kernel = void (*)(const Op&, int64_t, int64_t, void*);

template <class Op> void over_rows(Kernel<Op> kernel, const Op& op, int threads) {
  const int64_t rows = op.row_count(), together = op.together();
  const int64_t step = std::max<int64_t>(1, kTaskElements / op.c / together) * together;
  const int64_t bytes = op.scratch() * (op.dtype == Dtype::f64 ? 8 : 4);
  if (rows * op.c <= kSerialElements) threads = 1;
  parallel_for((rows + step - 1) / step, threads, [&](int64_t task) {
    std::unique_ptr<char[]> scratch;
    if (bytes) scratch.reset(new char[bytes]);
    kernel(op, task * step, std::min(rows, (task + 1) * step), scratch.get());
  });
}

struct Fault {
  enum Kind { none, label, second_label, temperature, share } kind = none;
  int64_t at = 0;  // the row of a label, the n of a temperature or share
};

inline Fault label_fault(const TemperedLoss& op, const int64_t* labels, bool may_be_ignored, Fault::Kind kind) {
  for (int64_t r = 0; labels && r < op.row_count(); ++r)
    if ((labels[r] < 0 || labels[r] >= op.c) && !(may_be_ignored && labels[r] == op.ignore_index)) return {kind, r};
  return {};
}

template <class A> Fault first_fault(const TemperedLoss& op) {
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

// What a mean divides by: the weights of the rows that count; with class probabilities or mixed targets, the rows.
template <class A> double used_weight(const TemperedLoss& op) {
  if (op.probabilities || op.second) return static_cast<double>(op.row_count());
  double weight = 0;
  for (int64_t r = 0; r < op.row_count(); ++r)
    if (op.target[r] != op.ignore_index) weight += op.weight ? static_cast<const A*>(op.weight)[op.target[r]] : A(1);
  return weight;
}

// Forward into `result`. Rows are summed in order and in double, so that the number of threads changes nothing. `terms`
// are what a row's loss adds up, for a mean over those too.
template <class A, class Op>
void run_forward(Kernel<Op> kernel, Op& op, int64_t terms, int reduction, void* result, void* denominator, int threads) {
  const double divisor = reduction == 1 ? used_weight<A>(op) * static_cast<double>(terms) : 1;
  *static_cast<A*>(denominator) = static_cast<A>(divisor);
  op.grad_scale = 1 / static_cast<double>(*static_cast<A*>(denominator));
  std::unique_ptr<A[]> unreduced;
  if (reduction != 0) unreduced.reset(new A[op.row_count()]);
  op.loss = reduction != 0 ? unreduced.get() : result;
  over_rows(kernel, op, threads);
  if (reduction == 0) return;
  double loss = 0;
  for (int64_t r = 0; r < op.row_count(); ++r) loss += unreduced[r];
  *static_cast<A*>(result) = static_cast<A>(loss / divisor);
}

inline void* address(uintptr_t p) { return reinterpret_cast<void*>(p); }

// The arguments that forward and backward share. `target` and `second` are addresses of int64, `probabilities` and its
// strides stand in for them; addresses that are 0 mean none.
template <class Op>
Op describe(int dtype, uintptr_t logits, pybind11::tuple sizes, pybind11::tuple strides, uintptr_t target,
            uintptr_t second, uintptr_t share, int64_t share_stride, uintptr_t probabilities,
            pybind11::tuple probability_strides, int64_t ignore_index, uintptr_t weight, double smoothing,
            uintptr_t temperature, int64_t temperature_stride, double temperature_value, int grad_power, uintptr_t rows,
            int planes, uintptr_t grad, pybind11::tuple grad_strides) {
  Op op{};
  const auto set = [](pybind11::tuple from, int64_t& n, int64_t& c, int64_t& d) {
    n = from[0].cast<int64_t>(), c = from[1].cast<int64_t>(), d = from[2].cast<int64_t>();
  };
  op.dtype = static_cast<Dtype>(dtype);
  set(sizes, op.n, op.c, op.d);
  set(strides, op.stride_n, op.stride_c, op.stride_d);
  op.logits = address(logits);
  op.target = static_cast<const int64_t*>(address(target));
  op.second = static_cast<const int64_t*>(address(second));
  op.share = address(share);
  op.share_stride = share_stride;
  op.probabilities = address(probabilities);
  if (probabilities)
    set(probability_strides, op.probability_stride_n, op.probability_stride_c, op.probability_stride_d);
  op.ignore_index = ignore_index;
  op.weight = address(weight);
  op.smoothing = smoothing;
  op.temperature = address(temperature);
  op.temperature_stride = temperature_stride;
  op.temperature_value = temperature_value;
  op.grad_power = grad_power;
  op.rows = address(rows);
  op.planes = planes;
  op.grad = address(grad);
  if (grad) set(grad_strides, op.grad_stride_n, op.grad_stride_c, op.grad_stride_d);
  if (op.c == 1) op.stride_c = op.grad_stride_c = op.probability_stride_c = 1;  // of one class any stride is right
  op.prepare();
  return op;
}

// `run` where nothing is wrong with the values; (fault kind, position).
template <class Run> pybind11::tuple checked(const TemperedLoss& op, Run run) {
  Fault fault;
  {
    pybind11::gil_scoped_release release;
    fault = op.dtype == Dtype::f64 ? first_fault<double>(op) : first_fault<float>(op);
    if (fault.kind == Fault::none) run();
  }
  return pybind11::make_tuple(static_cast<int>(fault.kind), fault.at);
}

// Defines <name>_forward and <name>_backward. kernel(forward) is the instruction set's; for `per_class`, a mean is over
// the classes too.
template <class Op>
void bind_loss(pybind11::module_& m, const std::string& name, Kernel<Op> (*kernel)(bool), bool per_class) {
  m.def(
      (name + "_forward").c_str(),
      [kernel, per_class](int dtype, uintptr_t logits, pybind11::tuple sizes, pybind11::tuple strides,
                          uintptr_t target, uintptr_t second, uintptr_t share, int64_t share_stride,
                          uintptr_t probabilities, pybind11::tuple probability_strides, int64_t ignore_index,
                          uintptr_t weight, double smoothing, uintptr_t temperature, int64_t temperature_stride,
                          double temperature_value, int grad_power, uintptr_t rows, int planes, uintptr_t grad,
                          pybind11::tuple grad_strides, uintptr_t loss, int reduction, uintptr_t denominator,
                          int threads) {
        Op op = describe<Op>(dtype, logits, sizes, strides, target, second, share, share_stride, probabilities,
                             probability_strides, ignore_index, weight, smoothing, temperature, temperature_stride,
                             temperature_value, grad_power, rows, planes, grad, grad_strides);
        return checked(op, [&] {
          (op.dtype == Dtype::f64 ? run_forward<double, Op> : run_forward<float, Op>)(
              kernel(true), op, per_class ? op.c : 1, reduction, address(loss), address(denominator), threads);
        });
      },
      "(fault kind, position): kind 0 none, 1 and 2 a label of target and second outside [0, C), 3 a temperature\n"
      "outside [1e-30, 1e30], 4 a share outside [0, 1]. grad: 0, or where the gradient for grad_loss = 1 goes.\n"
      "reduction: 0 none (loss: [N * D]), 1 mean, 2 sum (loss: one value); denominator: what the mean divides by,\n"
      "else 1.");
  m.def(
      (name + "_backward").c_str(),
      [kernel](int dtype, uintptr_t logits, pybind11::tuple sizes, pybind11::tuple strides, uintptr_t target,
               uintptr_t second, uintptr_t share, int64_t share_stride, uintptr_t probabilities,
               pybind11::tuple probability_strides, int64_t ignore_index, uintptr_t weight, double smoothing,
               uintptr_t temperature, int64_t temperature_stride, double temperature_value, int grad_power,
               uintptr_t rows, int planes, uintptr_t grad, pybind11::tuple grad_strides, uintptr_t grad_loss,
               int64_t grad_loss_stride, uintptr_t denominator, int threads) {
        Op op = describe<Op>(dtype, logits, sizes, strides, target, second, share, share_stride, probabilities,
                             probability_strides, ignore_index, weight, smoothing, temperature, temperature_stride,
                             temperature_value, grad_power, rows, planes, grad, grad_strides);
        op.grad_loss = address(grad_loss);
        op.grad_loss_stride = grad_loss_stride;
        op.grad_scale = 1 / (op.dtype == Dtype::f64 ? *static_cast<const double*>(address(denominator))
                                                    : *static_cast<const float*>(address(denominator)));
        return checked(op, [&] { over_rows(kernel(false), op, threads); });
      },
      "Writes the gradient of the loss with respect to the logits, for rows left by the forward pass.");
}

}  // namespace
}  // namespace fastrank
