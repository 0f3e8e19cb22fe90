"""kernels/gram/cost.py against counts of what the kernels' own source does: every load, product and store of it."""

import ctypes
from pathlib import Path

import pytest
import torch
from emulate import toolchain
from fastrank.kernels import backend
from fastrank.kernels.gram import cost


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The kernels' source, built to count."""
    if reason := toolchain.missing():
        pytest.skip(reason)
    library = tmp_path_factory.mktemp("count") / "count.so"
    return ctypes.CDLL(str(toolchain.compile_library(Path(__file__).with_name("count_gram.cpp"), library)))


def numbers(function, size, *arguments):
    out = (ctypes.c_int64 * size)()
    function(*(ctypes.c_int64(a) for a in arguments), out)
    return list(out)


#: Less than a step, odd rows, several tiles, whole and partial blocks between flushes, splits, wide tiles.
SHAPES = [(5, 3), (120, 64), (300, 70), (129, 130), (1025, 5), (3, 1030)]
WAYS = {"exact": (0, torch.float32), "fast": (1, torch.float32), "16-bit": (2, torch.bfloat16)}


@pytest.mark.parametrize("symmetric", [False, True], ids=["lower", "symmetric"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_accumulate(source, n, d, way, symmetric):
    number, dtype = WAYS[way]
    shift, total = n % 2 == 0 and way != "16-bit", d % 2 == 0
    counts = numbers(source.count, 6, n, d, number, shift, total, symmetric)
    loads, distinct, products, fp64, by_tiles, by_reduce = counts
    mode = "exact" if way == "exact" else "fast"
    tiles, *reduce = cost.accumulate(n, d, dtype, mode, shift=shift, total=total, symmetric=symmetric)
    cut = cost.Cut(n, d)
    unit = {"exact": "fp64_tensor", "fast": "fp32", "16-bit": "bf16_tensor"}[way]
    assert tiles.issued[unit] == products
    # Of the column sums only conversions to fp64 can be counted, and of 16-bit numbers nothing.
    step = cost.COPIED_STEP if way == "16-bit" else cost.STEP
    padded = -(-n // step) * step
    sums = cut.tile_rows * cut.tile * (3 * padded + 4 * (padded // step)) if total else 0
    if way == "16-bit":
        assert tiles.issued["fp64"] - sums == cut.tiles * cut.tile**2 * -(-n // 128)
    else:
        assert tiles.issued.get("fp64", 0) - sums == fp64 - (sums and cut.tile_rows * cut.tile * padded) * (number == 1)
    # C and total are read where they are added to, but nothing above the diagonal; the shift is not X.
    above = d * (d - 1) // 2 if symmetric else 0
    added = (by_tiles - above) * 8 if not reduce else 0
    shifts = d * 8 if shift else 0
    if way != "16-bit":
        assert distinct == n * d and tiles.read == distinct * 4 + shifts + added
        assert tiles.requested == loads * 4 + shifts * (cut.tile_rows + 1) * cut.splits + added
    assert tiles.written == by_tiles * 8
    assert bool(reduce) == (by_reduce > 0)
    if reduce:
        assert reduce[0].written == by_reduce * 8
        assert reduce[0].read == (cut.splits + 1) * (by_reduce - above) * 8


def test_cut(source):
    shapes = [(1, 1), (512, 64), (513, 65), (100_000, 1000), (10**7, 130), (8192, 128), (10**6, 3), (50_000, 2048)]
    for n, d in shapes:
        cut = cost.Cut(n, d)
        facts = cut.tiles, cut.splits, cut.rows_per_split, cut.workspace // 8, cut.reduce_blocks if cut.workspace else 0
        assert list(facts) == numbers(source.cut_of, 5, n, d)
        assert cost.accumulate(n, d)[0].blocks == cut.tiles * cut.splits


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17, 40])
def test_the_order_of_tiles_has_each_once_and_keeps_neighbours_together(source, rows):
    found = numbers(source.order, rows * (rows + 1), rows)
    tiles = list(zip(found[::2], found[1::2], strict=True))
    assert sorted(tiles) == [(i, j) for i in range(rows) for j in range(i + 1)]
    # Of as many blocks as an H100 runs at once: panels that they share the reading of.
    for first in range(0, max(1, len(tiles) - 132), 50):
        panels = {panel for tile in tiles[first : first + 132] for panel in tile}
        assert len(panels) <= min(rows, 40)


def test_a_group_launches_each_kernel_once():
    one = cost.Product(32, 70), cost.Product(600, 3), cost.Product(40, 70, torch.bfloat16, "fast", shift=False)
    launches = cost.group([*one, *one, cost.Product(0, 5), cost.Product(9, 1030)])
    assert [x.kernel for x in launches] == ["gram_tiles"] * 3 + ["gram_reduce"]
    alone = [x for p in one for x in cost.accumulate(p.n, p.d, p.dtype, p.mode, shift=p.shift, total=p.total)]
    wide = cost.accumulate(9, 1030)
    assert sum(x.bytes for x in launches) == 2 * sum(x.bytes for x in alone) + wide[0].bytes
    assert cost.group([]) == ()


def test_the_core_cuts_groups_the_same_way():
    core = backend.core()
    if core is None or not core.cuda:
        pytest.skip("the native core was built without CUDA")
    shapes = [(5, 3), (600, 70), (0, 4), (9000, 64), (1024, 1030)]
    fields = [[16, 1, n, d, n, 0, d, 1, 0, 16, d, 0, n % 2, 0, 0] for n, d in shapes]  # addresses that nobody reads
    products = torch.tensor(fields, dtype=torch.int64)
    assert products.shape[1] == core.gram_group_fields
    expected = sum(cost.Cut(n, d).workspace // 8 for n, d in shapes if n)
    assert core.gram_group_cuda_workspace(products.data_ptr(), len(shapes)) == expected
    table = torch.zeros(core.gram_group_cuda_size(len(shapes)) + 8, dtype=torch.uint8)
    table[-8:] = 7
    core.gram_group_cuda_fill(products.data_ptr(), len(shapes), 16, table.data_ptr())
    header = table[:16].view(torch.int64).tolist()
    reduce_blocks = sum(cost.Cut(n, d).reduce_blocks for n, d in shapes if n and cost.Cut(n, d).splits > 1)
    assert header == [4, reduce_blocks] and (table[-8:] == 7).all()


def test_flops_of_the_algorithm():
    """n d (d + 1): a multiplication and an addition for every pair i >= j, plus shift and column sums."""
    (launch,) = cost.accumulate(100, 10)
    assert launch.flops == {"fp64_tensor": 100 * 10 * 11, "fp64": 2 * 100 * 10}
    (launch,) = cost.accumulate(100, 10, shift=False, total=False)
    assert launch.flops == {"fp64_tensor": 100 * 10 * 11}
    (launch,) = cost.accumulate(100, 10, torch.bfloat16, "fast", shift=False, total=False)
    assert launch.flops == {"bf16_tensor": 100 * 10 * 11, "fp64": 55}


def test_dual_is_the_product_over_columns():
    zeros, *product = cost.dual(128, 8192)
    assert zeros.written == 128 * 128 * 8
    assert tuple(product) == cost.accumulate(8192, 128, shift=False, total=False, symmetric=True)
    assert cost.dual(0, 5) == () and cost.dual(3, 0) == (cost.Launch("torch.zeros", 0, 72),)
