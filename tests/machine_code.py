"""Machine code of everything in gpu_builds.py, and what it takes of a multiprocessor."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import gpu_builds
from fastrank.kernels.occupancy import MULTIPROCESSORS, occupancy

ARCHITECTURES = tuple(MULTIPROCESSORS)
#: What CMakeLists.txt has nvcc compile for, and whose chips run it.
CUDA_ARCHITECTURES = {80: (80, 86, 89), 90: (90,), 100: (100,), 120: (120,)}
assert sorted(chip for chips in CUDA_ARCHITECTURES.values() for chip in chips) == sorted(ARCHITECTURES)


def architectures(build) -> tuple[int, ...]:
    """Where a Triton build is compiled: with every option in fp32, for all; else for one architecture of consumers and
    one of data centres, as ptxas aims at other numbers of warps there; where registers are no concern, for one."""
    if re.search(r"fp32 .*full", build.name):
        return ARCHITECTURES
    lean = re.search(r"plain|per-sample|fp16|bf16 (mixed|probabilities|split)", build.name)
    return (90,) if lean and "fp64" not in build.name else (89, 90)


@dataclass(frozen=True)
class Code:
    """One kernel's machine code for one architecture, and what it takes."""

    op: str
    name: str
    arch: int
    warps: int
    registers: int
    stack: int
    local: int
    shared: int
    ptx: str
    #: Machine code, of a CUDA kernel.
    sass: str = ""
    #: Constants that a Triton kernel was compiled with.
    constants: dict = field(default_factory=dict)


def triton_code(build, arch: int, folder: Path) -> list[Code]:
    binary = build.compile(arch)
    cubin = folder / f"{build.name.replace(' ', '-')}-{arch}.cubin"
    cubin.write_bytes(binary.asm["cubin"])
    (used,) = gpu_builds.resources(cubin).values()
    return [
        Code(build.op, build.name, arch, build.warps, used["REG"], used["STACK"], used["LOCAL"], binary.metadata.shared,
             binary.asm["ptx"], constants=build.constants)
    ]  # fmt: skip


def cuda_code(build, arch: int, folder: Path) -> list[Code]:
    cubin = build.cubin(arch, folder)
    # How many threads a kernel is made for is the same for every architecture.
    found, sass, ptx = [], gpu_builds.instructions(cubin), build.ptx(80, folder)
    for name, used in gpu_builds.resources(cubin).items():
        threads = int(re.search(r"\.maxntid (\d+)", ptx.partition(f".entry {name}(")[2])[1])
        # From sm_90 on the system's own 1024 bytes of a block are counted, wherever a kernel has any.
        shared = max(used["SHARED"] - (1024 if arch >= 90 else 0), 0)
        found += [
            Code(build.op, name, chip, threads // 32, used["REG"], used["STACK"], used["LOCAL"], shared, ptx,
                 sass[name])
            for chip in CUDA_ARCHITECTURES[arch]
        ]  # fmt: skip
    return found


def compile_all(jobs: list[tuple], folder: Path) -> list[Code]:
    """The code of every (compile, build, architecture), several at a time: a compiler run is a process, or a call that
    lets go of the interpreter."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [code for codes in pool.map(lambda job: job[0](*job[1:], folder), jobs) for code in codes]


def resource_table(codes: list[Code]) -> str:
    """One line a kernel, one column an architecture."""
    lines: dict[tuple[str, str, int], dict[int, str]] = {}
    for code in codes:
        fits = occupancy(code.registers, code.shared, code.warps, code.arch)
        cell = f"{code.registers:3} {code.shared:5} {fits.blocks:2} {100 * fits.share:3.0f}% {fits.limiter[:3]}"
        lines.setdefault((code.op, short(code.name), code.warps), {})[code.arch] = cell
    archs = sorted({code.arch for code in codes})
    text = ["registers, shared bytes, blocks an SM, share of its warps, limiter (registers, shared, warps, blocks)"]
    text.append(f"{'':42} warps  " + "  ".join(f"{f'sm_{arch}':21}" for arch in archs))
    for (op, name, warps), cells in lines.items():
        row = "  ".join(f"{cells.get(arch, ''):21}" for arch in archs)
        text.append(f"{op + ' ' + name:42} {warps:5}  {row}".rstrip())
    return "\n".join(text)


def short(name: str) -> str:
    """A CUDA kernel's mangled name as people write it: gram_tiles<Exact float, 64>."""
    if not name.startswith("_Z") or not (found := re.search(r"(gram|patch)_[a-z]+", name)):
        return name
    types = {"6__half": "half", "13__nv_bfloat16": "bf16", "d": "double", "f": "float"}
    if not (way := re.search(rf"\d(Exact|Fast|Half)I({'|'.join(types)})Li(\d+)E(?:Lb(\d)E)?", name)):
        return found[0]
    along = {None: "", "1": " along columns", "0": " along rows"}[way[4]]
    return f"{found[0]}<{way[1]} {types[way[2]]}{along}, {way[3]}>"
