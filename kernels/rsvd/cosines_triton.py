"""Cosines between the rows of pairs of matrices on CUDA, all pairs of a dtype in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastrank.kernels.rsvd.config import COSINE_TILE
from fastrank.kernels.tables import tables
from torch import Tensor

#: A pair's line of the table: address, rows and strides of W, the same of A, numbers in a row, where its cosines begin.
_FIELDS = tl.constexpr(10)


@triton.jit
def cosines_kernel(
    item_ptr, table_ptr, out_ptr, ACC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """|W A^T|, ROWS x COLUMNS of one pair, at most 1. Rows are loaded as columns: leading directions come from blocks
    [d, q], where the numbers of all directions lie side by side."""
    item = item_ptr + tl.program_id(0) * 3
    t = table_ptr + tl.load(item) * _FIELDS
    i = tl.load(item + 1) * ROWS + tl.arange(0, ROWS)
    j = tl.load(item + 2) * COLUMNS + tl.arange(0, COLUMNS)
    w_ptr, a_ptr = tl.load(t).to(tl.pointer_type(ACC)), tl.load(t + 4).to(tl.pointer_type(ACC))
    w_rows, a_rows, d = tl.load(t + 1), tl.load(t + 5), tl.load(t + 8)
    w_row, w_column, a_row, a_column = tl.load(t + 2), tl.load(t + 3), tl.load(t + 6), tl.load(t + 7)
    acc = tl.zeros((ROWS, COLUMNS), ACC)
    for start in range(0, d, DEPTH):
        k = start + tl.arange(0, DEPTH)
        inside = (k < d)[:, None]
        at = w_ptr + k[:, None] * w_column + i[None, :] * w_row
        w = tl.load(at, mask=inside & (i < w_rows)[None, :], other=0.0)
        at = a_ptr + k[:, None] * a_column + j[None, :] * a_row
        a = tl.load(at, mask=inside & (j < a_rows)[None, :], other=0.0)
        acc = tl.dot(tl.trans(w), a, acc, input_precision="ieee", out_dtype=ACC)
    found = tl.abs(acc)
    found = tl.where(found > 1.0, 1.0, found)  # NaN stays
    at = out_ptr + tl.load(t + 9) + i[:, None] * a_rows + j[None, :]
    tl.store(at, found, mask=(i < w_rows)[:, None] & (j < a_rows)[None, :])


def cosines_many(W: list[Tensor], A: list[Tensor]) -> list[Tensor]:
    """|W A^T|, at most 1, of each pair of matrices of one dtype."""
    found: list[Tensor] = [torch.empty(0)] * len(W)
    for dtype in dict.fromkeys(w.dtype for w in W):
        members = [i for i, w in enumerate(W) if w.dtype == dtype]
        for i, own in zip(members, _cosines([W[i] for i in members], [A[i] for i in members]), strict=True):
            found[i] = own
    return found


def _cosines(W: list[Tensor], A: list[Tensor]) -> list[Tensor]:
    shape, table, items, first = COSINE_TILE, [], [], [0]
    for b, (w, a) in enumerate(zip(W, A, strict=True)):
        high, wide = triton.cdiv(len(w), shape.rows), triton.cdiv(len(a), shape.columns)
        items += [x for row in range(high) for column in range(wide) for x in (b, row, column)]
        table += [w.data_ptr(), len(w), *w.stride(), a.data_ptr(), len(a), *a.stride(), w.shape[1], first[-1]]
        first.append(first[-1] + len(w) * len(a))
    out = torch.empty(first[-1], dtype=W[0].dtype, device=W[0].device)
    if items:
        items, table = tables([items, table], out.device)
        with torch.cuda.device_of(out):
            cosines_kernel[(len(items) // 3,)](
                items, table, out, ACC=tl.float64 if out.dtype == torch.float64 else tl.float32,
                ROWS=shape.rows, COLUMNS=shape.columns, DEPTH=shape.depth, num_warps=shape.warps,
            )  # fmt: skip
    return [
        own.view(len(w), len(a))
        for own, w, a in zip(out.split([len(w) * len(a) for w, a in zip(W, A, strict=True)]), W, A, strict=True)
    ]
