"""kernels/gram/cost.py against counts of what the kernels' own source does: every load, product and store of it."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from fastrank.kernels.gram import cost

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The kernels' source, built to count."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    library = tmp_path_factory.mktemp("count") / "count.so"
    command = ["g++", "-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, str(Path(__file__).with_name("count_gram.cpp")), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def numbers(function, size, *arguments):
    out = (ctypes.c_int64 * size)()
    function(*(ctypes.c_int64(a) for a in arguments), out)
    return list(out)


#: Less than a step, odd rows, several tiles, a full flush in a partial block, and two splits.
SHAPES = [(5, 3), (120, 64), (300, 70), (129, 130), (2100, 5)]


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_accumulate(source, n, d, fast):
    shift, total = n % 2 == 0, d % 2 == 0
    loads, distinct, products, fp64, by_tiles, by_reduce, blocks = numbers(source.count, 7, n, d, fast, shift, total)
    tiles, *reduce = cost.accumulate(n, d, torch.float32, "fast" if fast else "exact", shift=shift, total=total)
    issued = {"fp32": products, "fp64": fp64} if fast else {"fp64": products + fp64}
    assert tiles.issued == issued
    assert tiles.blocks == blocks
    # C and total are read where they are added to; the shift is not X.
    added = by_tiles * 8 if not reduce else 0
    shifts = d * 8 if shift else 0
    assert distinct == n * d and tiles.read == distinct * 4 + shifts + added
    threads = 16 * d * (-(-d // 64) + 1) * cost.Cut(n, d).splits * 8 if shift else 0
    assert tiles.requested == loads * 4 + threads + added
    assert tiles.written == by_tiles * 8
    assert bool(reduce) == (by_reduce > 0)
    if reduce:
        assert reduce[0].written == by_reduce * 8
        assert reduce[0].read == (cost.Cut(n, d).splits + 1) * by_reduce * 8


def test_cut(source):
    shapes = [(1, 1), (2048, 64), (2049, 65), (100_000, 1000), (10**7, 130), (8192, 128)]
    for n, d in shapes:
        cut = cost.Cut(n, d)
        assert [cut.tiles, cut.splits, cut.rows_per_split, cut.workspace // 8] == numbers(source.cut_of, 4, n, d)
        assert cost.accumulate(n, d)[0].issued["fp64"] >= cost.accumulate(n, d)[0].flops["fp64"]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_mirror(n):
    """By walking over the tiles of gram_mirror: what is inside of each is loaded, what lies above is stored."""
    loaded, stored, blocks = set(), set(), 0
    for ti in range(-(-n // 32)):
        for tj in range(ti + 1):
            blocks += 1
            for r in range(32):
                for x in range(32):
                    i, j = 32 * ti + r, 32 * tj + x
                    if i < n and j < n:
                        loaded.add((i, j))
                    if i < n and j < i:
                        stored.add((j, i))
    launch = cost.mirror(n)
    assert (launch.read, launch.written, launch.blocks) == (8 * len(loaded), 8 * len(stored), blocks)


def test_flops_of_the_algorithm():
    """n d (d + 1): a multiplication and an addition for every pair i >= j, plus shift and column sums."""
    (launch,) = cost.accumulate(100, 10)
    assert launch.flops == {"fp64": 100 * 10 * 11 + 2 * 100 * 10}
    (launch,) = cost.accumulate(100, 10, shift=False, total=False)
    assert launch.flops == {"fp64": 100 * 10 * 11}


def test_dual_is_the_product_over_columns():
    zeros, tiles, reduce, mirror = cost.dual(128, 8192)
    assert zeros.written == 128 * 128 * 8
    assert (tiles, reduce) == cost.accumulate(8192, 128, shift=False, total=False)
    assert mirror == cost.mirror(128)
    assert cost.dual(0, 5) == () and cost.dual(3, 0) == (cost.Launch("torch.zeros", 0, 72), cost.mirror(3))
