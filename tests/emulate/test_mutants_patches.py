"""Mistakes planted in the patch kernels, as test_mutants_source.py has them for the Gram kernels: each is caught, or
cannot matter."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from emulate import toolchain
from emulate.conftest import DRIVERS, PATCHES
from emulate.patch_cases import Case, run

pytestmark = pytest.mark.skipif(bool(toolchain.missing()), reason=toolchain.missing() or "-")

SCHEDULES = ("lockstep", "warps", "random:1")
CSRC = toolchain.ROOT / "csrc"


@dataclass(frozen=True)
class Mutant:
    file: str
    name: str
    old: str
    new: str
    harmless: str = ""  # why the results must stay the same bits
    sanitizer: str = ""  # where only this one sees it


def tile(*args, **kwargs) -> Mutant:
    return Mutant("gram/patch_tile.cuh", *args, **kwargs)


def general(*args, **kwargs) -> Mutant:
    return Mutant("gram/patches.cuh", *args, **kwargs)


def shifts(*args, **kwargs) -> Mutant:
    return Mutant("gram/shifts.cuh", *args, **kwargs)


MUTANTS = (
    tile("shift without its low part", "- high - low;", "- high;"),
    tile("flush too late", "done % kFastChunk == 0", "done % (4 * kFastChunk) == 0"),
    tile("carry off by one", "if (y >= by.height)", "if (y > by.height)"),
    tile("groups never carried", "if (group >= by.groups) group -= by.groups, ++image;", ""),
    tile("staging along rows", "  if (along_columns) return {t / 16, t % 16};\n", "",
         harmless="which thread stages which number changes only how loads coalesce"),
    general("padding not tested", "static_cast<unsigned>(x0 + c.x) < static_cast<unsigned>(p.x.size[1])", "true"),
    general("group ignored", "at.group * (p.x.channels * p.x.stride_channel) +", ""),
    general("step ignored", "at.y * static_cast<int>(p.x.step[0])", "at.y"),
    general("last split dropped", "splits = ceil_div(rows, rows_per_split)", "splits = rows / rows_per_split"),
    general("reduction misses a split", "double value = 0.0;\n    for (int64_t s = 0; s < p.splits; ++s) value",
            "double value = 0.0;\n    for (int64_t s = 1; s < p.splits; ++s) value"),
    general("refilled too early", "    filled ^= 1;\n", ""),
    general("no barrier before products", "    __syncthreads();  // with two stages", "    // with two stages"),
    general("offset in 32 bits", "at.image * p.x.stride_image +", "static_cast<int>(at.image * p.x.stride_image) +"),
    general("upper triangle written", "r < p.columns && c <= r)", "r < p.columns && c < p.columns)"),
    shifts("piece not cut at the image's edge", "most(p.rows.edge[row], -dy)", "p.rows.edge[row]"),
    shifts("piece ends late", "least(p.columns.edge[column + 1], p.x.size[1] - dx)", "p.columns.edge[column + 1]"),
    shifts("last piece of a window lost", "x < p.columns.last[tap % taps[1]]", "x + 1 < p.columns.last[tap % taps[1]]"),
    shifts("window of the wrong tap", "tap = turned ? other : k, at", "tap = k, at"),
    shifts("differences below 0 missing", "diagonal && difference < zero;", "false;"),
    shifts("opposite difference off by one", "all - 1 - difference", "all - 2 - difference"),
    shifts("other half not turned", "turned ? column * kTile + r :", ""),
    shifts("other half not computed", "item.ti == item.tj && item.difference == differences_of(p.x) / 2",
           "item.ti == item.tj"),
    shifts("dilation ignored", "by_row * p.x.dilation[0], dx", "by_row, dx"),
    shifts("a chunk lost", "for (int s = 1; s < count; ++s)", "for (int s = 1; s + 1 < count; ++s)"),
    shifts("every chunk the first", "static_cast<int64_t>(chunk) << p.chunk;", "0;"),
    shifts("chunks above the diagonal not added", "diagonal && e < r ? e * kTile + r : -1", "-1"),
    shifts("refilled too early", "    filled ^= 1;\n", ""),
    shifts("no barrier before products", "    __syncthreads();  // with two stages", "    // with two stages"),
    shifts("no barrier before the combination", "  __syncthreads();\n\n  const double shift", "  const double shift"),
    shifts("channels beyond the last", "&& 16 * q < valid[s] ?", "?", sanitizer="address"),
    shifts("offset in 32 bits", "const int64_t offset = at.image * p.x.stride_image",
           "const int offset = at.image * p.x.stride_image"),
    shifts("padding met, not cut", "begin + p.outputs(axis), far, size - far}", "begin + p.outputs(axis)}"),
    shifts("indicator of the wrong tap", "difference = (other - k) * x.dilation[axis]",
           "difference = (k - other) * x.dilation[axis]"),
    shifts("outputs outside counted twice", "       (y.inside_end - y.inside_begin) * (x.inside_end - x.inside_begin)",
           "       0 * (x.inside_end - x.inside_begin)"),
    shifts("shift of the wrong channel", "-= partners * p.outside[(channel", "-= shift * p.outside[(channel"),
    shifts("padding missing in the sums", "p.padded ? sum - shift * both : sum", "sum"),
    shifts("sums beyond their chunk", "end < positions ? end : positions", "positions"),
    shifts("half of the warp not summed", "int other = 16; other; other /= 2", "int other = 8; other; other /= 2"),
    shifts("workspace too small", "(channels + 1) * taps * taps", "channels * taps * taps"),
    shifts("diagonal missing", "partner == channel && other > k", "partner == channel && other >= k"),
    shifts("many launches", "kSpace = int64_t{1} << 23;", "kSpace = int64_t{1} << 16;",
           harmless="items come in batches of any size, also within a tile"),
    shifts("every piece computed", "piece < cuts.last[k]) return true;\n  return false;",
           "piece < cuts.last[k]) return true;\n  return true;",
           harmless="what no window holds is never read"),
)  # fmt: skip

CASES = (
    Case(channels=2, integer=8),
    Case((6, 5), (3, 3), (2, 1), 2, dilation=(2, 1), groups=2, fast=True, ldc=2),
    Case((4, 3), (2, 2), (1, 0), 67, integer=8),
    Case((66, 66), (1, 2), (0, 1), 2, 1, integer=8),
    Case((3, 3), fast=True, mean=1e4),
    Case((33, 33), (1, 2), (0, 0), 2, 1, fast=True, shifted=False, integer=361),
    Case((3, 3), (2, 2), (1, 0), 2, 2, layout="far"),
    Case((3, 3), (2, 2), (1, 0), 2, 2, "general", layout="far"),
    Case((7, 6), (3, 2), (1, 1), 3, way="general", step=(2, 3), groups=2, integer=8),
    Case((4, 3), (2, 2), (1, 0), 20, way="general", layout="nhwc", integer=8),
    Case((33, 37), (1, 2), (0, 1), 2, 2, "general", integer=8),
)
#: For the sanitizers, which are slow.
FEW_CASES = (Case((3, 3), (2, 2), (0, 0), 67),)


def seen_by(builds, mutant: Mutant) -> dict[str, str]:
    """What each schedule says of the mutant; a crash or a sanitizer's report counts as seen by "crash"."""
    text = (CSRC / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        return {}
    folder = builds.folder / "patch-mutants" / f"{mutant.file}-{mutant.name}".replace(" ", "-").replace("/", "-")
    (folder / "gram").mkdir(parents=True)
    (folder / mutant.file).write_text(text.replace(mutant.old, mutant.new))
    # fp32 data alone: a fraction of the time goes to compiling.
    launches = "".join(
        line for line in PATCHES.read_text().splitlines(True) if "case DType::" not in line or "f32" in line
    )
    (folder / "gram" / "patches.cu").write_text(launches)
    options = builds.precompiled(mutant.sanitizer)
    try:
        source = folder / "gram" / "patches.cu"
        objects = [
            toolchain.compile_object(source, folder / "o", mutant.sanitizer, [folder], (*options, "-Wno-switch")),
            builds.object(DRIVERS / "launch.cpp", mutant.sanitizer),
            builds.object(DRIVERS / "patches.cpp", mutant.sanitizer),
        ]
        program = toolchain.link(objects, folder / "program", mutant.sanitizer)
        way = {"patches": "general", "shifts": "shifts"}.get(Path(mutant.file).stem)
        cases, schedules = [case for case in CASES if way in (None, case.way)], SCHEDULES
        if mutant.sanitizer:
            cases, schedules = FEW_CASES, SCHEDULES[:1]
        complaints = run(program, cases, schedules, folder, mutant.sanitizer, timeout=60)
        return {c.schedule: c.text for c in reversed(complaints)}
    finally:
        shutil.rmtree(folder)


CHOSEN = toolchain.chosen(MUTANTS)


@pytest.fixture(scope="module")
def outcomes(builds) -> dict[Mutant, dict[str, str]]:
    able = [m for m in CHOSEN if not toolchain.missing(m.sanitizer)]
    for s in {m.sanitizer for m in able}:
        builds.precompiled(s)
        toolchain.side_by_side(lambda d, s=s: builds.object(DRIVERS / d, s), ["launch.cpp", "patches.cpp"])
    seen = dict(zip(able, toolchain.side_by_side(lambda m: seen_by(builds, m), able), strict=True))
    print(f"\n{'mutant':45} seen by")
    for m in able:
        sight = ", ".join(seen[m]) if seen[m] else f"nothing: {m.harmless}"
        print(f"{m.name:45} {m.sanitizer + ' sanitizer' if m.sanitizer else sight}")
    return seen


@pytest.mark.parametrize("mutant", CHOSEN, ids=lambda m: f"{Path(m.file).stem}-{m.name}".replace(" ", "-"))
def test_mutant(outcomes, mutant):
    if reason := toolchain.missing(mutant.sanitizer):
        pytest.skip(reason)
    count = (CSRC / mutant.file).read_text().count(mutant.old)
    assert count == 1, f"stale: found {count} times in {mutant.file}"
    seen = outcomes[mutant]
    if mutant.harmless:
        assert not seen, seen
    elif mutant.sanitizer:
        assert "AddressSanitizer" in seen.get("crash", ""), f"{mutant.name}: {seen or 'not caught'}"
    else:
        assert seen, f"{mutant.name}: not caught"


def test_the_sound_sources_pass_the_mutants_cases(builds, tmp_path):
    assert not run(builds.program("patches"), CASES, SCHEDULES, tmp_path)
