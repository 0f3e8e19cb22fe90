"""The CUDA patch kernels, compiled from source and launched by csrc/gram/patches.cu, against float64 im2col."""

from __future__ import annotations

import itertools

import pytest
import torch
from emulate import toolchain
from emulate.gram_cases import DTYPES
from emulate.patch_cases import Case, run

pytestmark = pytest.mark.skipif(bool(toolchain.missing()), reason=toolchain.missing() or "-")

SCHEDULES = ("lockstep", "reverse", "warps", "warps-reverse", "random:1", "random:2")
WAYS = ("general", "shifts")

#: (size, kernel, padding, dilation): every kernel, paddings up to beyond the image in one direction, images of 1 x 1.
GEOMETRY = [
    ((7, 7), (3, 3), (1, 1), (1, 1)),
    ((7, 7), (3, 3), (0, 0), (1, 1)),
    ((7, 6), (3, 3), (2, 2), (2, 2)),
    ((5, 6), (5, 3), (2, 1), (1, 1)),
    ((3, 2), (1, 3), (0, 2), (1, 1)),
    ((3, 2), (3, 1), (1, 0), (1, 2)),
    ((7, 5), (2, 2), (1, 1), (1, 1)),
    ((1, 1), (3, 3), (1, 1), (1, 1)),
    ((1, 1), (2, 2), (1, 1), (1, 1)),
    ((3, 2), (3, 3), (2, 5), (1, 1)),  # more padding than image
    ((6, 5), (3, 3), (0, 1), (2, 2)),
    ((4, 4), (4, 4), (0, 0), (1, 1)),  # one output
    ((3, 4), (3, 2), (2, 3), (2, 3)),
]


def complaints(builds, tmp_path, cases, schedules=SCHEDULES) -> list[str]:
    return [c.text for c in run(builds.program("patches"), cases, schedules, tmp_path)][:10]


@pytest.mark.parametrize("way", WAYS)
def test_geometry(builds, tmp_path, way):
    """Integers, bit for bit: every pair of taps and every piece counts, whatever the others do."""
    cases = [
        Case(size, kernel, pad, channels=2, way=way, dilation=dilation, integer=8, fast=bool(i % 2))
        for i, (size, kernel, pad, dilation) in enumerate(GEOMETRY)
    ]
    assert not complaints(builds, tmp_path, cases, ("lockstep", "random:1"))


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(builds, tmp_path, dtype, fast):
    cases = [
        Case((5, 6), channels=3, way=way, dtype=dtype, fast=fast, groups=2, ldc=ldc, pad=(ldc, 1))
        for way, ldc in zip(WAYS, (0, 1), strict=True)
    ]
    cases += [Case((3, 3), way=way, dtype=dtype, fast=fast, integer=8) for way in WAYS]
    assert not complaints(builds, tmp_path, cases)


@pytest.mark.parametrize("way", WAYS)
def test_layouts_shifts_and_sums(builds, tmp_path, way):
    cases = [
        Case((3, 5), (3, 2), (1, 1), 3, 2, way, dtype, fast, groups=groups, layout=layout, shifted=shift, summed=total)
        for layout, (dtype, fast, groups, shift, total) in itertools.product(
            ["nhwc", "gaps"],
            [(torch.float32, False, 1, False, True), (torch.bfloat16, True, 2, True, False)],
        )
    ]
    cases.append(Case((4, 4), way=way, shifted=False, summed=False, pad=(0, 0)))
    assert not complaints(builds, tmp_path, cases, SCHEDULES[::2])


def test_steps_go_the_general_way(builds, tmp_path):
    cases = [
        Case(size, kernel, pad, 3, 3, "cheaper", step=step, dilation=dilation, integer=8)
        for size, kernel, pad, step, dilation in [
            ((7, 7), (3, 3), (1, 1), (2, 2), (1, 1)),
            ((8, 7), (2, 3), (0, 2), (2, 1), (1, 2)),
            ((9, 5), (1, 1), (0, 0), (3, 2), (1, 1)),
            ((2, 3), (1, 3), (0, 4), (1, 3), (1, 2)),
        ]
    ]
    assert not complaints(builds, tmp_path, cases)
    refused = complaints(builds, tmp_path, [Case(step=(2, 1), way="shifts")], SCHEDULES[:1])
    assert refused and "expected step 1" in refused[0]


def test_several_tiles(builds, tmp_path):
    """Off the diagonal and on it, with channels that end inside a tile."""
    cases = [
        Case((4, 3), (2, 2), (1, 0), 67, 2, "shifts", integer=8, fast=True),
        Case((3, 4), (1, 3), (0, 1), 130, 1, "shifts", torch.bfloat16),
        Case((4, 3), (2, 2), (1, 0), 67, 2, "general", integer=8, fast=True),
    ]
    assert not complaints(builds, tmp_path, cases, ("lockstep", "random:1"))


def test_splits_chunks_and_flushes(builds, tmp_path):
    """Thousands of positions: several splits, chunks of a piece, chunks of the sums, and flushes of fp32."""
    cases = [
        Case((33, 37), (3, 3), (1, 1), 2, 3, way, fast=fast, integer=integer, layout=layout)
        for way in WAYS
        for fast, integer, layout in [(True, 0, "nchw"), (False, 8, "nhwc")]
    ]
    # 128 squares of 361 are the most that fp32 sums without rounding: the flush must come in time.
    cases += [Case((33, 33), (1, 2), (0, 0), 2, 1, way, fast=True, shifted=False, integer=361) for way in WAYS]
    assert not complaints(builds, tmp_path, cases, ("lockstep", "random:1"))


@pytest.mark.parametrize("way", WAYS)
def test_mean_far_above_the_spread(builds, tmp_path, way):
    """x - shift is fp64 in both modes, and what the padding adds never cancels."""
    cases = [Case((5, 5), way=way, fast=fast, mean=1e4, images=3) for fast in (False, True)]
    assert not complaints(builds, tmp_path, cases, SCHEDULES[:2])


@pytest.mark.parametrize("way", WAYS)
def test_offsets_beyond_32_bits(builds, tmp_path, way):
    cases = [Case((3, 3), (2, 2), (1, 0), 2, 2, way, fast=fast, layout="far") for fast in (False, True)]
    assert not complaints(builds, tmp_path, cases, SCHEDULES[:2])


@pytest.mark.parametrize("way", WAYS)
def test_nothing(builds, tmp_path, way):
    assert not complaints(builds, tmp_path, [Case(images=0, way=way), Case(channels=0, way=way)], SCHEDULES[:1])
