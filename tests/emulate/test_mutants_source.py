"""Mistakes planted in the CUDA sources, one at a time: each is caught, or cannot matter and the reason is tested.

The table is also a record of which schedule sees what; `pytest -s` prints it. A mutant whose old text is not found
exactly once fails: then the table is stale.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from emulate import toolchain
from emulate.conftest import CUDA, DRIVERS
from emulate.gram_cases import Case, run

pytestmark = pytest.mark.skipif(bool(toolchain.missing()), reason=toolchain.missing() or "-")

SCHEDULES = ("lockstep", "reverse", "warps", "random:1")
ASYNC = tuple(s + early for s in ("lockstep", "warps", "random:1") for early in ("", "+early"))

KERNELS, LAUNCHES = "csrc/gram/kernels.cuh", "csrc/gram/cuda.cu"
TENSOR = "tests/emulate/kernels/tensor.cuh"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    harmless: str = ""  # why the results must stay the same bits
    sanitizer: str = ""  # where only this one sees it


def gram(name: str, old: str, new: str, harmless: str = "", file: str = KERNELS, sanitizer: str = "") -> Mutant:
    return Mutant(name, file, old, new, harmless, sanitizer)


GRAM = (
    gram("no barrier before products", "++outer;\n    __syncthreads();", "++outer;"),
    gram("no barrier after products", "    __syncthreads();\n  }\n\n  double* const", "  }\n\n  double* const"),
    gram("no barrier in mirror", "j];\n  }\n  __syncthreads();", "j];\n  }"),
    gram("row mask off by one", "k + my_row < last;", "k + my_row <= last;"),
    gram("no mask for the last row of tiles", "= row_valid && r < p.a.columns", "= row_valid", sanitizer="address"),
    gram("column stride ignored", "source[c * p.a.stride_column]", "source[c]"),
    gram("rows never carried to the next image", "inner >= p.a.inner; inner -= p.a.inner", "false;"),
    gram("carry off by one", "inner >= p.a.inner; inner", "inner > p.a.inner; inner"),
    gram("shift of the wrong columns", "? p.shift[c]", "? p.shift[r]"),
    gram("shift subtracted in fp32", "widen(source[c * p.a.stride_column]) - shift_c[q]",
         "static_cast<float>(widen(source[c * p.a.stride_column])) - static_cast<float>(shift_c[q])"),
    gram("row offset in 32 bits", "outer * p.a.stride_outer + inner * p.a.stride_inner;",
         "static_cast<int>(outer * p.a.stride_outer + inner * p.a.stride_inner);"),
    gram("column offset in 32 bits", "source[r * p.a.stride_column]",
         "source[static_cast<int>(r * p.a.stride_column)]"),
    gram("diagonal tile reads what is not staged", "= diagonal ? rows_of_c : columns_of_c", "= columns_of_c"),
    gram("flush overwrites", "sum[i][j] += static_cast<double>(block[i][j]);", "sum[i][j] = block[i][j];"),
    gram("flush without reset", "          block[i][j] = T(0);\n", ""),
    gram("flush too late", "== kFastChunk / kStep)", "== 4 * (kFastChunk / kStep))"),
    gram("diagonal missing", "r < p.a.columns && c <= r)", "r < p.a.columns && c < r)"),
    gram("upper triangle written", "r < p.a.columns && c <= r)", "r < p.a.columns && c < p.a.columns)"),
    gram("C overwritten", "p.c[r * p.ldc + c] += value;\n    }\n  if", "p.c[r * p.ldc + c] = value;\n    }\n  if"),
    gram("row stride of C wrong", "p.c[r * p.ldc + c] += value;\n    }\n  if",
         "p.c[r * p.a.columns + c] += value;\n    }\n  if"),
    gram("offset in C in 32 bits", "p.c[r * p.ldc + c] += value;\n    }\n  if",
         "p.c[static_cast<int>(r * p.ldc + c)] += value;\n    }\n  if"),
    gram("row stride of C wrong in the reduction", "p.c[r * p.ldc + c] += value;\n  }\n",
         "p.c[r * p.a.columns + c] += value;\n  }\n"),
    gram("last column not summed", "if (diagonal && p.total && t < kTile)\n", "if (diagonal && p.total && t < 63)\n"),
    gram("columns summed off the diagonal", "if (diagonal && p.total && t < kTile) {", "if (p.total && t < kTile) {"),
    gram("splits overlap by a row", "first + p.rows_per_split < p.a.rows ? first + p.rows_per_split",
         "first + p.rows_per_split < p.a.rows ? first + p.rows_per_split + 1"),
    gram("last split dropped", "splits = rows ? ceil_div(rows, rows_per_split) : 0", "splits = rows / rows_per_split"),
    gram("no bound on the splits", "wanted > kMaxSplits ? kMaxSplits : wanted", "wanted"),
    gram("workspace without column sums", "(tiles * kTile * kTile + tile_rows * kTile)", "(tiles * kTile * kTile)"),
    gram("reduction misses a split", "double value = 0.0;\n    for (int64_t s = 0; s < p.splits; ++s) value",
         "double value = 0.0;\n    for (int64_t s = 1; s < p.splits; ++s) value"),
    gram("reduction reads another tile", "(s * p.tiles + blockIdx.x)", "(s * p.tile_rows + blockIdx.x)"),
    gram("reduction skips numbers", "e < kTile * kTile; e += kThreads", "e < kTile * kTile; e += 2 * kThreads"),
    gram("mirror reads beyond C", "if (i < size && j < size) tile", "if (true) tile", sanitizer="address"),
    gram("one tile too few launched", "static_cast<unsigned>(p.tiles),", "static_cast<unsigned>(p.tiles - 1),",
         file=LAUNCHES),
    gram("no column mask off the diagonal", "= row_valid && c < p.a.columns", "= row_valid",
         harmless="left of a diagonal tile every tile is full"),
    gram("tile number uncorrected", "  while (i * (i + 1) / 2 > t) --i;  // the square root may be off by one "
         "either way\n  while ((i + 1) * (i + 2) / 2 <= t) ++i;\n", "",
         harmless="the square root is right for every tile that a grid can have; see test_tile_numbers"),
    gram("pitch without padding", "kPitch = kTile + 2", "kPitch = kTile",
         harmless="the padding spreads columns over banks, which is speed and not results"),
    gram("staging along rows", "along_columns = p.a.stride_column == 1", "along_columns = false",
         harmless="which thread stages which number changes only how loads coalesce"),
    gram("shared array a row short", "T rows_of_c[kStep][kPitch];", "T rows_of_c[kStep - 1][kPitch];",
         sanitizer="bounds"),
    gram("mirror writes the diagonal", "j < i) c[j", "j <= i) c[j",
         harmless="the diagonal is written with the value that it has"),
)  # fmt: skip


def tensor(name: str, old: str, new: str, harmless: str = "", sanitizer: str = "") -> Mutant:
    return Mutant(name, TENSOR, old, new, harmless, sanitizer)


TENSOR_MUTANTS = (
    tensor("no wait for the stage before the last", "      wait_copies<1>();\n", ""),
    tensor("no wait for the last stage", "wait_copies<0>()", "wait_copies<1>()"),
    tensor("no barrier after the wait", "    __syncthreads();\n    const In* const left",
           "    const In* const left"),
    tensor("no barrier before refilling", "    __syncthreads();  // the stage just read is filled next\n", ""),
    tensor("wrong ldmatrix row of A", "(lane & 16 ? 8 : 0)) * kPitch", "(lane & 8 ? 8 : 0)) * kPitch"),
    tensor("wrong ldmatrix row of B", "(lane & 15)) * kPitch", "(lane & 7)) * kPitch"),
    tensor("stages never change", "k0 += kStep, s ^= 1", "k0 += kStep"),
    tensor("rows beyond the end not zeroed", "k0 + k < n && from < d;", "from < d;", sanitizer="address"),
    tensor("wrong column of the fragment", "* 2 + e % 2;\n        if", "* 2 + (e % 2 ^ 1);\n        if"),
    tensor("rows of odd width copied as vectors", "vectors = d % 8 == 0", "vectors = true"),
    tensor("no barrier in the warp", "  __syncwarp();\n", "", sanitizer="thread"),
    tensor("half of the warp not summed", "int o = 16; o;", "int o = 8; o;"),
    tensor("warps not waited for", "  __syncthreads();\n  if (threadIdx.x == 0) {", "  if (threadIdx.x == 0) {"),
    tensor("sum without an atomic", "atomicAdd(total, of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3]);",
           "*total += of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];", sanitizer="thread"),
    tensor("no barrier before the last block's work", "  __syncthreads();\n  if (last", "  if (last",
           harmless="the thread that reads `last` is the one that wrote it"),
)  # fmt: skip

#: Small, and each there for some mutant: splits, images, offsets and strides, shift and sums, both precisions. The rows
#: of C are longer than C in one case without splits and in one with.
GRAM_CASES = (
    Case(37, 71, ldc=2),
    Case(35, 130, fast=True, layout="images", pixels=7),
    Case(17, 65, torch.bfloat16, layout="gaps"),
    Case(48, 5, layout="images", pixels=16),
    Case(2177, 70, fast=True, ldc=3),
    Case(37, 70, mean=1e4),
    Case(3, 3, torch.bfloat16, layout="far_rows"),
    Case(3, 3, torch.bfloat16, layout="far_columns"),
    Case(10**6, 2, plan=True, summed=False),
    Case(4100, 5, integer=8),
    Case(1000, 5, fast=True, shifted=False, integer=361),
    Case(33, 33, torch.float64, mirror=True, summed=False),
    Case(70, 70, torch.float64, mirror=True, summed=False),
)
#: For the sanitizers, which are slow.
FEW_CASES = (Case(37, 71), Case(33, 33, torch.float64, mirror=True, summed=False))


def text_count(mutant: Mutant) -> int:
    return (toolchain.ROOT / mutant.file).read_text().count(mutant.old)


def mutated(mutant: Mutant, folder: Path) -> Path:
    """Writes the file with the mistake below `folder`, which is to be searched for headers first."""
    text = (toolchain.ROOT / mutant.file).read_text()
    root = "csrc" if mutant.file.startswith("csrc") else "tests/emulate"
    path = folder / Path(mutant.file).relative_to(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(mutant.old, mutant.new))
    return path


def seen_by(builds, mutant: Mutant) -> dict[str, str]:
    """What each schedule says of the mutant; a crash or a sanitizer's report counts as seen by "crash"."""
    if text_count(mutant) != 1:
        return {}
    folder = builds.folder / "mutants" / mutant.name.replace(" ", "-")
    source = mutated(mutant, folder)
    options = builds.precompiled(mutant.sanitizer)
    scheduler = builds.object(DRIVERS / "launch.cpp", mutant.sanitizer)
    try:
        if mutant.file == TENSOR:
            driver = DRIVERS / "tensor.cpp"
            objects = [toolchain.compile_object(driver, folder / "o", mutant.sanitizer, [folder], options), scheduler]
        else:
            cuda = source if mutant.file == LAUNCHES else CUDA
            objects = [toolchain.compile_object(cuda, folder / "o", mutant.sanitizer, [folder], options), scheduler]
            objects.append(builds.object(DRIVERS / "gram.cpp", mutant.sanitizer))
        program = toolchain.link(objects, folder / "program", mutant.sanitizer)
        if mutant.file == TENSOR:
            return tensor_complaints(program, mutant.sanitizer)
        cases, schedules = (FEW_CASES, SCHEDULES[:1]) if mutant.sanitizer else (GRAM_CASES, SCHEDULES)
        complaints = run(program, cases, schedules, folder, mutant.sanitizer, timeout=60)
        return {c.schedule: c.text for c in reversed(complaints)}
    finally:
        shutil.rmtree(folder)


def tensor_complaints(program: Path, sanitizer: str = "") -> dict[str, str]:
    schedules = ASYNC[:1] if sanitizer else ASYNC
    ended = toolchain.run(program, *schedules, sanitizer=sanitizer, timeout=60)
    lines = {schedule: line for line in ended.stdout.splitlines() for schedule in ASYNC if f", {schedule}:" in line}
    if ended.returncode and (sanitizer or not lines):
        lines["crash"] = f"exit status {ended.returncode}: {ended.stderr[:2000]}"
    return lines


@pytest.fixture(scope="module")
def outcomes(builds) -> dict[str, dict[str, str]]:
    mutants = (*GRAM, *TENSOR_MUTANTS)
    able = [m for m in mutants if not toolchain.missing(m.sanitizer)]
    shared = [lambda s=s: builds.precompiled(s) for s in {m.sanitizer for m in able}]
    shared += [lambda s=s: builds.object(DRIVERS / "launch.cpp", s) for s in {m.sanitizer for m in able}]
    shared += [lambda s=s: builds.object(DRIVERS / "gram.cpp", s) for s in {m.sanitizer for m in able if m in GRAM}]
    toolchain.side_by_side(lambda build: build(), shared)
    seen = dict(zip((m.name for m in able), toolchain.side_by_side(lambda m: seen_by(builds, m), able), strict=True))
    print(f"\n{'mutant':45} seen by")
    for m in able:
        sight = ", ".join(seen[m.name]) if seen[m.name] else f"nothing: {m.harmless}"
        print(f"{m.name:45} {m.sanitizer + ' sanitizer' if m.sanitizer else sight}")
    return seen


@pytest.mark.parametrize("mutant", [*GRAM, *TENSOR_MUTANTS], ids=lambda m: m.name.replace(" ", "-"))
def test_mutant(outcomes, mutant):
    if reason := toolchain.missing(mutant.sanitizer):
        pytest.skip(reason)
    assert text_count(mutant) == 1, f"stale: found {text_count(mutant)} times in {mutant.file}"
    seen = outcomes[mutant.name]
    if mutant.harmless:
        assert not seen, seen
    elif mutant.sanitizer:
        word = {"address": "AddressSanitizer", "bounds": "out of bounds", "thread": "data race"}[mutant.sanitizer]
        assert word in seen.get("crash", ""), f"{mutant.name}: {seen or 'not caught'}"
    else:
        assert seen, f"{mutant.name}: not caught"


def test_the_sound_sources_pass_the_mutants_cases(builds, tmp_path):
    assert not run(builds.program("gram"), GRAM_CASES, SCHEDULES, tmp_path)
    assert not tensor_complaints(builds.program("tensor"))


def test_tile_numbers():
    """The square root in tile_of is exact enough by itself up to the largest grid, 2^31 - 1 tiles."""
    i = np.arange(65536, dtype=np.int64)
    first = i * (i + 1) // 2
    for t, row in ((first, i), (first[1:] - 1, i[1:] - 1)):  # monotonic: the two ends of each row suffice
        found = ((np.sqrt(8.0 * t.astype(np.float64) + 1.0) - 1.0) * 0.5).astype(np.int64)
        assert (found == row).all()
    assert first[-1] + 65536 > 2**31 - 1
