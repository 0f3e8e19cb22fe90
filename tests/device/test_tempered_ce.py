"""The loss on a device: the error bound of every dtype, layout and option, and what a GPU says of bad input."""

import itertools

import pytest
import tempered_ce_conformity as suite
import torch
from conformity import check
from device_calls import DEVICE, MISSING
from fastrank.kernels.tempered_ce import RowStats, reference, tempered_cross_entropy

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

IMPL = "native" if DEVICE == "cpu" else "triton"
STRIDES = ("contiguous", "transposed", "padded", "sliced")
#: Every tile of config.py, its edges, rows of several tiles.
SHAPES = [*suite.SHAPES, (70, 16), (7, 17), (20, 128), (3, 129), (3, 1024), (2, 9001), (300, 1000), (2, 128256)]


@pytest.mark.parametrize("T", [1e-2, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_keeps_its_error_bound(dtype, T):
    for (n, c), strides in itertools.product(SHAPES, STRIDES):
        if c < 2000 or strides == "contiguous":
            check(suite.OP, IMPL, suite.Case(n, c, dtype, T, strides), DEVICE)


@pytest.mark.parametrize("options", suite.OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_keeps_its_error_bound_with_every_option(dtype, options):
    shapes = [*suite.SHAPES, (4, 128256), (300, 14337)]
    for (n, c), (strides, T) in itertools.product(shapes, (("contiguous", 1.0), ("transposed", 30.0))):
        check(suite.OP, IMPL, suite.Case(n, c, dtype, T, strides, **options), DEVICE)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(10,), (5, 10), (0, 10), (3, 70, 2, 2), (2, 1500)], ids=str)
def test_equals_the_reference_for_every_shape_of_input(shape, reduction):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)
    y = torch.randint(10, shape[:1] + shape[2:] if len(shape) > 1 else (), generator=generator).to(DEVICE)
    weight = torch.rand(shape[min(1, len(shape) - 1)], generator=generator, dtype=torch.float64).to(DEVICE)
    layouts = [z]
    if len(shape) == 4:
        layouts += [z.contiguous(memory_format=torch.channels_last), z.transpose(2, 3).contiguous().transpose(2, 3)]
    for view, options in itertools.product(layouts, ({}, {"weight": weight, "label_smoothing": 0.2})):
        view = view.detach().requires_grad_()
        results = []
        for impl in (IMPL, "reference"):
            loss, stats = tempered_cross_entropy(
                view, y, 2.5, reduction=reduction, return_stats=True, impl=impl, **options
            )
            results.append((loss.detach(), torch.autograd.grad(loss.sum() * 1.5, view)[0], *stats))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs are CUDA's")
def test_a_cuda_graph_captures_a_step():
    """Split rows too, whose programs are counted in memory that every replay sets anew; T changes between replays."""
    z, T = torch.randn(4, 20_000, device=DEVICE, requires_grad=True), torch.tensor(1.0, device=DEVICE)
    y = torch.tensor([1, 2, 3, 4], device=DEVICE)
    mixed = (y, y.flip(0), torch.full((4,), 0.3, device=DEVICE))

    def run(target):
        return [(loss := tempered_cross_entropy(z, target, T)).detach(), *torch.autograd.grad(loss, z)]

    for target in (y, mixed, z.detach().softmax(1)):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            run(target)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(target)
        for value in (1.0, 100.0, 3.0):
            T.fill_(value)
            graph.replay()
            for got, expected in zip(captured, run(target), strict=True):
                assert torch.equal(got, expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="the CPU names the label instead")
def test_bad_labels_and_temperatures_make_their_rows_nan():
    z = torch.randn(4, 5, device=DEVICE, requires_grad=True)
    y, T = torch.tensor([0, 5, -1, 2]).to(DEVICE), torch.tensor([1.0, 1.0, 1.0, 0.0]).to(DEVICE)
    rows = tempered_cross_entropy(z, y, T, reduction="none")
    assert rows.isnan().tolist() == [False, True, True, True]
    grad = torch.autograd.grad(rows.sum(), z)[0]
    assert grad[0].isfinite().all() and grad[1:].isnan().all()


def test_statistics_equal_those_of_the_reference():
    generator = torch.Generator().manual_seed(0)
    z, y = 3 * torch.randn(9, 1000, generator=generator), torch.randint(1000, (9,), generator=generator)
    z, y = z.double().to(DEVICE), y.to(DEVICE)
    _, stats = tempered_cross_entropy(z, y, 2.5, return_stats=True, impl=IMPL)
    expected = reference.row_stats(z, y, 2.5, -100)
    for name, got, want in zip(RowStats._fields, stats, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def test_offsets_beyond_32_bits():
    stride = 2**31 + 64
    if DEVICE != "cpu" and torch.cuda.mem_get_info(DEVICE)[0] < 6 * 2**30:
        pytest.skip("needs 6 GiB of device memory")
    z = torch.empty(stride + 8, dtype=torch.bfloat16, device=DEVICE).as_strided((2, 8), (stride, 1))
    z.copy_(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
    y = torch.tensor([3, 5], device=DEVICE)
    compact = z.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    losses = [tempered_cross_entropy(v, y, impl=IMPL) for v in (z, compact)]
    assert torch.equal(*losses)


def test_a_gradient_of_more_than_2_31_elements():
    rows, classes = 2**16 + 1, 2**15
    if DEVICE == "cpu" or torch.cuda.mem_get_info(DEVICE)[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of device memory")
    z = torch.zeros(rows, classes, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    y = torch.arange(rows, device=DEVICE) % classes
    grad = torch.autograd.grad(tempered_cross_entropy(z, y, reduction="sum"), z)[0]
    assert (grad[-1, y[-1]].item(), grad[-1, -1].item()) == (-1.0, 2.0**-15)
