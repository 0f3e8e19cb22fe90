"""What the randomized SVD ops accept; every message names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastrank.kernels.rsvd.config import KINDS, MAX_COLUMNS
from torch import Tensor

#: The numbers are those of DType in csrc/rsvd/rsvd.h.
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def check_test_matrix(rows: int, columns: int, seed: int, stream: int, kind: str, dtype: torch.dtype) -> None:
    for name, value in (("rows", rows), ("columns", columns)):
        check_whole(name, value, 0, 2**40)
    _check_draw(seed, stream, kind)
    if dtype not in DTYPES:
        raise TypeError(f"dtype: expected float64, float32, bfloat16 or float16, got {dtype}")


def check_sketch(A: Tensor, q: int, seed: int, stream: int, kind: str) -> None:
    check_matrix("A", A)
    check_whole("q", q, 0, MAX_COLUMNS)
    _check_draw(seed, stream, kind)


def check_steps(A: list[Tensor], V: list[Tensor], k: int) -> None:
    for name, items in (("A", A), ("V", V)):
        if not isinstance(items, (list, tuple)):
            raise TypeError(f"{name}: expected a list of tensors, got {type(items).__name__}")
    if len(V) != len(A):
        raise ValueError(f"V: expected {len(A)} blocks, as many as A, got {len(V)}")
    check_whole("k", k, 0, MAX_COLUMNS)
    for index, (a, v) in enumerate(zip(A, V, strict=True)):
        check_matrix("A", a, f" at {index}")
        check_block("V", v, a.shape[1], f" at {index}")
        if v.dtype != (wanted := torch.float64 if a.dtype == torch.float64 else torch.float32):
            raise TypeError(f"V: expected {wanted} for A of {a.dtype}, got {v.dtype} at {index}")
        for name, x in (("A", a), ("V", v)):
            if x.device != A[0].device:
                raise ValueError(f"{name}: expected tensors on one device, {A[0].device}, got {x.device} at {index}")


def check_orthonormal(X: list[Tensor], fresh: int = 0, seeds: Sequence[int] = (), streams: Sequence[int] = ()) -> None:
    if not isinstance(X, (list, tuple)):
        raise TypeError(f"X: expected a list of tensors, got {type(X).__name__}")
    check_whole("fresh", fresh, 0, MAX_COLUMNS)
    for name, numbers in (("seeds", seeds), ("streams", streams)):
        if len(numbers) != (len(X) if fresh else 0):
            raise ValueError(f"{name}: expected {len(X) if fresh else 0}, one of each X, got {len(numbers)}")
    for seed, stream in zip(seeds, streams, strict=True):
        _check_draw(seed, stream, "gaussian")
    for index, x in enumerate(X):
        check_block("X", x, None, f" at {index}", fresh)
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"X: expected float32 or float64, got {x.dtype} at {index}")
        if x.device != X[0].device:
            raise ValueError(f"X: expected tensors on one device, {X[0].device}, got {x.device} at {index}")


def check_cosines(W: list[Tensor], A: list[Tensor]) -> None:
    for name, items in (("W", W), ("A", A)):
        if not isinstance(items, (list, tuple)):
            raise TypeError(f"{name}: expected a list of tensors, got {type(items).__name__}")
    if len(A) != len(W):
        raise ValueError(f"A: expected {len(W)} matrices, as many as W, got {len(A)}")
    for index, (w, a) in enumerate(zip(W, A, strict=True)):
        check_matrix("W", w, f" at {index}")
        check_matrix("A", a, f" at {index}")
        if w.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"W: expected float32 or float64, got {w.dtype} at {index}")
        if a.dtype != w.dtype:
            raise TypeError(f"A: expected {w.dtype}, as W has, got {a.dtype} at {index}")
        if a.shape[1] != w.shape[1]:
            raise ValueError(f"A: expected [k, {w.shape[1]}] to fit W, got shape {tuple(a.shape)} at {index}")
        for name, x in (("W", w), ("A", a)):
            if x.device != W[0].device:
                raise ValueError(f"{name}: expected tensors on one device, {W[0].device}, got {x.device} at {index}")


def check_distances(X: list[Tensor], Y: list[Tensor]) -> None:
    for name, items in (("X", X), ("Y", Y)):
        if not isinstance(items, (list, tuple)):
            raise TypeError(f"{name}: expected a list of tensors, got {type(items).__name__}")
    if len(Y) != len(X):
        raise ValueError(f"Y: expected {len(X)} matrices, as many as X, got {len(Y)}")
    for index, (x, y) in enumerate(zip(X, Y, strict=True)):
        check_matrix("X", x, f" at {index}")
        check_matrix("Y", y, f" at {index}")
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ValueError(
                f"Y: expected {x.dtype} {tuple(x.shape)}, as X is, got {y.dtype} {tuple(y.shape)} at {index}"
            )
        for name, m in (("X", x), ("Y", y)):
            if m.device != X[0].device:
                raise ValueError(f"{name}: expected tensors on one device, {X[0].device}, got {m.device} at {index}")


def check_matrix(name: str, A: Tensor, where: str = "") -> None:
    if not isinstance(A, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(A).__name__}{where}")
    if A.layout != torch.strided or A.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got {'a nested one' if A.is_nested else A.layout}{where}")
    if A.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float64, float32, bfloat16 or float16, got {A.dtype}{where}")
    if A.ndim != 2:
        raise ValueError(f"{name}: expected a matrix [n, d], got shape {tuple(A.shape)}{where}")


def check_block(name: str, V: Tensor, d: int | None, where: str, fresh: int = 0) -> None:
    check_matrix(name, V, where)
    if d is not None and len(V) != d:
        raise ValueError(f"{name}: expected [{d}, q] to fit A, got shape {tuple(V.shape)}{where}")
    if V.shape[1] + fresh > min(len(V), MAX_COLUMNS):
        most = min(len(V), MAX_COLUMNS) - fresh
        raise ValueError(f"{name}: expected at most {most} columns, got {V.shape[1]}{where}")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: expected a whole number in [{low}, {high}], got {value!r}")


def _check_draw(seed: int, stream: int, kind: str) -> None:
    check_whole("seed", seed, -(2**63), 2**64 - 1)
    check_whole("stream", stream, 0, 2**32 - 1)
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
