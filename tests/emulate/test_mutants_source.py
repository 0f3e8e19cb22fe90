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

#: Asynchronous copies land as late as the waits allow, or at once.
SCHEDULES = ("lockstep", "warps+early", "random:1")
ASYNC = ("lockstep", "warps", "random:1")

PROBLEM, STAGING, PRODUCTS, TILES, REDUCE, LAUNCHES = (
    f"csrc/gram/{name}" for name in ("problem.cuh", "staging.cuh", "products.cuh", "tiles.cuh", "reduce.cuh", "cuda.cu")
)
TENSOR = "tests/emulate/kernels/tensor.cuh"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    harmless: str = ""  # why the results must stay the same bits
    sanitizer: str = ""  # where only this one sees it


def gram(file: str, name: str, old: str, new: str, harmless: str = "", sanitizer: str = "") -> Mutant:
    return Mutant(name, file, old, new, harmless, sanitizer)


GRAM = (
    gram(TILES, "no barrier before products", "      __syncthreads();\n    }\n    staging", "    }\n    staging"),
    gram(TILES, "a buffer is refilled before all have read it",
         "    if (staged) {\n      staging.arrive();\n      __syncthreads();\n    }\n    staging.fetch(k + kAhead);\n",
         "    staging.fetch(k + kAhead);\n    if (staged) {\n      staging.arrive();\n      __syncthreads();\n    }\n"),
    gram(TILES, "columns summed off the diagonal", "bool sums = diagonal && (", "bool sums = ("),
    gram(TILES, "last column not summed", "if (t >= kTile || column", "if (t >= kTile - 1 || column"),
    gram(TILES, "every second row not summed", "= sum[t] + sum[t + kTile];", "= sum[t];"),
    gram(TILES, "no barrier between the halves of a sum", "return;\n    __syncthreads();", "return;"),
    gram(TILES, "infinity not flagged", "zero[t] != 0.0", "sum[t] != sum[t]"),
    gram(TILES, "flush too late", "% kFastChunk == 0", "% (4 * kFastChunk) == 0"),
    gram(TILES, "last block not flushed", " || k + kStep >= b.last)", ")"),
    gram(TILES, "warps on the diagonal idle", "column0 < row0 + kTile / 2", "column0 < row0"),
    gram(TILES, "diagonal missing", "left + column > top + row)", "left + column >= top + row)"),
    gram(TILES, "upper triangle written", "left + column > top + row)", "left + column >= size)"),
    gram(TILES, "C overwritten", "(direct ? *place : 0.0) + products", "products"),
    gram(TILES, "row stride of C wrong", "pitch = direct ? ldc : kTile", "pitch = direct ? size : kTile"),
    gram(TILES, "offset in C in 32 bits", "to + row * pitch + column)", "to + static_cast<int>(row * pitch + column))"),
    gram(TILES, "splits overlap by a row", "? b.first + b.p.rows_per_split :", "? b.first + b.p.rows_per_split + 1 :"),
    gram(TILES, "mirrored before it is added", "* ldc + top + row] = value", "* ldc + top + row] = products.sum[i][j]"),
    gram(TILES, "row stride of C wrong above the diagonal", "c[(left + column) * ldc", "c[(left + column) * size"),
    gram(TILES, "offset above the diagonal in 32 bits", "c[(left + column) * ldc + top + row]",
         "c[static_cast<int>((left + column) * ldc + top + row)]"),
    gram(TILES, "not mirrored", "if (symmetric) c[(left", "if (false) c[(left"),
    gram(TILES, "mirrored in its own tile", "c[(left + column) * ldc + top + row]",
         "c[(top + column) * ldc + left + row]"),
    gram(TILES, "mirrored before splits are added", "symmetric = direct && b.p", "symmetric = b.p"),
    gram(STAGING, "no wait for copies", "const { wait_copies<kAhead - 1>(); }", "const {}"),
    gram(STAGING, "waits for one copy too few", "wait_copies<kAhead - 1>", "wait_copies<kAhead>"),
    gram(STAGING, "no group for steps that are not there", "      source.advance();\n    }\n    commit_copies();",
         "      source.advance();\n      commit_copies();\n    }"),
    gram(STAGING, "one buffer for two steps", "    into ^= 1;\n", ""),
    gram(STAGING, "no barrier after the shift", "    __syncthreads();\n", ""),
    gram(STAGING, "row mask off by one", "my_k < block.last &&", "my_k <= block.last &&"),
    gram(STAGING, "rows beyond the end copied", "k + rows <= block.last &&", "k <= block.last &&"),
    gram(STAGING, "columns beyond the end copied", "column + columns <= p.a.columns", "column < p.a.columns"),
    gram(STAGING, "columns beyond the end read", "&& c < p.a.columns ? from", "? from", sanitizer="address"),
    gram(STAGING, "shift subtracted from nothing", "    if (k >= source.block.last) return T(0.0);", "    "),
    gram(STAGING, "column stride ignored", "from[c * p.a.stride_column]", "from[c]"),
    gram(STAGING, "rows never carried to the next image", "++within == p.a.inner", "false"),
    gram(STAGING, "carry off by one", "inner >= p.a.inner; inner", "inner > p.a.inner; inner"),
    gram(STAGING, "shift of the wrong columns", "- shared.shift[within])", "- shared.shift[within % kTile])"),
    gram(STAGING, "shift subtracted in fp32", "static_cast<T>(widen(x) - shared.shift[within])",
         "static_cast<T>(static_cast<float>(widen(x)) - static_cast<float>(shared.shift[within]))"),
    gram(STAGING, "row offset in 32 bits", "outer * p.a.stride_outer + inner * p.a.stride_inner;",
         "static_cast<int>(outer * p.a.stride_outer + inner * p.a.stride_inner);"),
    gram(STAGING, "column offset in 32 bits", "from[c * p.a.stride_column]",
         "from[static_cast<int>(c * p.a.stride_column)]"),
    gram(STAGING, "diagonal tile reads what is not staged", "panels[into ^ 1][!source.diagonal]",
         "panels[into ^ 1][1]"),
    gram(STAGING, "shared array a row short", "using Panel = T[kStep][kPitch];", "using Panel = T[kStep - 1][kPitch];",
         sanitizer="bounds"),
    gram(STAGING, "pitch without padding", "kPitch = kTile + 4;", "kPitch = kTile;",
         harmless="the padding spreads columns over banks, which is speed and not results"),
    gram(PRODUCTS, "wrong rows of an exact fragment", "left + at + 4 * h * kPitch", "left + at + 3 * h * kPitch"),
    gram(PRODUCTS, "wrong columns of an exact fragment", "h * kPitch + 16 * n", "h * kPitch + 8 * n"),
    gram(PRODUCTS, "exact fragments swapped", "a[m], b[q]);", "a[m], b[q ^ 1]);"),
    gram(PRODUCTS, "wrong columns in fp32", "right + k * kPitch + 16 * q", "right + k * kPitch + 8 * q"),
    gram(PRODUCTS, "wrong row for ldmatrix along columns", "16 * m + lane / 8 % 2 * 8", "16 * m + lane / 16 * 8"),
    gram(PRODUCTS, "wrong row for ldmatrix along rows", "(16 * n + lane % 8 + lane / 16 * 8) * kPitch",
         "(16 * n + lane % 16) * kPitch"),
    gram(PRODUCTS, "wrong column of a 16-bit fragment", "threadIdx.x % 4 * 2 + j % 2",
         "threadIdx.x % 4 * 2 + 1 - j % 2"),
    gram(PRODUCTS, "flush overwrites", "sum[i][j] += static_cast<double>(block[i][j]);", "sum[i][j] = block[i][j];"),
    gram(PRODUCTS, "flush without reset", "        block[i][j] = T(0.0);\n", ""),
    gram(PROBLEM, "last split dropped", "splits = ceil_div(rows, rows_per_split);", "splits = rows / rows_per_split;"),
    gram(PROBLEM, "too many splits", "if (wanted > possible) wanted = possible;", ""),
    gram(PROBLEM, "workspace without column sums", "return tiles * tile * tile + tile_rows * tile;",
         "return tiles * tile * tile;"),
    gram(PROBLEM, "depth without the tree", "+ tree_depth(splits), 1};", ", 1};"),
    gram(PROBLEM, "a group's problem begins a block late", "*First <= block ?", "*First < block ?"),
    gram(PROBLEM, "a group's problem counts all blocks", "return block - first;", "return block;"),
    gram(PROBLEM, "band of tiles one too long", "if (t < full * rows) {", "if (t <= full * rows) {"),
    gram(PROBLEM, "a tile twice at a band's end", "t >= rows; ++j)", "t > rows; ++j)"),
    gram(PROBLEM, "tile number uncorrected", "  while (i * (i + 1) / 2 > t) --i;  // the square root may be off by one "
         "either way\n  while ((i + 1) * (i + 2) / 2 <= t) ++i;\n", "",
         harmless="the square root is right for every tile that a grid can have; see test_tile_numbers"),
    gram(REDUCE, "splits that are not there", "stride, count - kHalf)", "stride, count)"),
    gram(REDUCE, "a lost split", "first = part * kReduceSplits;", "first = part * kReduceSplits + (part > 0);"),
    gram(REDUCE, "no barrier in the tree", "    __syncthreads();\n    const bool left", "    const bool left"),
    gram(REDUCE, "column sums not reduced", "mine = p.total && r < p.a.columns;", "mine = false;"),
    gram(REDUCE, "C overwritten by the reduction", "= to[r * p.ldc + c] + parts[t];", "= parts[t];"),
    gram(REDUCE, "row stride of C wrong in the reduction", "  to[r * p.ldc + c] = value;",
         "  to[r * p.a.columns + c] = value;"),
    gram(REDUCE, "reduction not mirrored", "if (p.symmetric) to", "if (false) to"),
    gram(REDUCE, "row stride of C wrong above the diagonal in the reduction", "to[c * p.ldc + r] = value;",
         "to[c * p.a.columns + r] = value;"),
    gram(LAUNCHES, "one tile too few launched", "group.one.tiles * group", "(group.one.tiles - 1) * group"),
    gram(LAUNCHES, "odd strides read as vectors", "stride_column == 1 && a.stride_inner % count == 0;",
         "stride_column == 1;"),
    gram(LAUNCHES, "products of a group share their workspace", "      workspace += cut.workspace();\n", ""),
    gram(LAUNCHES, "blocks of a group overlap", "p.first_block = mine.blocks;", "p.first_block = 0;"),
    gram(LAUNCHES, "reductions of a group overlap", "p.first_reduce_block = header.reduce_blocks;",
         "p.first_reduce_block = 0;"),
    gram(LAUNCHES, "one kernel takes another's products", "    problems += mine.problems;\n", ""),
    gram(LAUNCHES, "staging along rows", "p.along_columns = x.a.stride_column <= x.a.stride_inner;",
         "p.along_columns = false;", harmless="which thread stages which number changes only how loads coalesce"),
)  # fmt: skip


def tensor(name: str, old: str, new: str, harmless: str = "", sanitizer: str = "") -> Mutant:
    return Mutant(name, TENSOR, old, new, harmless, sanitizer)


TENSOR_MUTANTS = (
    tensor("no barrier in the warp", "  __syncwarp();\n", "", sanitizer="thread"),
    tensor("half of the warp not summed", "int o = 16; o;", "int o = 8; o;"),
    tensor("warps not waited for", "  __syncthreads();\n  if (threadIdx.x == 0) {", "  if (threadIdx.x == 0) {"),
    tensor("sum without an atomic", "atomicAdd(total, of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3]);",
           "*total += of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];", sanitizer="thread"),
    tensor("no barrier before the last block's work", "  __syncthreads();\n  if (last", "  if (last",
           harmless="the thread that reads `last` is the one that wrote it"),
)  # fmt: skip

#: The mutants are compiled for two types of data and one width of tiles, which have every line of the sources.
FEWER = (
    ("launch_tiles<In, device::kWide>", "launch_tiles<In, device::kSmall>"),
    ("launch_tiles<double>(", "launch_tiles<float>("),
    ("launch_tiles<__half>(", "launch_tiles<__nv_bfloat16>("),
)

#: Small, and each there for some mutant: splits, images, offsets and strides, shift and sums, both precisions. The rows
#: of C are longer than C in one case without splits and in one with.
GRAM_CASES = (
    Case(37, 71, ldc=2),
    Case(35, 130, fast=True, layout="images", pixels=7),
    Case(17, 65, torch.bfloat16, layout="gaps"),
    Case(48, 5, layout="images", pixels=16),
    Case(37, 70, mean=1e4),
    Case(3, 3, torch.bfloat16, layout="far_rows"),
    Case(3, 3, torch.bfloat16, layout="far_columns"),
    Case(3, 3, torch.bfloat16, layout="far_rows", symmetric=True),
    Case(520, 3, fast=True, symmetric=True, ldc=3),
    Case(300, 5, fast=True, shifted=False, integer=361),
    Case(33, 70, torch.bfloat16, True, "padded", shifted=False),
    Case(50, 17, torch.bfloat16, True, shifted=False),
    Case(50, 70, torch.bfloat16, True, "padded_columns", shifted=False),
    Case(20, 9, fast=True, nan=float("inf")),
    Case(10, 66, symmetric=True, shifted=False, summed=False, ldc=1),
    Case(600, 3, group=True),
    Case(20, 66, torch.bfloat16, True, shifted=False, group=True),
    Case(10**6, 2, plan=True, summed=False),
)
#: More for mistakes in the cut and in what follows the tiles: many splits, bands of tiles.
SPLIT_CASES = (Case(4352, 3, integer=8), Case(600, 2, plan=True, summed=False), Case(3, 600, integer=8), *GRAM_CASES)
#: For the sanitizers, which are slow.
FEW_CASES = (Case(37, 71), Case(9, 33, torch.float64, shifted=False, summed=False, symmetric=True))


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


def fewer(text: str) -> str:
    for old, new in FEWER:
        assert text.count(old) == 1, f"stale: {old}"
        text = text.replace(old, new)
    return text


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
            cuda = folder / "fewer.cu"
            cuda.write_text(fewer((source if mutant.file == LAUNCHES else CUDA).read_text()))
            objects = [toolchain.compile_object(cuda, folder / "o", mutant.sanitizer, [folder], options), scheduler]
            objects.append(builds.object(DRIVERS / "gram.cpp", mutant.sanitizer))
        program = toolchain.link(objects, folder / "program", mutant.sanitizer)
        if mutant.file == TENSOR:
            return tensor_complaints(program, mutant.sanitizer)
        cases, schedules = (FEW_CASES, SCHEDULES[:1]) if mutant.sanitizer else (GRAM_CASES, SCHEDULES)
        if mutant.file in (PROBLEM, REDUCE) and not mutant.sanitizer:
            cases = SPLIT_CASES
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


ALL = toolchain.chosen((*GRAM, *TENSOR_MUTANTS))


def test_no_mutant_is_stale():
    for mutant in (*GRAM, *TENSOR_MUTANTS):
        assert text_count(mutant) == 1, f"stale: found {text_count(mutant)} times in {mutant.file}"


@pytest.fixture(scope="module")
def outcomes(builds) -> dict[str, dict[str, str]]:
    able = [m for m in ALL if not toolchain.missing(m.sanitizer)]
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


@pytest.mark.parametrize("mutant", ALL, ids=lambda m: m.name.replace(" ", "-"))
def test_mutant(outcomes, mutant):
    if reason := toolchain.missing(mutant.sanitizer):
        pytest.skip(reason)
    seen = outcomes[mutant.name]
    if mutant.harmless:
        assert not seen, seen
    elif mutant.sanitizer:
        word = {"address": "AddressSanitizer", "bounds": "out of bounds", "thread": "data race"}[mutant.sanitizer]
        assert word in seen.get("crash", ""), f"{mutant.name}: {seen or 'not caught'}"
    else:
        assert seen, f"{mutant.name}: not caught"


def test_the_sound_sources_pass_the_mutants_cases(builds, tmp_path):
    assert not run(builds.program("gram"), SPLIT_CASES, SCHEDULES, tmp_path)
    assert not tensor_complaints(builds.program("tensor"))


def test_tile_numbers():
    """The square root in triangle_row is exact enough by itself up to the largest grid, 2^31 - 1 tiles."""
    i = np.arange(65536, dtype=np.int64)
    first = i * (i + 1) // 2
    for t, row in ((first, i), (first[1:] - 1, i[1:] - 1)):  # monotonic: the two ends of each row suffice
        found = ((np.sqrt(8.0 * t.astype(np.float64) + 1.0) - 1.0) * 0.5).astype(np.int64)
        assert (found == row).all()
    assert first[-1] + 65536 > 2**31 - 1
