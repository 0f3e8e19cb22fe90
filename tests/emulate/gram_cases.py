"""Cases for the Gram kernels compiled from source: what goes to drivers/gram.cpp, and what must come back."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeVar

import torch
from emulate import toolchain
from fastrank.kernels.gram import bound
from fastrank.kernels.gram.bound import Depth
from fastrank.kernels.gram.config import FAST_BLOCK
from torch import Tensor

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # DType in csrc/gram/gram.h
# kSmall, kWide, kWideColumns, kSmallBlocks, kWideBlocks, kSplitRows in csrc/gram/problem.cuh.
SMALL, WIDE, WIDE_COLUMNS, SMALL_BLOCKS, WIDE_BLOCKS, SPLIT_ROWS = 64, 128, 1024, 512, 256, 4
FAR = 2**31 + 8  # a stride, in elements: one step overflows an int, two end where a small offset should
UPPER = 7.0  # what stands above the diagonal, and stays
R = TypeVar("R")  # Result, or that of patch_cases.py


@dataclass(frozen=True)
class Case:
    """lower(C) += A^T A for A = X - shift; and with `symmetric` C's upper triangle.

    layout: "rows" (X [n, d] contiguous), "columns" (its transpose is), "gaps" (every second row and column of a larger
    matrix), "images" ([n / pixels, d, pixels], contiguous), "channels_last" (the same, transposed). Gaps hold NaN.
    "padded", "padded_columns": "rows" and "columns" a little further apart, so that they start on 16 bytes.
    "far_rows", "far_columns", "far_images": rows, columns or images, and the rows of C, are FAR elements apart.
    With `group` it is launched as one of a group. With `nan`, an entry of X is NaN, or infinite.
    With `plan` nothing is computed: C[0, 0] on gets the workspace's size and the depths, for any n, and d from 2 on.
    """

    n: int
    d: int
    dtype: torch.dtype = torch.float32
    fast: bool = False
    layout: str = "rows"
    pixels: int = 1
    shifted: bool = True
    summed: bool = True
    integer: int = 0  # entries are odd integers up to this, positive from 300 on; 0: normally distributed
    ldc: int = 0  # beyond d
    mean: float = 0.0  # of all columns, and near the shift
    plan: bool = False
    symmetric: bool = False
    group: bool = False
    nan: float = 0.0  # NaN or infinity, in the last row of column d / 2

    def __str__(self) -> str:
        what = f"{self.dtype} {'fast' if self.fast else 'exact'} {self.layout}"
        what = "plan" if self.plan else what
        options = "shifted", "summed", "integer", "mean", "symmetric", "group", "nan"
        return f"[{self.n}, {self.d}] {what}" + "".join(f" {name}" for name in options if getattr(self, name))


@dataclass(frozen=True)
class Problem:
    case: Case
    storage: Tensor  # one-dimensional; X lies in it
    start: int  # elements before X's first
    strides: tuple[int, int, int, int]  # inner, stride_outer, stride_inner, stride_column
    rows: Tensor  # X as [n, d]
    shift: Tensor | None
    C: Tensor
    total: Tensor | None


def build(case: Case) -> Problem:
    generator = torch.Generator().manual_seed(case.n * 1000 + case.d)
    n, d = 0 if case.plan else case.n, case.d
    if case.integer:
        least = 300 if case.integer >= 300 else -case.integer
        X = torch.randint(least // 2, case.integer // 2, (n, d), generator=generator).double() * 2 + 1
        shift = torch.randint(-2, 3, (d,), generator=generator).double()
        C, total = torch.randint(-9, 9, (d, d + case.ldc), generator=generator).double(), torch.full((d,), 5.0).double()
    else:
        X = torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.5 + case.mean
        shift = torch.linspace(-2, 2, d, dtype=torch.float64) + case.mean * 1.00001  # no fp32 numbers
        C = torch.randn(d, d + case.ldc, generator=generator, dtype=torch.float64)
        total = torch.randn(d, generator=generator, dtype=torch.float64)
    X = X.to(case.dtype)
    if case.nan:
        X[n - 1, d // 2] = case.nan
    C[:, :d] = C[:, :d].tril() + torch.full((d, d), UPPER).double().triu(1)
    C[:, d:] = float("nan")
    storage, view = _stored(X, case)
    if case.layout.startswith("far"):
        strides = {
            "far_rows": (n, 0, FAR, 1), "far_columns": (n, 0, 1, FAR), "far_images": (case.pixels, FAR, d, 1)
        }[case.layout]  # fmt: skip
    elif view.ndim == 3:
        strides = (view.shape[2], view.stride(0), view.stride(2), view.stride(1))
    else:
        strides = (max(n, 1), 0, view.stride(0), view.stride(1))
    return Problem(
        case, storage, view.storage_offset(), strides, X, shift if case.shifted else None, C,
        total if case.summed else None,
    )  # fmt: skip


def _stored(X: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """A storage, and X as a view of it in the case's layout."""
    n, d = X.shape
    if case.layout == "rows" or case.layout.startswith("far"):  # the driver moves these apart
        return X.reshape(-1), X
    if case.layout == "columns":
        storage = X.T.contiguous().reshape(-1)
        return storage, storage.view(d, n).T
    if case.layout == "gaps":
        size = (2 * n - 1) * (2 * d + 3) + 2 * d - 1 if n and d else 0
        storage = torch.full((size,), float("nan"), dtype=X.dtype)  # ends with X's last element
        view = storage.as_strided((n, d), (2 * (2 * d + 3), 2), 0)
        view.copy_(X)
        return storage, view
    if case.layout.startswith("padded"):
        matrix = X if case.layout == "padded" else X.T
        wide = torch.full((matrix.shape[0], matrix.shape[1] // 8 * 8 + 8), float("nan"), dtype=X.dtype)
        wide[:, : matrix.shape[1]] = matrix
        view = wide[:, : matrix.shape[1]]
        return wide.reshape(-1), view if case.layout == "padded" else view.T
    images = X.view(n // case.pixels, case.pixels, d)
    if case.layout == "images":
        storage = images.transpose(1, 2).contiguous().reshape(-1)
        return storage, storage.view(-1, d, case.pixels)
    if case.layout == "channels_last":
        storage = images.contiguous().reshape(-1)
        return storage, storage.view(-1, case.pixels, d).transpose(1, 2)
    raise ValueError(case.layout)


def write(problems: Sequence[Problem], path: Path) -> None:
    """The case file: per case the Header of drivers/gram.cpp (19 int64), then X's storage, shift, C and total."""
    with path.open("wb") as file:
        for p in problems:
            case, size = p.case, p.storage.element_size()
            parts = [p.storage, p.shift, p.C, p.total]
            sizes = [0 if x is None else x.numel() * x.element_size() for x in parts]
            far = case.layout.startswith("far")
            ldc = FAR if far else p.C.shape[1]
            header = [case.plan, far, DTYPES[case.dtype], case.fast, case.n, case.d, *p.strides]
            numbers = [p.start * size, sizes[0], sizes[1], sizes[2], ldc, sizes[3]]
            file.write(struct.pack("19q", *header, *numbers, case.nan != 0, case.symmetric, case.group))
            for x in parts:
                if x is not None:
                    file.write(bytes(x.contiguous().view(torch.uint8).numpy()) if x.numel() else b"")


@dataclass(frozen=True)
class Result:
    problem: Problem
    schedule: str
    message: str  # empty where the kernels ended well
    C: Tensor
    total: Tensor | None


def read(problems: Sequence[Problem], schedules: Sequence[str], path: Path) -> Iterator[Result]:
    """The result file: per case and schedule a length (int64), that many bytes of message, C and total."""
    with path.open("rb") as file:
        for p in problems:
            for schedule in schedules:
                head = file.read(8)
                if len(head) < 8:
                    return
                message = file.read(struct.unpack("q", head)[0]).decode(errors="replace")
                C = _doubles(file, p.C.numel())
                total = None if p.total is None else _doubles(file, p.case.d)
                if len(C) < p.C.numel() or (total is not None and len(total) < p.case.d):
                    return  # the process ended in the middle
                yield Result(p, schedule, message, C.view(p.C.shape), total)


def _doubles(file, count: int) -> Tensor:
    data = bytearray(file.read(8 * count))
    data = data[: len(data) // 8 * 8]
    return torch.frombuffer(data, dtype=torch.float64) if data else torch.empty(0, dtype=torch.float64)


def cut(rows: int, columns: int) -> tuple[int, int, int]:
    """How problem.cuh cuts a product: side of a tile, splits, and rows of the longest."""
    columns = max(columns, 1)
    tile = SMALL if columns < WIDE_COLUMNS else WIDE
    side = -(-columns // tile)
    blocks = SMALL_BLOCKS if tile == SMALL else WIDE_BLOCKS
    splits = max(1, min(-(-blocks // (side * (side + 1) // 2)), rows // (SPLIT_ROWS * tile)))
    per = -(-max(1, -(-rows // splits)) // FAST_BLOCK) * FAST_BLOCK
    return tile, -(-rows // per), min(rows, per)


def before_c(rows: int, columns: int, fast: bool) -> int:
    """Depth::before of gram.h on a device: the splits are added in a tree."""
    _, splits, longest = cut(rows, columns)
    return (-(-longest // FAST_BLOCK) if fast else longest) + math.ceil(math.log2(splits))


def workspace(rows: int, columns: int) -> int:
    tile, splits, _ = cut(rows, columns)
    side = -(-columns // tile)
    return splits * (side * (side + 1) // 2 * tile * tile + side * tile) if splits > 1 else 0


def depth(case: Case) -> Depth:
    """As kernels.gram.bound.depth for a device, which needs a core with CUDA."""
    if case.n == 0:
        return Depth()
    fast = case.fast and case.dtype != torch.float64
    before = before_c(case.n, case.d, fast)
    block = min(case.n, FAST_BLOCK)
    if fast and case.dtype != torch.float32:
        return Depth(max(block + 3, bound.tensor_core_roundings(block)), before + 2, 1)
    return Depth(block + 3, before + 2, 1) if fast else Depth(0, before + 3, 1)


def wrong(result: Result) -> str:
    """What is wrong with a result, against the float64 truth and the a-priori bound; empty if nothing is."""
    p, case = result.problem, result.problem.case
    d = case.d
    if result.message:
        return result.message
    if case.plan:
        expected = [workspace(case.n, d), before_c(case.n, d, False), before_c(case.n, d, True), 1]
        got = result.C.reshape(-1)[:4].tolist()
        return "" if got == expected else f"workspace, depths and additions are {got}, expected {expected}"
    symmetric = case.symmetric and case.n > 0  # of nothing, nothing is written
    above = result.C[:, :d].tril(-1).T if symmetric else p.C[:, :d].triu(1)
    if not torch.equal(result.C[:, :d].triu(1), above):
        return "not symmetric" if symmetric else "wrote above the diagonal"
    if not result.C[:, d:].isnan().all():
        return "wrote beside C"
    if case.nan:
        return _wrong_nan(result)
    Y = p.rows.double()
    Y = Y if p.shift is None else Y - p.shift
    outputs = [("C", result.C[:, :d], (p.C[:, :d] + Y.T @ Y).tril(), p.C[:, :d].abs(), Y.abs().T @ Y.abs())]
    if p.total is not None:
        outputs.append(("total", result.total, p.total + Y.sum(0), p.total.abs(), Y.abs().sum(0)))
    roundings = depth(case)
    for name, got, truth, before, size in outputs:
        got = got.tril() if name == "C" else got
        # The last addition also rounds what was there before; the truth above rounds too, in float64 like the kernel.
        band = roundings.factor() * size + 2.0**-52 * before + roundings.tiny * case.n
        # The float64 truth errs too; sums of small integers do not.
        band = 0 * band if case.integer else band + (case.n + 3) * 2.0**-53 * (size + before)
        error = (got - truth).abs()
        bad = ~(error <= band)
        if name == "C":
            bad = bad.tril()
        if bad.any():
            where = bad.nonzero()[0].tolist()
            return (
                f"{name}{where} is {got[tuple(where)].item():.17g}, expected {truth[tuple(where)].item():.17g} within "
                f"{band[tuple(where)].item():.3g}; {int(bad.sum())} of {bad.numel()} are wrong"
            )
    return ""


def _wrong_nan(result: Result) -> str:
    """NaN and Inf stay in the row and column of their feature (the driver has looked at the flag)."""
    p, d = result.problem, result.problem.case.d
    hit = torch.arange(d) == d // 2
    touched = (hit[:, None] | hit[None]).tril()
    C = result.C[:, :d]
    if C[touched].isfinite().any() or not C[~touched].isfinite().all():
        return "not the row and column that hold NaN or Inf"
    return "" if p.total is None or torch.equal(result.total.isfinite(), ~hit) else "total: not the column with NaN"


@dataclass(frozen=True)
class Complaint:
    schedule: str  # or "crash"
    text: str


def run(
    program: Path,
    cases: Sequence[Case],
    schedules: Sequence[str],
    folder: Path,
    sanitizer: str = "",
    timeout: float = 300,
) -> list[Complaint]:
    """Every complaint about these cases: wrong results, results that depend on the schedule, failures, crashes."""
    problems, case_file, result_file = [build(case) for case in cases], folder / "cases", folder / "results"
    write(problems, case_file)
    ended = toolchain.run(program, case_file, result_file, *schedules, sanitizer=sanitizer, timeout=timeout)
    results = list(read(problems, schedules, result_file)) if result_file.exists() else []
    return complaints_about(ended, results, wrong, schedules, len(problems))


def complaints_about(
    ended: CompletedProcess, results: Sequence[R], wrong: Callable[[R], str], schedules: Sequence[str], problems: int
) -> list[Complaint]:
    """Of the results of each problem under every schedule, with C and the total; `wrong` says what is, or nothing."""
    complaints = []
    for index, result in enumerate(results):
        where = f"{result.problem.case}, {result.schedule}"
        if complaint := wrong(result):
            complaints.append(Complaint(result.schedule, f"{where}: {complaint}"))
        first = results[index - index % len(schedules)]
        if not _same_bits(result, first):
            complaints.append(Complaint(result.schedule, f"{where}: not the bits of {first.schedule}"))
    if ended.returncode:
        text = f"exit status {ended.returncode} after {len(results)} results: {ended.stderr[-3000:]}"
        complaints.append(Complaint("crash", text))
    elif len(results) != problems * len(schedules):
        complaints.append(Complaint("crash", f"{len(results)} results of {problems * len(schedules)}"))
    return complaints


def _same_bits(a: R, b: R) -> bool:
    same = torch.equal(a.C.contiguous().view(torch.int64), b.C.contiguous().view(torch.int64))
    return same and (a.total is None or torch.equal(a.total.view(torch.int64), b.total.view(torch.int64)))
