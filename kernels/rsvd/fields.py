"""A matrix's line of the table that the subspace step's kernels read: which number stands where."""

from __future__ import annotations

import triton.language as tl

#: Address, sizes and strides of A [n, d].
A, N, D, A_STRIDE_N, A_STRIDE_D = map(tl.constexpr, range(5))
#: Address and strides of V [d, q], columns of it, and how many pairs are wanted.
V, V_STRIDE_D, V_STRIDE_Q, Q, K = map(tl.constexpr, range(5, 10))
#: Where the matrix's rows and columns begin among those of all matrices.
ROW, COLUMN = map(tl.constexpr, range(10, 12))
#: Where its blocks of rows and of columns begin, and how many there are.
ROW_BLOCK, ROW_BLOCKS, COLUMN_BLOCK, COLUMN_BLOCKS = map(tl.constexpr, range(12, 16))
#: Spans of A's columns; where the rows of its products by spans begin, and its items of `project_kernel`.
SPANS, PART, ITEM = map(tl.constexpr, range(16, 19))
COUNT = tl.constexpr(19)
