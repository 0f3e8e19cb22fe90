"""Cases for the patch kernels: what goes to drivers/patches.cpp, and what must come back."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from emulate import toolchain
from emulate.gram_cases import DTYPES, FAR, UPPER, Complaint, complaints_about
from fastrank.kernels.gram.bound import Depth
from fastrank.kernels.gram.config import FAST_BLOCK
from torch import Tensor

WAYS = {"cheaper": 0, "general": 1, "shifts": 2}  # PatchWay in csrc/gram/patches.h


@dataclass(frozen=True)
class Case:
    """lower(C) += P^T P for the patches P of x [images, groups * channels, *size], less a shift for each channel.

    layout: "nchw", "nhwc", "gaps" (every second number along each axis; NaN between); "far": images, channels and rows
    of the image, and rows of C, are FAR elements apart, as far as that is possible.
    """

    size: tuple[int, int] = (7, 7)
    kernel: tuple[int, int] = (3, 3)
    pad: tuple[int, int] = (1, 1)
    channels: int = 3
    images: int = 2
    way: str = "shifts"
    dtype: torch.dtype = torch.float32
    fast: bool = False
    step: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    layout: str = "nchw"
    shifted: bool = True
    summed: bool = True
    integer: int = 0  # entries are odd integers up to this, positive from 300 on; 0: normally distributed
    ldc: int = 0  # beyond the columns
    mean: float = 0.0  # of all channels, and near the shift

    @property
    def columns(self) -> int:
        return self.channels * self.kernel[0] * self.kernel[1]

    @property
    def rows(self) -> int:
        outputs = [
            (s + 2 * p - d * (k - 1) - 1) // step + 1
            for s, p, d, k, step in zip(self.size, self.pad, self.dilation, self.kernel, self.step, strict=True)
        ]
        return self.images * self.groups * outputs[0] * outputs[1]


@dataclass(frozen=True)
class Problem:
    case: Case
    storage: Tensor  # one-dimensional; x lies in it
    strides: tuple[int, ...]  # of images, channels, rows, columns
    patches: Tensor  # P less the shift, [rows, columns] in float64
    shift: Tensor | None
    C: Tensor
    total: Tensor | None


def build(case: Case) -> Problem:
    generator = torch.Generator().manual_seed(case.columns * 1000 + case.images)
    shape, d = (case.images, case.groups * case.channels, *case.size), case.columns
    if case.integer:
        least = 300 if case.integer >= 300 else -case.integer
        x = torch.randint(least // 2, case.integer // 2, shape, generator=generator).double() * 2 + 1
        shift = torch.randint(-2, 3, (case.channels,), generator=generator).double()
        C, total = torch.randint(-9, 9, (d, d + case.ldc), generator=generator).double(), torch.full((d,), 5.0).double()
    else:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5 + case.mean
        shift = torch.linspace(-2, 2, case.channels, dtype=torch.float64) + case.mean * 1.00001  # no fp32 numbers
        C = torch.randn(d, d + case.ldc, generator=generator, dtype=torch.float64)
        total = torch.randn(d, generator=generator, dtype=torch.float64)
    x = x.to(case.dtype)
    shift = shift if case.shifted else None
    C[:, :d] = C[:, :d].tril() + torch.full((d, d), UPPER).double().triu(1)
    C[:, d:] = float("nan")
    storage, strides = _stored(x, case)
    return Problem(case, storage, strides, _patches(x, shift, case), shift, C, total if case.summed else None)


def _patches(x: Tensor, shift: Tensor | None, case: Case) -> Tensor:
    if case.rows == 0 or case.channels == 0:
        return torch.empty(0, case.columns, dtype=torch.float64)
    images = x.double().reshape(-1, case.channels, *case.size)
    P = F.unfold(images, case.kernel, case.dilation, case.pad, case.step)
    P = P.transpose(1, 2).reshape(-1, case.columns)
    return P if shift is None else P - shift.repeat_interleave(case.kernel[0] * case.kernel[1])


def _stored(x: Tensor, case: Case) -> tuple[Tensor, tuple[int, ...]]:
    """A storage, and the strides of x in it."""
    if case.layout == "nhwc":
        view = x.contiguous(memory_format=torch.channels_last)
        C, H, W = x.shape[1:]
        return view.permute(0, 2, 3, 1).reshape(-1), (H * W * C, 1, W * C, C)
    if case.layout == "gaps":
        wide = torch.full([2 * n for n in x.shape], float("nan"), dtype=x.dtype)
        view = wide[::2, ::2, ::2, ::2]
        view.copy_(x)
        last = sum((n - 1) * s for n, s in zip(x.shape, view.stride(), strict=True))
        return wide.reshape(-1)[: last + 1], view.stride()
    if case.layout == "far":  # the driver moves them apart
        return x.reshape(-1), (FAR, FAR + 64, FAR + 128, 1)
    assert case.layout == "nchw", case.layout
    return x.reshape(-1), x.stride()


def write(problems: Sequence[Problem], path: Path) -> None:
    """The case file: per case the Header of drivers/patches.cpp (27 int64), then x's storage, shift, C and total."""
    with path.open("wb") as file:
        for p in problems:
            case, parts = p.case, [p.storage, p.shift, p.C, p.total]
            sizes = [0 if x is None else x.numel() * x.element_size() for x in parts]
            far = case.layout == "far"
            header = [far, DTYPES[case.dtype], case.fast, WAYS[case.way], case.images, case.groups, case.channels]
            header += [*p.strides, *case.size, *case.kernel, *case.step, *case.pad, *case.dilation, 0]
            header += [*sizes[:3], FAR if far else p.C.shape[1], sizes[3]]
            file.write(struct.pack(f"{len(header)}q", *header))
            for x in parts:
                if x is not None and x.numel():
                    file.write(bytes(x.contiguous().view(torch.uint8).numpy()))


@dataclass(frozen=True)
class Result:
    problem: Problem
    schedule: str
    message: str  # empty where the kernels ended well
    workspace: int
    depth: Depth
    C: Tensor
    total: Tensor | None


def read(problems: Sequence[Problem], schedules: Sequence[str], path: Path) -> Iterator[Result]:
    """The result file: per case and schedule a length (int64), that many bytes of message, the workspace and the depths
    (int64), C and total."""
    with path.open("rb") as file:
        for p in problems:
            for schedule in schedules:
                head = file.read(8)
                if len(head) < 8:
                    return
                message = file.read(struct.unpack("q", head)[0]).decode(errors="replace")
                plan = file.read(24)
                C = _doubles(file, p.C.numel())
                total = None if p.total is None else _doubles(file, p.case.columns)
                if len(C) < p.C.numel() or (total is not None and len(total) < p.case.columns):
                    return  # the process ended in the middle
                workspace, before, adds = struct.unpack("3q", plan)
                # Exact: the factors are rounded once each, and their product. Fast: four times, and it once.
                fast = p.case.fast and p.case.dtype != torch.float64
                roundings = Depth(min(p.case.rows, FAST_BLOCK) + 9 if fast else 0, before + (0 if fast else 3), adds)
                yield Result(p, schedule, message, workspace, roundings, C.view(p.C.shape), total)


def _doubles(file, count: int) -> Tensor:
    data = bytearray(file.read(8 * count))
    data = data[: len(data) // 8 * 8]
    return torch.frombuffer(data, dtype=torch.float64) if data else torch.empty(0, dtype=torch.float64)


def wrong(result: Result) -> str:
    """What is wrong with a result, against the float64 truth and the a-priori bound; empty if nothing is."""
    p, case, d = result.problem, result.problem.case, result.problem.case.columns
    if result.message:
        return result.message
    if not torch.equal(result.C[:, :d].triu(1), p.C[:, :d].triu(1)):
        return "wrote above the diagonal"
    if not result.C[:, d:].isnan().all():
        return "wrote beside C"
    Y, n = p.patches, len(p.patches)
    outputs = [("C", result.C[:, :d], (p.C[:, :d] + Y.T @ Y).tril(), p.C[:, :d].abs(), Y.abs().T @ Y.abs())]
    if p.total is not None:
        outputs.append(("total", result.total, p.total + Y.sum(0), p.total.abs(), Y.abs().sum(0)))
    for name, got, truth, before, size in outputs:
        got = got.tril() if name == "C" else got
        # The last addition also rounds what was there before; the truth above rounds too, in float64 like the kernel.
        band = result.depth.factor() * size + 2.0**-52 * before + result.depth.tiny * n
        # The float64 truth errs too; sums of small integers do not.
        band = 0 * band if case.integer else band + (n + 3) * 2.0**-53 * (size + before)
        bad = ~((got - truth).abs() <= band)
        if name == "C":
            bad = bad.tril()
        if bad.any():
            at = tuple(bad.nonzero()[0].tolist())
            return (
                f"{name}{list(at)} is {got[at].item():.17g}, expected {truth[at].item():.17g} within "
                f"{band[at].item():.3g}; {int(bad.sum())} of {bad.numel()} are wrong"
            )
    return ""


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
