"""gram_patches_: both of its ways against the patches themselves, and without their memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conformity import check
from fastrank.kernels import backend
from fastrank.kernels.gram import Convolution, depth_patches, gram_patches_, patch_rows, reference
from gram_patches_conformity import APART, DTYPES, SHARED, accumulated, images, op, patches, shift_of
from torch.library import opcheck
from torch.nn import functional as F

native = pytest.mark.skipif(not backend.native_status().available, reason=backend.native_status().reason or "-")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


IMPLS = op((1, 1, 1, 1), Convolution.of(1), "exact").live_impls()


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("impl", IMPLS)
def test_conforms(impl, mode):
    for index, (size, convolution) in enumerate(SHARED + APART):
        for dtype in DTYPES if index % 4 == 0 else DTYPES[1:3]:
            x = images(size, dtype, ("contiguous", "channels_last", "sliced")[index % 3])
            for shift in (None, shift_of(size, convolution)):
                check(op(size, convolution, mode), impl, (x, shift))


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("impl", IMPLS)
def test_integers_are_exact(impl, mode):
    for index, (size, convolution) in enumerate(SHARED + APART):
        x = images(size, DTYPES[index % 4], ("contiguous", "channels_last", "sliced")[index % 3], integer=True)
        for shift in (None, shift_of(size, convolution, integer=True)):
            P = patches(x, convolution, shift)
            G, total = accumulated(gram_patches_, x, convolution, shift, mode, impl)
            assert torch.equal(G, (P.T @ P).tril()), (size, convolution)
            assert torch.equal(total, P.sum(0)), (size, convolution)


@native
def test_images_larger_than_a_chunk_go_by_bands():
    size, convolution = (2, 12, 400, 420), Convolution.of(3, padding=1)
    x, shift = images(size, torch.float32, integer=True), shift_of(size, convolution, integer=True)
    adds = depth_patches(size, convolution, x.dtype, "exact").adds
    assert adds > 2  # more chunks than images
    expected = accumulated(reference.gram_patches_, x, convolution, shift)
    for got, wanted in zip(accumulated(gram_patches_, x, convolution, shift, "exact"), expected, strict=True):
        assert torch.equal(got, wanted)


@native
def test_threads_change_no_bit():
    for size, convolution in (SHARED[1], SHARED[6], APART[0], APART[-1]):
        x, shift = images(size, torch.float32), shift_of(size, convolution)
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(accumulated(gram_patches_, x, convolution, shift, "fast"))
        for G, total in results[1:]:
            assert torch.equal(G, results[0][0]) and torch.equal(total, results[0][1])


@pytest.mark.parametrize("impl", IMPLS)
def test_adds_to_what_is_there_and_leaves_the_upper_triangle(impl):
    for size, convolution in (SHARED[0], APART[1]):
        x = images(size, torch.float32, integer=True)
        P = patches(x, convolution)
        d = P.shape[1]
        wide = torch.full((d, d + 3), float("nan"), dtype=torch.float64)
        G = wide[:, :d]
        G.copy_(torch.ones(d, d).tril() + torch.full((d, d), 7.0).triu(1))
        total = torch.full((d,), 5.0, dtype=torch.float64)
        gram_patches_(G, total, x, convolution, impl=impl)
        assert torch.equal(G.triu(1), torch.full((d, d), 7.0, dtype=torch.float64).triu(1))
        assert torch.equal(G.tril(), (P.T @ P + 1).tril())
        assert torch.equal(total, P.sum(0) + 5)
        assert wide[:, d:].isnan().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_bad_pixel_stays_in_its_channel(impl):
    for size, convolution in (SHARED[0], APART[1]):
        x = images(size, torch.float32)
        clean = accumulated(gram_patches_, x, convolution, None, "exact", impl)
        x[1, 3, 2, 2] = float("nan")
        G, total = accumulated(gram_patches_, x, convolution, None, "exact", impl)
        channel = torch.arange(G.shape[0]) // 9
        elsewhere = channel != 3
        assert total[~elsewhere].isnan().any() and torch.equal(total[elsewhere], clean[1][elsewhere])
        rest = elsewhere[:, None] & elsewhere
        assert torch.equal(G[rest], clean[0][rest])
        assert G.diagonal()[~elsewhere].isnan().any()


@native
@pytest.mark.parametrize(
    ("kernel", "stride", "shape"),
    [
        (3, 1, (32, 64, 56, 56)),
        (3, 2, (32, 64, 56, 56)),
        (3, 1, (8, 512, 7, 7)),
        ((1, 3), 1, (1, 64, 1, 200_000)),  # one line is more than fits
    ],
)
def test_memory_is_that_of_the_state(kernel, stride, shape):
    """The patches of the first are 231 MB; extra memory is at most 32 MiB."""
    code = f"""
import resource, torch
from fastrank.kernels.gram import Convolution, gram_patches_
torch.set_num_threads(2)
x = torch.randn({shape})
convolution = Convolution.of({kernel}, {stride}, {0 if shape[2] == 1 else 1})
d = convolution.features(x.shape[1])
G, total = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
gram_patches_(G, total, x[:1, :, :7, :7], convolution, None, "exact")
G.fill_(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gram_patches_(G, total, x, convolution, None, "exact")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 32 << 10  # KiB


def test_registered_for_tracing():
    x, convolution = images((2, 12, 5, 5), torch.float32), Convolution.of(3, padding=1)
    G, total = torch.zeros(108, 108, dtype=torch.float64), torch.zeros(108, dtype=torch.float64)
    kernel, stride, padding, dilation, groups = convolution
    arguments = (G, total, x, kernel, stride, padding, dilation, groups, torch.zeros(12, dtype=torch.float64))
    opcheck(torch.ops.fastrank.gram_patches_, arguments)


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "convolution"),
    [
        ((3, 4, 9, 8), Convolution.of(3, padding=1)),
        ((3, 4, 9, 8), Convolution.of((3, 2), (2, 1), (1, 2), (1, 2))),
        ((2, 6, 7, 7), Convolution.of(3, padding=2, dilation=2, groups=3)),
        ((2, 2, 3, 3), Convolution.of(2, 3, 4)),  # patches that see padding only
        ((2, 3, 5, 5), Convolution.of(1)),
    ],
    ids=str,
)
def test_chosen_rows_are_those_of_unfold(impl, dtype, shape, convolution):
    kernel, stride, padding, dilation, groups = convolution
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = images(shape, torch.float32).to(dtype).contiguous(memory_format=memory_format)
        apart = x.unflatten(1, (groups, -1)).flatten(0, 1).float()
        every = F.unfold(apart, kernel, dilation, padding, stride).transpose(1, 2).flatten(0, 1).to(dtype)
        assert len(every) == convolution.rows(shape)
        rows = torch.randint(len(every), (37,), generator=torch.Generator().manual_seed(0))
        assert torch.equal(patch_rows(x, convolution, rows, impl), every[rows])
        assert patch_rows(x, convolution, rows[:0], impl).shape == (0, every.shape[1])


def test_chosen_rows_name_their_mistakes():
    x, convolution = torch.zeros(2, 3, 5, 5), Convolution.of(3)
    for rows, message in [
        (torch.tensor([0, 18]), r"rows: expected 0 .. 17, got 0 .. 18"),
        (torch.tensor([-1]), r"rows: expected 0 .. 17, got -1 .. -1"),
        (torch.tensor([0.0]), r"rows: expected int64 \[m\] on cpu, got torch.float32 \(1,\) on cpu"),
        ([0], "rows: expected int64 .* got list"),
    ]:
        with pytest.raises(ValueError, match=message):
            patch_rows(x, convolution, rows)
    for impl in ("native", "reference"):
        with pytest.raises(ValueError, match=r"rows: expected none, of an empty x, got 0 .. 0"):
            patch_rows(x[:0], convolution, torch.tensor([0]), impl)
    opcheck(torch.ops.fastrank.patch_rows, (x, *convolution[:4], 1, torch.tensor([3, 1])))


def test_sizes_as_people_have_them():
    plain = Convolution.of(3, padding=2, dilation=2, groups=2)
    assert Convolution.of(np.int64(3), np.int32(1), [2, np.int64(2)], 2, np.int64(2)) == plain
    assert Convolution.of(3, padding="same", dilation=2, groups=2) == plain
    assert Convolution.of((5, 1), padding="same").padding == (2, 0)
    assert Convolution.of(2, 3, "valid") == Convolution.of(2, 3)


def test_mistakes_are_named():
    x, convolution = torch.zeros(1, 4, 5, 5), Convolution.of(3)
    G, total = torch.zeros(36, 36, dtype=torch.float64), torch.zeros(36, dtype=torch.float64)
    cases = [
        ((G, total, x[0], convolution), ValueError, r"x: expected \[images, channels, height, width\], got shape"),
        ((G, total, x.int(), convolution), TypeError, "x: expected float64, float32, bfloat16 or float16, got torch"),
        ((G[:9], total, x, convolution), ValueError, r"G: expected shape \(36, 36\) to fit x, got \(9, 36\)"),
        ((G.float(), total, x, convolution), TypeError, "G: expected float64"),
        ((G, total[:3], x, convolution), ValueError, r"total: expected shape \(36,\) to fit x"),
        ((G, total, x, Convolution.of(7)), ValueError, "kernel_size: expected patches within the padded input 5 x 5"),
        ((G, total, x, Convolution.of(3, groups=3)), ValueError, "groups: expected a positive divisor of the 4"),
        ((G, total, x.numpy(), convolution), TypeError, "x: expected a torch tensor, got ndarray"),
        ((G, total, x, 3), TypeError, r"convolution: expected a Convolution, as Convolution.of\(3\), got int"),
        ((G, total, x, Convolution((3, 3), (0, 0))), ValueError, "stride: expected an integer >= 1"),
        ((G, total, x[:, :, :0], Convolution.of(1, padding=1)), ValueError, "x: expected images of at least 1 x 1"),
        ((G, total, x, convolution, total), ValueError, r"shift: expected shape \(4,\) to fit x"),
        ((G, total, x, convolution, None, "tf32"), ValueError, "mode: expected 'exact' or 'fast', got 'tf32'"),
    ]  # fmt: skip
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            gram_patches_(*arguments)
    for arguments, message in [
        ({"kernel_size": 0}, "kernel_size: expected an integer >= 1 or a pair of them, got 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size: expected"),
        ({"kernel_size": 3, "padding": -1}, "padding: expected an integer >= 0"),
        ({"kernel_size": 3, "stride": True}, "stride: expected an integer >= 1"),
        ({"kernel_size": 3, "groups": 0}, "groups: expected a positive integer, got 0"),
        ({"kernel_size": 3, "padding": "full"}, "padding: expected numbers, 'valid' or 'same', got 'full'"),
        ({"kernel_size": 3, "stride": 2, "padding": "same"}, "padding: expected numbers where stride is not 1"),
        ({"kernel_size": (3, 2), "padding": "same"}, "padding: expected 'same' to be as wide on both sides"),
    ]:
        with pytest.raises(ValueError, match=message):
            Convolution.of(**arguments)
    assert not G.any() and not total.any()
