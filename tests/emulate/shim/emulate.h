// CUDA device code on the CPU, for tests: one fibre per CUDA thread, under a schedule that the test chooses.
//
// How to use it. CUDA C++ source: put this folder before csrc/ and the toolkit's headers on the include path and
// compile the .cu file as C++20 (../toolchain.py has the flags); its `#include <cuda_runtime.h>` and "common/launch.cuh"
// then find the stand-ins here, and the file's own host code launches the kernels. Code generated from PTX: include
// this header and call launch() with a function to be run once per thread.
//
//   launching    launch(kernel name, grid, block, dynamic shared bytes, body)      throws Failure        launch.h
//                current_schedule() = Schedule::parse("random:7+early")                                  schedule.h
//                this_thread().index / .lane() / .linear, this_block().index, this_launch().grid / .block  state.h
//   failing      fail("printf format", ...)   from device code: names kernel, block, thread              failure.h
//                count_step()                 at backward jumps: finds loops that never wait           wait.h
//   barriers     barrier(id = 0, count = 0 (whole block), site, wait = true): bar.sync, bar.arrive          wait.h
//                warp_barrier(mask)                                                                      warp.h
//   warps        shuffle(Shuffle::{up,down,butterfly,index}, mask, value, operand, clamp, &predicate)
//                ballot, match_any, match_all, reduce(Reduce::{add,min,max,and_,or_,xor_}, mask, value)
//                exchange(mask, kind, value, read): what all of these are made of                        wait.h
//   cp.async     copy_async(to, from, bytes, source bytes), commit_copies, wait_copies(n), wait_all_copies
//                                                                                                        async_copy.h
//   tensor cores load_matrix<Count, Transposed>(fragment, row address)                                   tensor_core.h
//                multiply_accumulate<Bf16 | Fp16 | Fp64, Sum, M, K>(d, a, b); mma_m16n8k16,
//                mma_m16n8k8, mma_m8n8k4
//   atomics      atomic<Atomic::{add,min,max,exchange,and_,or_,xor_,increment,decrement}>(address, operand)
//                compare_and_swap(address, expected, wanted), fence()                                    atomics.h
//   memory       register_buffer(begin, bytes, writable, name), forget_buffers()                         memory.h
//                global(address, bytes, Access::{load,store}), shared(offset, ...), generic(address, ...):
//                a checked pointer; bounds are exact and alignment that of the access
//
// A block's shared memory starts as all bits set (NaN), dynamic and static. Blocks run one after another, or up to
// three at a time in any order under a random schedule. Every wait that cannot end, divergent barrier, bad address,
// unfinished copy or endless loop is a Failure; what is not provided does not compile.
#pragma once

#include "async_copy.h"
#include "atomics.h"
#include "launch.h"
#include "memory.h"
#include "tensor_core.h"
#include "warp.h"
