"""The CUDA Gram kernels from the PTX that nvcc makes of them, launched by csrc/gram/cuda.cu, against float64 truth."""

from __future__ import annotations

import re

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


def only(ptx: str, kernels: str) -> str:
    """The PTX of the kernels whose names have this in them: it is g++ that takes long here."""
    code, files = re.split(r"^(?=\s*\.file)", ptx, maxsplit=1, flags=re.M)
    head, *entries = re.split(r"^(?=\s*(?:\.\w+ )?\.entry )", code, flags=re.M)
    return head + "".join(e for e in entries if re.search(kernels, e.partition("(")[0])) + files


def built(arch: int, kernels: str, folder):
    from emulate.ptx import host

    ptx = only(gpu_builds.CUDA[0].ptx(arch, folder), kernels)
    return host.program(ptx, [gpu_builds.CUDA[0].source, toolchain.HERE / "drivers" / "gram.cpp"], folder)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Every small tile, and of the wide one each way to multiply once."""
    wide = r"(ExactIf|FastIf|HalfI13__nv_bfloat16)Li128"
    return built(80, rf"Li64EEEv|{wide}|gram_reduce", tmp_path_factory.mktemp("gram80"))


def complaints(program, cases, folder, schedules=SCHEDULES) -> list[str]:
    return [c.text for c in run(program, cases, schedules, folder)][:5]


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(program, tmp_path, dtype, fast):
    cases = [Case(n, d, dtype, fast) for n, d in [(1, 1), (5, 3), (17, 65), (129, 66)]]
    assert not complaints(program, cases, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_without_a_shift(program, tmp_path, dtype):
    cases = [
        Case(n, d, dtype, True, layout, pixels, shifted=False)
        for n, d, pixels in [(1, 1, 1), (24, 17, 8), (33, 72, 11), (136, 8, 8)]
        for layout in ("rows", "padded", "padded_columns", "images")
    ]
    early = tuple(f"{schedule}+early" for schedule in SCHEDULES[2:])
    assert not complaints(program, cases, tmp_path, SCHEDULES[:2] + early)


def test_splits_layouts_groups_and_integers(program, tmp_path):
    cases = [Case(513, 3), Case(513, 65, torch.bfloat16, fast=True), Case(1025, 5, fast=True, summed=False)]
    cases += [
        Case(35, 17, torch.float16, fast, layout, 7, shifted=not fast)
        for layout in ("columns", "gaps", "padded", "padded_columns", "images", "channels_last")
        for fast in (False, True)
    ]
    cases += [Case(37, 70, dtype, integer=8, symmetric=True) for dtype in DTYPES]
    cases += [Case(600, 3, group=True), Case(20, 66, torch.bfloat16, True, shifted=False, group=True)]
    cases += [Case(20, 9, dtype, True, nan=float("inf")) for dtype in DTYPES]
    assert not complaints(program, cases, tmp_path, SCHEDULES[1::2])


def test_wide_tiles(program, tmp_path):
    cases = [Case(9, 1025), Case(9, 1025, fast=True), Case(20, 1032, torch.bfloat16, True, shifted=False)]
    cases.append(Case(24, 1032, torch.bfloat16, True, "columns", shifted=False))
    assert not complaints(program, cases, tmp_path, ("random:1",))


def test_duals(program, tmp_path):
    cases = [
        Case(d, n, dtype, fast, "columns", shifted=False, summed=False, symmetric=True)
        for d, n in [(5, 1), (3, 2), (5, 31), (9, 65), (520, 3)]
        for dtype, fast in [(torch.float64, False), (torch.float32, True), (torch.bfloat16, True)]
    ]
    assert not complaints(program, cases, tmp_path)


def test_the_wider_fp64_products_of_sm_90(tmp_path):
    program = built(90, r"ExactI[df]Li64|gram_reduce", tmp_path)
    cases = [Case(n, d, dtype) for n, d in [(17, 65), (513, 3)] for dtype in (torch.float64, torch.float32)]
    assert not complaints(program, [*cases, Case(37, 70, integer=8)], tmp_path, SCHEDULES[1::2])
