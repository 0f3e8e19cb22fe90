"""The CUDA Gram kernels, compiled from source and launched by csrc/gram/cuda.cu itself, against float64 truth."""

from __future__ import annotations

import itertools

import pytest
import torch
from emulate import toolchain
from emulate.gram_cases import DTYPES, SMALL_BLOCKS, Case, cut, run
from fastrank.kernels import backend
from fastrank.kernels.gram import bound

pytestmark = pytest.mark.skipif(bool(toolchain.missing()), reason=toolchain.missing() or "-")

SCHEDULES = ("lockstep", "reverse", "warps", "warps-reverse", "random:1", "random:2", "random:3")

#: Around a step of 8 or 16 rows, a tile of 64 columns and a chunk of 128 rows; one, primes; nothing.
SHAPES = [(1, 1), (1, 64), (5, 3), (15, 63), (16, 64), (17, 65), (37, 71), (127, 31), (129, 130), (0, 3), (4, 0)]
#: Around the first cut into splits (of 256 rows and more), several tiles in several splits, an odd number of splits.
SPLITS = [(511, 2), (512, 65), (513, 3), (1281, 5)]
LAYOUTS = ["columns", "gaps", "padded", "padded_columns", "images", "channels_last"]


def complaints(builds, tmp_path, cases) -> list[str]:
    return [c.text for c in run(builds.program("gram"), cases, SCHEDULES, tmp_path)][:10]


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(builds, tmp_path, dtype, fast):
    cases = [Case(n, d, dtype, fast) for n, d in SHAPES]
    cases += [Case(n, d, dtype, fast, ldc=i % 3) for i, (n, d) in enumerate(SPLITS)] if dtype == torch.float32 else []
    assert not complaints(builds, tmp_path, cases)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(builds, tmp_path, layout):
    cases = [
        Case(n, d, dtype, fast, layout, pixels, shifted, summed)
        for (n, d, pixels), dtype, (fast, shifted, summed) in itertools.product(
            [(1, 1, 1), (35, 17, 7), (54, 66, 3), (130, 5, 130)],
            [torch.float32, torch.bfloat16],
            [(False, True, True), (True, False, True), (True, True, False)],
        )
    ]
    cases += [Case(2100, 5, torch.float32, True, layout, pixels) for pixels in (1, 30, 2100)]
    assert not complaints(builds, tmp_path, cases)


def test_integers_are_exact(builds, tmp_path):
    cases = [
        Case(n, d, dtype, fast, integer=8) for n, d in [(37, 70), (2100, 3)] for dtype in DTYPES for fast in (0, 1)
    ]
    # 128 squares of 361 are the most that fp32 sums without rounding: the flush must come in time.
    cases += [Case(n, 5, torch.float32, fast, shifted=False, integer=361) for n in (128, 1000) for fast in (0, 1)]
    assert not complaints(builds, tmp_path, cases)


def test_mean_far_above_the_spread(builds, tmp_path):
    """X - shift is fp64 in both modes: in fp32 it would lose most of the digits."""
    cases = [
        Case(n, d, dtype, fast, mean=1e4, layout=layout)
        for n, d, layout in [(37, 70, "rows"), (130, 5, "columns")]
        for dtype in (torch.float64, torch.float32)
        for fast in (False, True)
    ]
    assert not complaints(builds, tmp_path, cases)


@pytest.mark.parametrize("layout", ["far_rows", "far_columns", "far_images"])
def test_offsets_beyond_32_bits(builds, tmp_path, layout):
    cases = [
        Case(n, d, dtype, fast, layout, pixels)
        for n, d, pixels in [(3, 3, 1), (6, 2, 2)]
        for dtype, fast in [(torch.bfloat16, False), (torch.float32, True)]
    ]
    cases.append(Case(3, 3, torch.bfloat16, layout=layout, symmetric=True))
    assert not complaints(builds, tmp_path, cases)


@pytest.mark.parametrize("layout", ["rows", *LAYOUTS])
def test_sixteen_bits_without_a_shift(builds, tmp_path, layout):
    """On tensor cores: copied 16 bytes at a time where X lies so (d or pixels a multiple of 8), else number by number;
    one, two, three, many steps; several tiles; flushes; splits."""
    cases = [
        Case(n, d, dtype, True, layout, pixels, False, summed)
        for n, d, pixels in [(1, 1, 1), (16, 8, 16), (24, 17, 8), (33, 72, 11), (48, 136, 24), (264, 40, 8)]
        for dtype, summed in [(torch.bfloat16, True), (torch.float16, False)]
    ]
    cases.append(Case(520, 9, torch.bfloat16, True, layout, 520, False))
    assert not complaints(builds, tmp_path, cases)


def test_wide_tiles(builds, tmp_path):
    """From 1024 columns on; and small ones in more than one band of rows below."""
    cases = [
        Case(9, 1025, torch.float32, fast=True),
        Case(3, 1030, torch.float32),
        Case(20, 1032, torch.bfloat16, True, shifted=False),
        Case(20, 1025, torch.float16, True, "columns", shifted=False),
        Case(2, 700, torch.float64),
    ]
    assert not [c.text for c in run(builds.program("gram"), cases, ("lockstep", "random:1"), tmp_path)]


def test_integers_are_exact_in_any_cut(builds, tmp_path):
    """A lost split or tile, or one counted twice, cannot hide in a bound; more splits than one thread adds up."""
    cases = [Case(n, 5, torch.float32, True, integer=8) for n in (767, 768, 4352)]
    cases += [Case(1030, 129, torch.bfloat16, True, shifted=False, integer=8), Case(9, 600, integer=8)]
    cases.append(Case(1024, 1030, torch.float16, True, "columns", shifted=False, integer=8))
    assert not [c.text for c in run(builds.program("gram"), cases, ("lockstep",), tmp_path)]


def test_groups_have_the_bits_of_their_products(builds, tmp_path):
    cases = [Case(37, 70, torch.float32, fast, symmetric=fast, group=True, shifted=not fast) for fast in (False, True)]
    cases += [Case(600, 3, dtype, True, group=True) for dtype in DTYPES]
    cases.append(Case(32, 40, torch.bfloat16, True, "columns", shifted=False, group=True, symmetric=True))
    assert not complaints(builds, tmp_path, cases)


def test_symmetric_results(builds, tmp_path):
    cases = [Case(20, d, torch.float32, symmetric=True, ldc=1) for d in (1, 65, 130)]
    cases += [Case(600, 3, symmetric=True), Case(513, 65, torch.float64, symmetric=True, ldc=1)]
    assert not complaints(builds, tmp_path, cases)


def test_duals(builds, tmp_path):
    """As gram_dual asks for them: no shift, no sums, both triangles; from columns or rows, one and several splits."""
    sizes = [(5, 0), (5, 1), (3, 2), (0, 4), (5, 31), (5, 32), (5, 33), (9, 64), (3, 97), (520, 2), (513, 65)]
    cases = [
        Case(d, n, dtype, fast, ("columns", "rows")[(d + fast) % 2], shifted=False, summed=False, symmetric=True)
        for d, n in sizes
        for dtype in (DTYPES if n < 40 else (torch.float64, torch.float16))
        for fast in (False, True)
    ]
    assert not complaints(builds, tmp_path, cases)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_numbers_are_flagged_and_stay_where_they_are(builds, tmp_path, value):
    """All other cases expect the flag to stay 0."""
    cases = [Case(n, 70, dtype, fast, nan=value) for n in (20, 600) for dtype in DTYPES for fast in (False, True)]
    cases += [Case(40, 9, torch.bfloat16, True, "columns", shifted=False, summed=False, nan=value)]
    assert not [c.text for c in run(builds.program("gram"), cases, ("lockstep", "random:1"), tmp_path)]


def test_rows_are_cut_into_few_splits(builds, tmp_path):
    rows = (1, 511, 512, 513, 4097, 512 * 256, 512 * 256 + 1, 10**6, 2**40)
    assert max(cut(n, 64)[1] for n in rows) == SMALL_BLOCKS
    cases = [Case(n, d, plan=True, summed=False) for n in rows for d in (2, 64, 130, 1030)]
    assert not [c.text for c in run(builds.program("gram"), cases, ("lockstep",), tmp_path)]


def test_depth_is_the_kernels_own():
    """The bound used here needs no core with CUDA; where there is one, it says the same."""
    from emulate.gram_cases import depth

    core = backend.core()
    if core is None or not core.cuda:
        pytest.skip("the native core was built without CUDA")
    for n, d in [*SHAPES, *SPLITS, (10**6, 64)]:
        for fast in (False, True):
            if n:
                mode = "fast" if fast else "exact"
                assert depth(Case(n, d, fast=fast)) == bound.depth(n, d, torch.float32, mode, "cuda")
