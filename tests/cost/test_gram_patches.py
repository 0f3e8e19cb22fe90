"""kernels/gram/cost_patches.py against counts of what the patch kernels' own source does."""

import ctypes
from pathlib import Path

import pytest
import torch
from emulate import toolchain
from fastrank.kernels.gram.cost_patches import Cut, Patches, Plan, by_shifts, patches


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The kernels' source, built to count."""
    if reason := toolchain.missing():
        pytest.skip(reason)
    library = tmp_path_factory.mktemp("count") / "count.so"
    return ctypes.CDLL(str(toolchain.compile_library(Path(__file__).with_name("count_patches.cpp"), library)))


def numbers(function, size: int, p: Patches, *arguments: int) -> list[int]:
    shape = [p.images, p.groups, p.channels, *p.size, *p.kernel, *p.step, *p.pad, *p.dilation]
    out = (ctypes.c_int64 * size)()
    function((ctypes.c_int64 * len(shape))(*shape), *(ctypes.c_int64(a) for a in arguments), out)
    return list(out)


#: Padding and none, dilation, groups, channels beyond a tile, chunks and splits.
SMALL = [
    Patches(2, 3, (7, 6), (3, 3), (1, 1)),
    Patches(1, 5, (6, 5), (3, 2), (0, 0), dilation=(2, 1), groups=2),
    Patches(2, 67, (4, 3), (2, 2), (1, 0)),
    Patches(1, 2, (33, 37), (1, 2), (0, 1)),
    Patches(1, 2, (3, 2), (3, 3), (2, 5)),
]
#: ResNet-50's 3 x 3 convolutions at batch 32, and large kernels and batches.
LARGE = [
    *(Patches(32, channels, (n, n), (3, 3), (1, 1)) for channels, n in [(64, 56), (128, 28), (256, 14), (512, 7)]),
    Patches(256, 512, (14, 14), (3, 3), (1, 1)),
    Patches(8, 32, (64, 48), (7, 7), (3, 3)),
    Patches(4, 16, (30, 40), (11, 11), (0, 5)),
    Patches(64, 3, (224, 224), (7, 7), (3, 3), (2, 2)),
]


@pytest.mark.parametrize("p", [*SMALL, *LARGE], ids=str)
def test_cut(source, p):
    facts, cut = numbers(source.plan, 12, p), Cut(p)
    assert facts[:4] == [cut.tiles, cut.splits, cut.rows_per_split, cut.workspace]
    if p.step == (1, 1):
        plan = Plan(p)
        expected = [len(plan.items), plan.chunk, plan.slots, plan.batch, plan.fine, plan.sum_chunk, plan.workspace]
        assert facts[4:11] == expected
        assert bool(facts[11]) == by_shifts(p)


@pytest.mark.parametrize("p", SMALL, ids=str)
def test_general(source, p):
    products, staged, written = numbers(source.count, 3, p, 1)
    tiles, *reduce = patches(p, shifts=False)
    assert tiles.issued == {"fp64_tensor": products}
    # One panel of a tile on the diagonal, else two, of 64 columns whether they are there or not.
    cut = Cut(p)
    assert staged == p.rows * 64 * (2 * cut.tiles - cut.tile_rows)
    assert written * 8 == (tiles.written if reduce else 0)


@pytest.mark.parametrize("p", SMALL, ids=str)
def test_shifts(source, p):
    products, staged, written = numbers(source.count, 3, p, 2)
    sums, outside, *rest = patches(p, shifts=True)
    pieces, combine = rest[::2], rest[1::2]
    assert {launch.kernel for launch in pieces} == {"patch_pieces"} and len(combine) == len(pieces) == 1
    assert pieces[0].issued == {"fp64_tensor": products}
    plan = Plan(p)
    positions = sum(inside for item in plan.items for _, inside in plan.work(item))
    assert staged == 128 * positions + p.positions * p.channels
    tables = outside.written - p.columns * 8
    assert written * 8 == pieces[0].written + sums.written + tables


def test_what_shifts_save():
    """A 3 x 3 kernel: 25 differences for 81 pairs of taps, 3.24 times fewer; half of each for the triangle."""
    p = Patches(32, 256, (56, 56), (3, 3), (1, 1))
    general, shifts = (
        sum(launch.flops.get("fp64_tensor", 0) for launch in patches(p, shifts=way)) for way in (False, True)
    )
    assert 3.2 < general / shifts < 3.4
    assert by_shifts(p) and not by_shifts(Patches(32, 3, (56, 56), (3, 3), (1, 1)))
    assert patches(Patches(0, 3, (5, 5), (3, 3)), torch.float64) == ()
