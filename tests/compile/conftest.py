"""Compiles everything of gpu_builds.py that the selected tests look at, once, several at a time; prints what came out.

A compiler run is a process or a call that lets go of the interpreter, so threads keep all cores busy.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gpu_builds
import pytest
from fastrank.kernels.occupancy import MULTIPROCESSORS, occupancy

ARCHITECTURES = tuple(MULTIPROCESSORS)
#: Compiled for every architecture: the variant with every option, in the accumulator most use. The others are compiled
#: for one data-centre and one consumer architecture: what differs between them is how many warps ptxas aims at.
RICHEST = re.compile(r"fp32 (full|mean)")
TWO = (89, 90)


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
    sass: str


def triton_code(build, arch: int, folder: Path) -> list[Code]:
    binary = build.compile(arch)
    cubin = folder / f"{build.name.replace(' ', '-')}-{arch}.cubin"
    cubin.write_bytes(binary.asm["cubin"])
    (used,) = gpu_builds.resources(cubin).values()
    return [
        Code(build.op, build.name, arch, build.warps, used["REG"], used["STACK"], used["LOCAL"], binary.metadata.shared,
             binary.asm["ptx"], "")
    ]  # fmt: skip


def cuda_code(build, arch: int, folder: Path) -> list[Code]:
    compiled = build.compile(arch, folder)
    found, sass = [], gpu_builds.instructions(compiled.cubin)
    for name, used in gpu_builds.resources(compiled.cubin).items():
        account = compiled.account[name]
        assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", account), (name, account)
        shared = re.search(r"(\d+) bytes smem", account)
        threads = int(re.search(r"\.maxntid (\d+)", compiled.ptx.partition(f".entry {name}(")[2])[1])
        found.append(
            Code(build.op, name, arch, threads // 32, used["REG"], used["STACK"], used["LOCAL"],
                 int(shared[1]) if shared else 0, compiled.ptx, sass[name])
        )  # fmt: skip
    return found


def _compiled(jobs, folder: Path) -> list[Code]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [code for found in pool.map(lambda job: job[0](*job[1:], folder), jobs) for code in found]


@pytest.fixture(scope="session")
def triton_kernels(request, tmp_path_factory) -> list[Code]:
    if not gpu_builds.TRITON:
        pytest.skip("Triton's kernels are not compiled without triton, or under TRITON_INTERPRET=1")
    if not gpu_builds.cuobjdump():
        pytest.skip("cuobjdump is not installed (it comes with triton)")
    jobs = []
    for build in gpu_builds.TRITON:
        for arch in ARCHITECTURES if RICHEST.search(build.name) else TWO:
            jobs.append((triton_code, build, arch))
    request.config.stash.setdefault(TABLE, [])
    found = _compiled(jobs, tmp_path_factory.mktemp("triton"))
    request.config.stash[TABLE] += found
    return found


@pytest.fixture(scope="session")
def cuda_kernels(request, tmp_path_factory) -> list[Code]:
    if gpu_builds.NVCC is None:
        pytest.skip("nvcc is not installed")
    if not gpu_builds.cuobjdump():
        pytest.skip("cuobjdump is not installed (it comes with triton)")
    jobs = [(cuda_code, build, arch) for build in gpu_builds.CUDA for arch in ARCHITECTURES]
    request.config.stash.setdefault(TABLE, [])
    found = _compiled(jobs, tmp_path_factory.mktemp("cuda"))
    request.config.stash[TABLE] += found
    return found


TABLE: pytest.StashKey[list[Code]] = pytest.StashKey()


def pytest_terminal_summary(terminalreporter, config) -> None:
    """One line a kernel and architecture."""
    codes = config.stash.get(TABLE, [])
    if not codes:
        return
    terminalreporter.section("GPU kernels: registers, shared memory, occupancy")
    lines: dict[tuple[str, str, int], dict[int, str]] = {}
    for code in codes:
        fits = occupancy(code.registers, code.shared, code.warps, code.arch)
        cell = f"{code.registers:3} {fits.blocks:2} {100 * fits.share:3.0f}% {fits.limiter[:3]}"
        lines.setdefault((code.op, short(code.name), code.warps, ), {})[code.arch] = cell  # fmt: skip
    archs = sorted({code.arch for code in codes})
    terminalreporter.write_line("registers, blocks an SM, share of its warps, limiter (registers, warps, shared, blocks)")
    terminalreporter.write_line(f"{'':42} warps  " + "  ".join(f"{f'sm_{arch}':15}" for arch in archs))
    for (op, name, warps), cells in lines.items():
        row = "  ".join(f"{cells.get(arch, ''):15}" for arch in archs)
        terminalreporter.write_line(f"{op + ' ' + name:42} {warps:5}  {row}".rstrip())


def short(name: str) -> str:
    """A CUDA kernel's mangled name as people write it: gram_tiles<float, double>."""
    found = re.search(r"(gram_[a-z]+)(I(.*?)EEv)?", name)
    if not found or not name.startswith("_Z"):
        return name
    types = {"6__half": "half", "13__nv_bfloat16": "bf16", "d": "double", "f": "float"}
    inside = re.findall("|".join(types), found[3] or "")
    return found[1] + (f"<{', '.join(types[t] for t in inside)}>" if inside else "")
