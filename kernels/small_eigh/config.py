"""Constants of the symmetric eigenproblems. Those of the native kernels stand beside them, in csrc/small_eigh."""

#: Rows of the largest matrix that `eigh_many` takes: Jacobi's sweeps, 6 m^3 flops each, are for matrices in L1.
MOST_VECTORS = 64
