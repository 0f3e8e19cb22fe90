"""Orthonormal bases of many blocks on CUDA, steps.py's `orthonormal`: 7 launches for all blocks of a dtype and width.

`start` copies the blocks to where the subspace step has its own, with their Gram matrices; then come its `basis` and
`apply`, three times. No host sync, no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastrank.kernels.rsvd.config import STEP_TILE
from fastrank.kernels.rsvd.step_triton import (
    _COLUMN,
    _COLUMN_BLOCK,
    _COLUMN_BLOCKS,
    _D,
    _FIELDS,
    _Q,
    _V,
    _VD,
    _VQ,
    _gram,
    _put,
    orthonormalise,
    step_width,
    tables,
)  # fmt: skip
from torch import Tensor


@triton.jit
def start_kernel(
    item_ptr, table_ptr, basis_ptr, gram_ptr, ACC: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr
):  # fmt: skip
    """ROWS of a block; a column that is not finite in them becomes zeros there, and NaN on the Gram's diagonal."""
    item = item_ptr + tl.program_id(0) * 2
    b, block = tl.load(item), tl.load(item + 1)
    t = table_ptr + b * _FIELDS
    d, q, column = tl.load(t + _D), tl.load(t + _Q), tl.load(t + _COLUMN)
    start, i, j = block * ROWS, block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    at = tl.load(t + _V).to(tl.pointer_type(ACC)) + i[:, None] * tl.load(t + _VD) + j[None, :] * tl.load(t + _VQ)
    x = tl.load(at, mask=(i < d)[:, None] & (j < q)[None, :], other=0.0)
    broken = tl.max(tl.where(tl.abs(x) < float("inf"), 0.0, 1.0), 0) > 0
    _put(basis_ptr, tl.where(broken[None, :], 0.0, x), d, column, i, j, Q)
    block += tl.load(t + _COLUMN_BLOCK)
    _gram(gram_ptr, basis_ptr, d, column, start, block, j, ROWS, Q)
    # After the Gram's own numbers.
    tl.debug_barrier()
    tl.store(gram_ptr + block * Q * Q + j * (Q + 1), tl.full((Q,), float("nan"), tl.float64), mask=broken)


def orthonormal_many(X: list[Tensor]) -> list[Tensor]:
    """An orthonormal basis of each X [d, q], q of 1 to 64."""
    kinds: dict[tuple[torch.dtype, int], list[int]] = {}
    for i, x in enumerate(X):
        kinds.setdefault((x.dtype, step_width(x.shape[1])), []).append(i)
    found: list[Tensor] = [torch.empty(0)] * len(X)
    for (dtype, width), members in kinds.items():
        for i, own in zip(members, _orthonormal(dtype, width, [X[i] for i in members]), strict=True):
            found[i] = own
    return found


def _orthonormal(dtype: torch.dtype, Q: int, X: list[Tensor]) -> list[Tensor]:
    device, sums = X[0].device, tuple([0] for _ in range(3))
    column, block, first = sums
    table, items = [], []
    for b, x in enumerate(X):
        d, q = x.shape
        wide = triton.cdiv(d, STEP_TILE.rows)
        fields = [0] * _FIELDS.value
        own = ((_D, d), (_V, x.data_ptr()), (_VD, x.stride(0)), (_VQ, x.stride(1)), (_Q, q), (_COLUMN, column[-1]))
        for field, value in (*own, (_COLUMN_BLOCK, block[-1]), (_COLUMN_BLOCKS, wide)):
            fields[field.value] = value
        table += fields
        items += [number for at in range(wide) for number in (b, at)]
        for total, size in zip(sums, (d, wide, d * q), strict=True):
            total.append(total[-1] + size)
    table, by_column, at = tables([table, items, first[:-1]], device)

    def new(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    basis, gram = [new(column[-1], Q, dtype=dtype) for _ in range(2)], new(block[-1], Q, Q)
    T, lost, out = new(len(X), Q, Q), new(len(X), Q, dtype=torch.int32), new(first[-1], dtype=dtype)
    with torch.cuda.device_of(out):
        start_kernel[(block[-1],)](
            by_column, table, basis[0], gram, ACC=tl.float64 if dtype == torch.float64 else tl.float32,
            ROWS=STEP_TILE.rows, Q=Q, num_warps=STEP_TILE.warps,
        )  # fmt: skip
        orthonormalise(table, by_column, basis, gram, T, lost, None, out, at, Q)
    return [own.view(x.shape) for own, x in zip(out.split([x.numel() for x in X]), X, strict=True)]
