// What PTX instructions compute, as C++ functions: code made by translate.py calls these. Semantics are those of the
// PTX ISA, including results for NaN, shifts beyond the width and saturation. See also shim/emulate.h: memory,
// barriers and exchanges within a warp are the shim's.
#pragma once

#include "accesses.h"
#include "approximations.h"
#include "conversions.h"
#include "integers.h"
#include "numbers.h"

namespace ptx {

// Which deliberate mistake is switched on (see translate.py); 0 is none.
inline int mutant = 0;

}  // namespace ptx
