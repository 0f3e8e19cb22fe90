// The kernels of rsvd.h, compiled once per instruction set (see common/simd.h: C headers and intrinsics only) and without
// contraction (see common/philox.h): where a fused multiply-add is wanted, it is asked for.
#include "rsvd/rsvd.h"

#include "rsvd/random.h"
#include "rsvd/reading.h"
#include "rsvd/small.h"
#include "rsvd/sums.h"
#include "rsvd/tall.h"
#include "rsvd/times.h"
#include "rsvd/times_packed.h"
#include "rsvd/turned.h"
#include "rsvd/turned_columns.h"
#include "rsvd/vectors.h"

namespace fastrank {
namespace rsvd {
namespace FASTRANK_ISA_NAMESPACE {
namespace {

template <class T>
constexpr Kernels kKernels = {
    kLanes<T>, sizeof(T), widen<T>, copy<T>, times<T, T>, pack<T>, times_packed<T>, turned_columns<T>, upright<T>,
    turned<T, T>, times<float, T>, turned<float, T>, gram<T>, product<T>, difference<T>, residual<T>, squares<T>,
    distance<T>, sum<T>, largest, test_matrix<T>, orthonormaliser, eigen, congruence, multiply};

}  // namespace

extern const Kernels kDouble = kKernels<double>;
extern const Kernels kFloat = kKernels<float>;

}  // namespace FASTRANK_ISA_NAMESPACE
}  // namespace rsvd
}  // namespace fastrank
