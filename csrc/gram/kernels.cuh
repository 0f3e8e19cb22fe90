// Device code of the Gram products (gram.h). Launch code is in cuda.cu; these files need only CUDA C++ itself and
// common/tensor.cuh, so a test can compile them with a host compiler and a stand-in for both.
#pragma once

#include "gram/reduce.cuh"
#include "gram/tiles.cuh"
