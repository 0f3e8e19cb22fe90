// Row kernels of the tempered cross-entropy (definitions in tempered_ce.h), for one instruction set.
#include "tempered_ce/narrow.h"
#include "tempered_ce/wide.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

template <class S> void forward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  const auto tile = static_cast<Acc<S>*>(scratch);
  op.narrow() ? run_narrow<S>(op, begin, end, tile, &Block<S>::forward) : forward_wide<S>(op, begin, end, tile);
}

template <class S> void backward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  const auto tile = static_cast<Acc<S>*>(scratch);
  op.narrow() ? run_narrow<S>(op, begin, end, tile, &Block<S>::backward) : backward_wide<S>(op, begin, end);
}

}  // namespace

void cross_entropy_forward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  switch (op.dtype) {
    case Dtype::f64: return forward<double>(op, begin, end, scratch);
    case Dtype::f32: return forward<float>(op, begin, end, scratch);
    case Dtype::bf16: return forward<Bf16>(op, begin, end, scratch);
    case Dtype::f16: return forward<F16>(op, begin, end, scratch);
  }
}

void cross_entropy_backward(const CrossEntropy& op, int64_t begin, int64_t end, void* scratch) {
  switch (op.dtype) {
    case Dtype::f64: return backward<double>(op, begin, end, scratch);
    case Dtype::f32: return backward<float>(op, begin, end, scratch);
    case Dtype::bf16: return backward<Bf16>(op, begin, end, scratch);
    case Dtype::f16: return backward<F16>(op, begin, end, scratch);
  }
}

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
