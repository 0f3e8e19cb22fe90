"""Every kernel compiled from source under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

The first checks every access against red zones around every buffer; the second the bounds of every array that is
indexed by name (g++ puts no red zones around the shared arrays of templates), and alignment; the third, that no two
CUDA threads touch the same memory, one of them writing, without a barrier or an atomic between them. That they do see
such mistakes is in the table of mutants. The third's programs are compiled by `make mutants` only: the schedules of the
other tests see a missing barrier too.
"""

from __future__ import annotations

import pytest
import torch
from emulate import patch_cases, toolchain
from emulate.gram_cases import DTYPES, Case, run

SANITIZERS = {"gram": ("address,undefined", "thread"), "patches": ("address,undefined", "thread"),
              "tensor": ("address", "thread")}  # fmt: skip
PROGRAMS = [
    (name, sanitizer)
    for name, sanitizers in SANITIZERS.items()
    for sanitizer in sanitizers
    if sanitizer != "thread" or toolchain.ALL
]


@pytest.fixture(scope="module", autouse=True)
def side_by_side(builds):
    """Compiling is most of the time here."""
    able = [(name, s) for name, s in PROGRAMS if not (toolchain.missing() or toolchain.missing(s))]
    toolchain.side_by_side(lambda program: builds.program(*program), able)


def needs(sanitizer: str) -> None:
    if sanitizer == "thread" and not toolchain.ALL:
        pytest.skip("ThreadSanitizer: make mutants")
    if reason := toolchain.missing() or toolchain.missing(sanitizer):
        pytest.skip(reason)


ADDRESS = [
    *(Case(n, d, dtype, fast) for n, d in [(1, 1), (17, 65)] for dtype in DTYPES for fast in (False, True)),
    *(Case(35, 17, torch.bfloat16, layout=x, pixels=7) for x in ("columns", "gaps", "images", "channels_last")),
    *(Case(513, 3, torch.float32, fast, ldc=1) for fast in (False, True)),
    *(Case(33, 72, torch.float16, True, x, shifted=False) for x in ("rows", "padded", "padded_columns")),
    Case(20, 66, torch.bfloat16, True, group=True, symmetric=True),
    *(
        Case(d, n, torch.float64, shifted=False, summed=False, symmetric=True, ldc=1)
        for d, n in [(3, 1), (3, 33), (3, 64), (513, 3)]
    ),
]
#: ThreadSanitizer judges the order of accesses, not luck: one schedule and few blocks say what there is to say.
THREAD = [
    Case(33, 65, torch.bfloat16),
    Case(513, 3, torch.float32, fast=True),
    Case(20, 66, torch.bfloat16, True, shifted=False, group=True),
    Case(9, 66, torch.float64, shifted=False, summed=False, symmetric=True),
    Case(513, 3, torch.float64, shifted=False, summed=False, symmetric=True),
]


@pytest.mark.parametrize(
    ("sanitizer", "cases", "schedules"),
    [("address,undefined", ADDRESS, ("lockstep", "random:1")), ("thread", THREAD, ("warps",))],
    ids=["address,undefined", "thread"],
)
def test_gram(builds, tmp_path, sanitizer, cases, schedules):
    needs(sanitizer)
    assert [c.text for c in run(builds.program("gram", sanitizer), cases, schedules, tmp_path, sanitizer)] == []


PATCHES = {
    "address,undefined": [
        *(
            patch_cases.Case((3, 4), (3, 2), (1, 1), 3, 1, way, dtype, fast, groups=2, layout=layout, ldc=1)
            for way in patch_cases.WAYS
            for dtype, fast, layout in [(torch.float64, False, "nchw"), (torch.bfloat16, True, "nhwc")]
        ),
        patch_cases.Case((3, 2), (1, 2), (0, 0), 67, 1),
        patch_cases.Case((33, 37), (1, 2), (0, 1), 2, 1, "general", fast=True),
        patch_cases.Case((24, 24), (1, 2), (0, 1), 2, 1, fast=True),
    ],
    "thread": [
        patch_cases.Case((2, 3), (1, 2), (0, 1), 2, 1),
        patch_cases.Case((24, 24), (1, 2), (0, 0), 2, 1),
        patch_cases.Case((33, 37), (1, 2), (0, 1), 2, 1, "general"),
    ],
}


@pytest.mark.parametrize(
    ("sanitizer", "schedules"), [("address,undefined", ("lockstep", "random:1")), ("thread", ("warps",))]
)
def test_patches(builds, tmp_path, sanitizer, schedules):
    needs(sanitizer)
    program = builds.program("patches", sanitizer)
    found = patch_cases.run(program, PATCHES[sanitizer], schedules, tmp_path, sanitizer)
    assert [c.text for c in found] == []


@pytest.mark.parametrize(
    ("sanitizer", "schedules"),
    [("address", ("warps", "random:1+early")), ("thread", ("warps",))],
    ids=["address", "thread"],
)
def test_tensor(builds, sanitizer, schedules):
    needs(sanitizer)
    ended = toolchain.run(builds.program("tensor", sanitizer), *schedules, sanitizer=sanitizer)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
