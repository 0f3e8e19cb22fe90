// emulate::launch by itself, for objects compiled with -DEMULATE_LAUNCH_ELSEWHERE.
#include "emulate.h"

[[gnu::used]] static const auto kept = &emulate::launch;
