// Sizes that stack arrays rely on.
#pragma once

#include <stdint.h>

namespace fastrank {
namespace rsvd {

// Columns of a block, at most. A larger one is no sketch any more, and its small algebra no longer small.
constexpr int64_t kMaxColumns = 128;
constexpr int64_t kMaxWidth = kMaxColumns;  // a multiple of every instruction set's lanes

}  // namespace rsvd
}  // namespace fastrank
