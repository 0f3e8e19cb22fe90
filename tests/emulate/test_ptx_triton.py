"""Triton kernels from their compiled sm_80 PTX: the product's own launches, on CPU tensors, under every schedule.

Accuracy is held to the same a-priori bound as on any other backend (tempered_ce_conformity.py), also when the
instructions that PTX calls approximate err as far as the ISA lets them.
"""

import itertools
import mmap

import pytest
import tempered_ce_conformity as suite
import torch
from conformity import check
from emulate.ptx.run import SCHEDULES, Run
from fastrank.kernels.tempered_ce import RowStats, tempered_cross_entropy

#: By specialisation of the kernels: cases that share a line share their machine code.
CASES = [
    [suite.Case(1, 1)],
    [suite.Case(7, 3), suite.Case(67, 13, T=1e-2), suite.Case(130, 7, T=1e3)],
    [suite.Case(70, 15, torch.bfloat16)],
    [suite.Case(9, 94, torch.bfloat16), suite.Case(23, 126, torch.bfloat16)],
    [suite.Case(3, 1000, torch.float16), suite.Case(5, 136, torch.float16)],
    [suite.Case(2, 1025), suite.Case(3, 4095, T=1e-2), suite.Case(2, 4097, T=1e3), suite.Case(2, 9001)],
    [suite.Case(2, 4112, torch.bfloat16), suite.Case(3, 8208, torch.bfloat16)],
    [suite.Case(11, 17, torch.float64), suite.Case(9, 127, torch.float64)],
    [suite.Case(7, 10, strides="transposed")],
    [suite.Case(7, 100, torch.bfloat16, strides="sliced")],
    [suite.Case(7, 11, weighted=True, label_smoothing=0.1)],
    [suite.Case(2, 4100, torch.bfloat16, weighted=True, label_smoothing=1.0)],
    [suite.Case(9, 94, torch.bfloat16, target="mixed")],
    [suite.Case(3, 1001, target="mixed", weighted=True, label_smoothing=0.1, scale_gradient="T", strides="padded")],
    [suite.Case(3, 1000, torch.float16, target="probabilities", scale_gradient="T2")],
    [
        suite.Case(
            7, 13, torch.float64, target="probabilities", weighted=True, label_smoothing=0.1, strides="transposed"
        )
    ],
    [suite.Case(1, 7 * 2048 + 1), suite.Case(1, 9 * 2048 - 3, T=1e-2)],
]
#: Without hints of divisibility, as for pointers and strides that are aligned to nothing.
UNHINTED = [suite.Case(70, 12), suite.Case(3, 1000, torch.bfloat16), suite.Case(2, 4112, weighted=True,
            label_smoothing=0.1)]  # fmt: skip


@pytest.fixture(scope="module")
def launches(triton_emulator):
    from emulate import tempered_ce_launches

    return tempered_ce_launches


@pytest.fixture(scope="module")
def driver(triton_emulator, launches):
    """Everything this module launches, compiled."""
    from emulate.ptx.triton_driver import EmulatedDriver

    cases = [c for group in CASES for c in group]
    calls = [lambda c=c: suite.run("triton", *suite.build(c)) for c in cases]
    calls += [lambda t=t: t("triton") for t in (*REDUCED, not_finite)]
    calls += [lambda f=f: far_apart("triton", *f) for f in FAR]
    launches.prepare(triton_emulator, calls)
    launches.prepare(triton_emulator, [lambda c=c: suite.run("triton", *suite.build(c)) for c in UNHINTED], False)
    return EmulatedDriver(triton_emulator, launches.OUTPUTS)


@pytest.mark.parametrize("group", CASES, ids=lambda g: f"{g[0].n}x{g[0].c} {g[0].dtype} {g[0].strides}")
def test_keeps_its_error_bound_under_every_schedule(group, driver, launches):
    with launches.triton_on_cpu(driver):
        for case in group:
            for number, schedule in enumerate(SCHEDULES):
                driver.run = Run(schedule, error_seed=number)
                check(suite.OP, "triton", case)
    assert {"forward_kernel", "backward_kernel"} <= set(driver.launched)


@pytest.mark.parametrize("case", UNHINTED, ids=lambda c: f"{c.n}x{c.c}")
def test_without_hints_of_divisibility(case, triton_emulator, launches):
    from emulate.ptx.triton_driver import EmulatedDriver

    with launches.triton_on_cpu(EmulatedDriver(triton_emulator, launches.OUTPUTS, hints=False)) as driver:
        for number, schedule in enumerate(SCHEDULES):
            driver.run = Run(schedule, error_seed=number)
            check(suite.OP, "triton", case)


OUTPUTS = ("loss", "grad", *RowStats._fields)


@pytest.mark.parametrize("arch", [90, 100])
def test_newer_architectures(arch, triton_emulator, launches):
    """Their PTX has instructions of its own: stmatrix, packed fp32, reductions of fp32 within a warp."""
    from emulate.ptx.triton_driver import EmulatedDriver

    case = suite.Case(9, 94, torch.bfloat16)
    builds = launches.record([lambda: suite.run("triton", *suite.build(case))])
    launches.build(triton_emulator, builds, arch=arch)
    with launches.triton_on_cpu(EmulatedDriver(triton_emulator, launches.OUTPUTS, arch=arch)) as driver:
        for number, schedule in enumerate(SCHEDULES):
            driver.run = Run(schedule, error_seed=number)
            check(suite.OP, "triton", case)


def outputs(impl, z, y, T, **options):
    z = z.detach().requires_grad_()
    loss, stats = tempered_cross_entropy(z, y, T, **options, return_stats=True, impl=impl)
    return loss.detach(), torch.autograd.grad(loss.sum() * 1.5, z)[0], *stats


def nested(impl):
    """Reduced over [N, C, d1, d2] with an ignored sample, weights and smoothing: three kernels."""
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(3, 21, 3, 5, generator=generator), torch.randint(21, (3, 3, 5), generator=generator)
    y[0, 1, 2] = -100
    weight = torch.rand(21, generator=generator)
    return outputs(impl, z, y, torch.tensor(0.7), weight=weight, label_smoothing=0.2)


def statistics(impl):
    """More rows than one program or one step of the reduction takes, and every figure of a row."""
    generator = torch.Generator().manual_seed(1)
    return outputs(impl, torch.randn(2049, 5, generator=generator), torch.randint(5, (2049,), generator=generator), 2.0)


def misaligned(impl):
    """Logits that begin in the middle of a 16-byte word."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(8 * 32 + 1, generator=generator)[1:].view(8, 32)
    return outputs(impl, z, torch.randint(32, (8,), generator=generator), 2.0, reduction="sum")


def probabilities(impl):
    """Of more rows than a program takes; ranks need the most probable class first."""
    generator = torch.Generator().manual_seed(3)
    z, q = torch.randn(2, 67, 7, generator=generator), torch.rand(2, 67, 7, generator=generator)
    return outputs(impl, z.transpose(1, 2), q.transpose(1, 2), 2.0, label_smoothing=0.2)


def split(impl):
    """Mixed targets; labels, maxima and rows of nothing but -inf on either side of where parts meet."""
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(5, 300, generator=generator)
    labels = torch.tensor([0, 127, 128, 299, 200]), torch.tensor([128, 127, 1, 0, 255])
    z[1, 127], z[2, 128], z[3, :200] = 9.0, 9.0, -float("inf")
    share = torch.tensor([0.3, 0.9, 0.6, 1.0, 0.5])
    share[3], labels[1][3] = 0.4, 298
    weight = torch.rand(300, generator=generator)
    with suite.split_rows():
        return outputs(impl, z, (*labels, share), torch.tensor(0.7), weight=weight)


REDUCED = [nested, statistics, misaligned, probabilities, split]


@pytest.mark.parametrize("call", REDUCED, ids=lambda f: f.__name__)
def test_equals_the_reference(call, driver, launches):
    expected = call("reference")
    first = None
    with launches.triton_on_cpu(driver):
        for schedule in SCHEDULES:
            driver.run = Run(schedule)
            got = call("triton")
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)
            first = first or got
            # No sum depends on the order in which threads run, but for the last bit of one: lanes that hold the same
            # row fuse z^2 with the other's rounded z^2, so they differ, and whose sum is stored is open.
            for name, a, b in zip(OUTPUTS, got, first, strict=True):
                assert name == "sum_z2" or torch.equal(a, b), (name, schedule)


def not_finite(impl):
    inf, nan = float("inf"), float("nan")
    z, y = torch.randn(7, 13, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 0, 1, 12, 0])
    z[1, 0], z[2, 2], z[3], z[5, :11], z[6] = nan, inf, nan, -inf, -inf
    y[3] = -100
    return outputs(impl, z, y, torch.full((7,), 2.0), reduction="none")


def test_rows_that_are_not_finite(driver, launches):
    with launches.triton_on_cpu(driver):
        got = not_finite("triton")
    for name, a, b in zip(OUTPUTS, got, not_finite("reference"), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def sparse(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros without memory behind them until written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags), dtype=dtype)


#: Rows, classes and their strides: what exceeds 32 bits is the row's stride, its offset, a class's offset.
FAR = [(3, 5, 2**31 + 8, 1), (9, 5, 2**28 + 4, 1), (2, 13, 1, 2**28 + 3)]


def far_apart(impl, n, c, row, column):
    z = sparse((n - 1) * row + (c - 1) * column + 1, torch.bfloat16).as_strided((n, c), (row, column))
    z.copy_(torch.randn(n, c, generator=torch.Generator().manual_seed(n)))
    z = z if impl == "triton" else z.contiguous()
    return tempered_cross_entropy(z, torch.arange(n) % c, torch.full((n,), 2.0), reduction="none", impl=impl)


@pytest.mark.parametrize("where", FAR, ids=["row stride", "row offset", "class offset"])
def test_offsets_beyond_32_bits(where, driver, launches):
    with launches.triton_on_cpu(driver):
        got = far_apart("triton", *where)
    torch.testing.assert_close(got, far_apart("reference", *where), rtol=1e-5, atol=1e-5)


def test_every_tile_and_dtype_was_run(triton_emulator, launches):
    """The cases above are a choice; this keeps it one that leaves nothing out as kernels and tiles are added."""
    from fastrank.kernels.tempered_loss import tiles

    seen = set()
    for build in launches.record([lambda c=c: suite.run("triton", *suite.build(c)) for c in itertools.chain(*CASES)]):
        seen.add((build.name, build.constants["ROWS"], build.constants["CLASSES"]))
        seen.add((build.name, build.signature["logits_ptr"]))
    for kernel in ("forward_kernel", "backward_kernel"):
        for tile in tiles.TILES:
            assert (kernel, tile.rows, tile.classes) in seen
        for dtype in ("*fp32", "*bf16", "*fp16", "*fp64"):
            assert (kernel, dtype) in seen


def test_a_wrong_bound_is_an_exception_that_names_the_statement(driver, launches):
    from emulate.ptx.run import KernelFailure

    z, y = torch.randn(7, 3), torch.randint(3, (7,))
    short = z.flatten()[:20].as_strided((7, 3), (3, 1))
    from emulate.ptx import triton_driver

    extent = triton_driver.extent
    triton_driver.extent = lambda x: extent(x) - 4 if x.dtype == torch.float32 and x.dim() == 3 else extent(x)
    try:
        with (
            launches.triton_on_cpu(driver),
            pytest.raises(KernelFailure, match=r"kernel forward_kernel, block .*out of bounds.*ld\.global"),
        ):
            tempered_cross_entropy(short, y, torch.full((7,), 1.0), reduction="none", impl="triton")
    finally:
        triton_driver.extent = extent
