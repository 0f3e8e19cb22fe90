"""Orthonormal bases of many blocks on CUDA, steps.py's `orthonormal`: 7 launches for all blocks of a dtype and width.

`start` copies the blocks, with their Gram matrices; then come `basis` and `apply`, three times, which are also the end
of a subspace step. No host sync, no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastrank.kernels.rsvd import fields
from fastrank.kernels.rsvd.blocks_triton import (
    alone_warps,
    step_width,
    store_gram,
    store_rows,
    store_small,
    sum_parts,
    times,
)  # fmt: skip
from fastrank.kernels.rsvd.config import DEPENDENT, FILL_SEED, PASSES, STEP_TILE, ZETA
from fastrank.kernels.rsvd.random import random_tile
from fastrank.kernels.tables import tables
from torch import Tensor


@triton.jit
def orthonormaliser(G, order, q, least, PIVOT: tl.constexpr, Q: tl.constexpr):
    """T [Q, Q] such that T^T G T is the identity, but for columns that depend on others, whose column is zero: Cholesky
    of G with a unit diagonal, the largest remainder first or by `order` (the place of each)."""
    j = tl.arange(0, Q)
    eye = j[:, None] == j[None, :]
    size = tl.sum(tl.where(eye, G, 0.0), 1)
    inverse = tl.where(size > 0, 1 / tl.sqrt(size), 0.0)
    # The same along columns; a tensor is of one of the two layouts.
    T = tl.where(eye, inverse[:, None], 0.0)
    rest = G * inverse[:, None] * tl.sum(T, 0)[None, :]
    result = tl.zeros((Q, Q), tl.float64)
    done = j >= q
    for step in range(0, q):
        left = tl.where(done, -1.0, tl.sum(tl.where(eye, rest, 0.0), 1))
        p = tl.argmax(left, 0) if PIVOT else tl.sum(tl.where(order == step, j, 0), 0)
        best = tl.sum(tl.where(j == p, left, 0.0), 0)
        norm = tl.where(best > least, 1 / tl.sqrt(tl.maximum(best, least)), 0.0)
        here_row, here_column = j[:, None] == p, j[None, :] == p
        open_ = (~done).to(tl.float64) * norm
        row = tl.sum(tl.where(here_row, rest, 0.0), 0) * open_
        column = tl.sum(tl.where(here_column, rest, 0.0), 1) * open_
        taken = tl.sum(tl.where(here_column, T, 0.0), 1) * norm
        result = tl.where(here_column, taken[:, None], result)
        T -= taken[:, None] * row[None, :]
        rest -= column[:, None] * row[None, :]
        done = done | (j == p)
    return result


@triton.jit
def basis_kernel(table_ptr, gram_ptr, t_ptr, lost_ptr, least, FIRST: tl.constexpr, Q: tl.constexpr):
    """T for a block's columns one after the other, those that were filled with random numbers last; `lost`: 1 for a
    column that depends on the ones before, 2 for one that was filled earlier, 3 for both."""
    b = tl.program_id(0)
    t = table_ptr + b * fields.COUNT
    q, j = tl.load(t + fields.Q), tl.arange(0, Q)
    G = sum_parts(gram_ptr, tl.load(t + fields.COLUMN_BLOCK), tl.load(t + fields.COLUMN_BLOCKS), j, Q)
    # A column that is not finite has NaN on the diagonal: it goes as one of zeros.
    G = tl.where(tl.abs(G) < float("inf"), G, 0.0)
    late = tl.zeros((Q,), tl.int32)
    if not FIRST:
        late = ((tl.load(lost_ptr + b * Q + j) != 0) & (j < q)).to(tl.int32)
    kept = (j < q).to(tl.int32) - late
    order = tl.where(late > 0, tl.sum(kept, 0) + tl.cumsum(late, 0) - late, tl.cumsum(kept, 0) - kept)
    order = tl.where(j < q, order, Q)
    T = orthonormaliser(G, order, q, least, False, Q)
    store_small(t_ptr, T, b, j, Q)
    own = tl.sum(tl.where(j[:, None] == j[None, :], T, 0.0), 1)
    # Of those that read `late` every thread has, before one writes.
    tl.debug_barrier()
    tl.store(lost_ptr + b * Q + j, (own == 0).to(tl.int32) + 2 * late)


@triton.jit(do_not_specialize=["seed"])
def apply_kernel(
    item_ptr, table_ptr, old_ptr, t_ptr, lost_ptr, facts_ptr, new_ptr, gram_ptr, out_ptr, first_ptr, seed: tl.uint64,
    STAGE: tl.constexpr, ACC: tl.constexpr, ZETA: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """The block times T: with random numbers in lost columns ("fill"), or as it is, to the caller ("out"), where V
    stays if A is not finite."""
    item = item_ptr + tl.program_id(0) * 2
    b, block = tl.load(item), tl.load(item + 1)
    t = table_ptr + b * fields.COUNT
    d, q, i, j = tl.load(t + fields.D), tl.load(t + fields.Q), block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    column = tl.load(t + fields.COLUMN)
    x = times(old_ptr + column * Q, Q, 1, d, i, Q, t_ptr + b.to(tl.int64) * Q * Q, j, ROWS, Q).to(ACC)
    if STAGE == "fill":
        lost = ((tl.load(lost_ptr + b * Q + j) & 1) != 0) & (j < q)
        if tl.sum(lost.to(tl.int32), 0) > 0:
            fill = random_tile(seed, 0, block * ROWS, 0, q, "gaussian", ZETA, ROWS, Q)
            x = tl.where(lost[None, :] & (i < d)[:, None], fill.to(ACC), x)
    store_rows(new_ptr, x, d, column, i, j, Q)
    if STAGE == "out":
        inside = (i < d)[:, None] & (j < q)[None, :]
        if facts_ptr is not None:
            v_ptr = tl.load(t + fields.V).to(tl.pointer_type(ACC))
            at = v_ptr + i[:, None] * tl.load(t + fields.V_STRIDE_D) + j[None, :] * tl.load(t + fields.V_STRIDE_Q)
            v = tl.load(at, mask=inside, other=0.0)
            x = tl.where(tl.load(facts_ptr + 2 * b + 1) != 0, x, v)
        tl.store(out_ptr + tl.load(first_ptr + b) + i[:, None] * q + j[None, :], x, mask=inside)
    else:
        store_gram(gram_ptr, new_ptr, d, column, block * ROWS, block + tl.load(t + fields.COLUMN_BLOCK), j, ROWS, Q)


@triton.jit
def start_kernel(
    item_ptr, table_ptr, basis_ptr, gram_ptr, ACC: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr
):  # fmt: skip
    """ROWS of a block; a column that is not finite in them becomes zeros there, and NaN on the Gram's diagonal."""
    item = item_ptr + tl.program_id(0) * 2
    b, block = tl.load(item), tl.load(item + 1)
    t = table_ptr + b * fields.COUNT
    d, q, column = tl.load(t + fields.D), tl.load(t + fields.Q), tl.load(t + fields.COLUMN)
    start, i, j = block * ROWS, block * ROWS + tl.arange(0, ROWS), tl.arange(0, Q)
    at = tl.load(t + fields.V).to(tl.pointer_type(ACC)) + i[:, None] * tl.load(t + fields.V_STRIDE_D)
    at += j[None, :] * tl.load(t + fields.V_STRIDE_Q)
    x = tl.load(at, mask=(i < d)[:, None] & (j < q)[None, :], other=0.0)
    broken = tl.max(tl.where(tl.abs(x) < float("inf"), 0.0, 1.0), 0) > 0
    store_rows(basis_ptr, tl.where(broken[None, :], 0.0, x), d, column, i, j, Q)
    block += tl.load(t + fields.COLUMN_BLOCK)
    store_gram(gram_ptr, basis_ptr, d, column, start, block, j, ROWS, Q)
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
        line = [0] * fields.COUNT.value
        for field, value in (
            (fields.D, d), (fields.Q, q),
            (fields.V, x.data_ptr()), (fields.V_STRIDE_D, x.stride(0)), (fields.V_STRIDE_Q, x.stride(1)),
            (fields.COLUMN, column[-1]), (fields.COLUMN_BLOCK, block[-1]), (fields.COLUMN_BLOCKS, wide),
        ):  # fmt: skip
            line[field.value] = value
        table += line
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


def orthonormalise(
    table: Tensor, by_column: Tensor, basis: list[Tensor], gram: Tensor, T: Tensor, lost: Tensor,
    facts: Tensor | None, out: Tensor, first: Tensor, Q: int,
) -> None:  # fmt: skip
    """PASSES of Cholesky QR on the blocks in basis[0], whose Gram matrices are there; into `out`, from `first` on."""
    programs, acc = (by_column.numel() // 2,), tl.float64 if out.dtype == torch.float64 else tl.float32
    for turn in range(PASSES):
        last = turn == PASSES - 1
        basis_kernel[(len(T),)](
            table, gram, T, lost, DEPENDENT**2, FIRST=turn == 0, Q=Q, num_warps=alone_warps(Q)
        )  # fmt: skip
        apply_kernel[programs](
            by_column, table, basis[turn % 2], T, lost, facts if last else None, basis[1 - turn % 2], gram, out, first,
            FILL_SEED, STAGE="out" if last else "fill", ACC=acc, ZETA=ZETA, ROWS=STEP_TILE.rows, Q=Q,
            num_warps=STEP_TILE.warps,
        )  # fmt: skip
