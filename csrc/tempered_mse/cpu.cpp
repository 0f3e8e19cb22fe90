// Row kernels of the tempered squared error (definitions in tempered_mse.h), for one instruction set.
#include "tempered_mse/rows.h"

namespace fastrank {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

template <class S, bool ACROSS>
void run(const SquaredError& op, int64_t begin, int64_t end, void* scratch, bool forward) {
  using Block = Rows<S, ACROSS>;
  for (int64_t r = begin; r < end; r += ACROSS ? 1 : Block::width) {
    Block block(op, r, end, static_cast<Acc<S>*>(scratch));
    forward ? block.forward() : block.backward();
  }
}

void run_any(const SquaredError& op, int64_t begin, int64_t end, void* scratch, bool forward) {
  const auto of = [&](auto storage) {
    using S = decltype(storage);
    op.across() ? run<S, true>(op, begin, end, scratch, forward) : run<S, false>(op, begin, end, scratch, forward);
  };
  switch (op.dtype) {
    case Dtype::f64: return of(double{});
    case Dtype::f32: return of(float{});
    case Dtype::bf16: return of(Bf16{});
    case Dtype::f16: return of(F16{});
  }
}

}  // namespace

void squared_error_forward(const SquaredError& op, int64_t begin, int64_t end, void* scratch) {
  run_any(op, begin, end, scratch, true);
}

void squared_error_backward(const SquaredError& op, int64_t begin, int64_t end, void* scratch) {
  run_any(op, begin, end, scratch, false);
}

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace fastrank
