"""The CUDA Gram kernels from the PTX that nvcc makes of them, launched by csrc/gram/cuda.cu, against float64 truth."""

from __future__ import annotations

import gpu_builds
import pytest
import torch
from emulate import toolchain
from emulate.gram_cases import DTYPES, Case, run

pytestmark = [
    pytest.mark.skipif(bool(toolchain.missing()), reason=toolchain.missing() or "-"),
    pytest.mark.skipif(gpu_builds.NVCC is None, reason="nvcc is not installed"),
]
SCHEDULES = ("lockstep", "reverse", "warps", "warps-reverse", "random:1", "random:2")


@pytest.fixture(scope="module")
def ptx(tmp_path_factory) -> str:
    return gpu_builds.CUDA[0].compile(80, tmp_path_factory.mktemp("nvcc")).ptx


@pytest.fixture(scope="module")
def program(ptx, tmp_path_factory):
    from emulate.ptx import host

    sources = [gpu_builds.CUDA[0].source, toolchain.HERE / "drivers" / "gram.cpp"]
    return host.program(ptx, sources, tmp_path_factory.mktemp("gram"))


def complaints(program, cases, folder) -> list[str]:
    return [c.text for c in run(program, cases, SCHEDULES, folder)][:5]


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(program, tmp_path, dtype, fast):
    cases = [Case(n, d, dtype, fast) for n, d in [(1, 1), (5, 3), (17, 65), (129, 66)]]
    assert not complaints(program, cases, tmp_path)


def test_splits_layouts_and_integers(program, tmp_path):
    cases = [Case(2049, 3), Case(2049, 65, torch.bfloat16, fast=True), Case(4097, 5, fast=True, summed=False)]
    cases += [
        Case(35, 17, torch.float16, fast, layout, 7, shifted=not fast)
        for layout in ("columns", "gaps", "images", "channels_last")
        for fast in (False, True)
    ]
    cases += [Case(37, 70, dtype, integer=8) for dtype in DTYPES]
    assert not complaints(program, cases, tmp_path)


def test_mirror(program, tmp_path):
    assert not complaints(
        program, [Case(n, n, torch.float64, mirror=True, summed=False) for n in (1, 2, 31, 65)], tmp_path
    )
