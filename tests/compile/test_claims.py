"""What every kernel takes of a multiprocessor is what its tuning counts on: CLAIMS in kernels/<op>/config.py.

The claims are tight for the compilers they were made with, so that any change is seen, and decided on. Another compiler
may allocate registers otherwise: then nothing fails but what is wrong with any compiler (spills, local memory).
"""

import importlib
import re
import subprocess
import warnings

import gpu_builds
import pytest
from fastrank.kernels.occupancy import MULTIPROCESSORS, Claim, occupancy
from machine_code import short

#: The compilers that the claims were made with.
TRITON, NVCC = "3.8.0", "13.0"


def claims(op: str) -> dict[str, Claim]:
    return importlib.import_module(f"fastrank.kernels.{op}.config").CLAIMS


def claim_name(name: str) -> str:
    """The claim that a kernel comes under."""
    if name.startswith("_Z"):
        found = re.fullmatch(r"(\w+)(?:<(\w+).*, (\d+)>)?", short(name))
        return " ".join(part for part in found.groups() if part)
    kernel, _, rest = name.partition(" ")
    if kernel == "reduce":
        return kernel
    tile, dtype, variant = rest.split(maxsplit=2)
    variant = variant.replace("per-sample T", "plain")
    return f"{kernel} {tile} {'fp64 ' if dtype == 'fp64' else ''}{variant}"


def measured(codes) -> dict[tuple[str, str], Claim]:
    """(op, claim) -> the tightest claim that holds for all of `codes`."""
    found: dict[tuple[str, str], Claim] = {}
    for code in codes:
        limits = MULTIPROCESSORS[code.arch]
        blocks = occupancy(code.registers, code.shared, code.warps, code.arch).blocks
        if blocks == min(limits.warps // code.warps, limits.blocks):
            blocks = 64 // code.warps  # as many as there can be
        key = code.op, claim_name(code.name)
        old = found.get(key, Claim(0, 64))
        found[key] = Claim(max(old.registers, -(-code.registers // 8) * 8), min(old.blocks, blocks))
    return found


def check(codes, pinned: bool) -> None:
    assert codes
    for code in codes:
        assert code.stack == 0 and code.local == 0, (code.name, code.arch, code.stack, code.local)
    differences = []
    for (op, name), found in measured(codes).items():
        claim = claims(op).get(name)
        if claim != found:
            differences.append(f"{op} {name}: config.py says {claim}, compiled {found}")
    if differences and not pinned:
        warnings.warn("\n".join(["another compiler than the claims were made with:", *differences]), stacklevel=1)
    else:
        assert not differences, "\n".join(differences)


def test_triton(triton_kernels):
    check(triton_kernels, gpu_builds.triton.__version__ == TRITON)


def test_cuda(cuda_kernels):
    version = subprocess.run([gpu_builds.NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    check(cuda_kernels, f"release {NVCC}," in version)


def test_every_claim_has_a_kernel():
    """So that none stays behind when a kernel or a tile goes."""
    if not gpu_builds.TRITON:
        pytest.skip("Triton's kernels are not listed without triton, or under TRITON_INTERPRET=1")
    for op in {build.op for build in gpu_builds.TRITON}:
        assert {claim_name(build.name) for build in gpu_builds.TRITON if build.op == op} == set(claims(op)), op
    for build in gpu_builds.CUDA:
        text = "".join(path.read_text() for path in sorted(build.source.parent.glob("*.cuh")))
        kernels = set(re.findall(r"__global__.*?\)\s(\w+)\(", text))
        assert kernels == {name.split()[0] for name in claims(build.op)}
