"""The CUDA patch kernels from the PTX that nvcc makes of them, launched by csrc/gram/patches.cu, against float64."""

from __future__ import annotations

import gpu_builds
import pytest
import torch
from emulate import toolchain
from emulate.gram_cases import DTYPES
from emulate.patch_cases import Case, run

pytestmark = [
    pytest.mark.skipif(bool(toolchain.missing()), reason=toolchain.missing() or "-"),
    pytest.mark.skipif(gpu_builds.NVCC is None, reason="nvcc is not installed"),
]
SCHEDULES = ("lockstep", "reverse", "warps", "random:1")
WAYS = ("general", "shifts")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    from emulate.ptx import host

    build = next(build for build in gpu_builds.CUDA if build.name == "patches")
    ptx = build.ptx(80, tmp_path_factory.mktemp("nvcc"))
    sources = [build.source, toolchain.HERE / "drivers" / "patches.cpp"]
    return host.program(ptx, sources, tmp_path_factory.mktemp("patches"))


def complaints(program, cases, folder) -> list[str]:
    return [c.text for c in run(program, cases, SCHEDULES, folder)][:5]


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(program, tmp_path, dtype, fast):
    cases = [Case((4, 3), (2, 3), channels=2, way=way, dtype=dtype, fast=fast, groups=2) for way in WAYS]
    assert not complaints(program, cases, tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_geometry_and_layouts(program, tmp_path, way):
    cases = [
        Case((6, 5), (3, 3), (2, 1), 2, way=way, dilation=(2, 1), integer=8, fast=True),
        Case((3, 2), (3, 3), (2, 5), 2, way=way, integer=8),
        Case((3, 4), (1, 2), (0, 0), 67, way=way, layout="nhwc", dtype=torch.bfloat16),
        Case((3, 3), (2, 1), (0, 0), 3, way=way, layout="gaps", shifted=False, ldc=2),
    ]
    if way == "general":
        cases.append(Case((7, 6), (3, 2), (1, 1), 3, way=way, step=(2, 3), integer=8))
    assert not complaints(program, cases, tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_splits_chunks_and_flushes(program, tmp_path, way):
    cases = [Case((33, 37), (1, 2), (0, 1), 2, 2, way, fast=fast, integer=8) for fast in (False, True)]
    assert not complaints(program, cases, tmp_path)
