"""The squared error's Triton kernels from their compiled sm_80 PTX, under every schedule; and mistakes put into them.

Accuracy is held to the a-priori bound of tempered_mse_conformity.py, also when the instructions that PTX calls
approximate err as far as the ISA lets them.
"""

from __future__ import annotations

import itertools

import pytest
import tempered_mse_conformity as suite
import torch
from conformity import check
from emulate.mistakes import replaced
from emulate.ptx.run import SCHEDULES, Run
from fastrank.kernels.tempered_mse import tempered_mse

NAN, INF = float("nan"), float("inf")
SOFT = {"target": "probabilities", "weighted": True, "label_smoothing": 0.1}
MIXED = {"target": "mixed", "weighted": True, "scale_gradient": "T2"}

#: By specialisation of the kernels: cases that share a line share their machine code.
CASES = [
    [suite.Case(7, 3), suite.Case(67, 13, T=1e-2), suite.Case(130, 7, T=1e3)],
    [suite.Case(9, 94, torch.bfloat16), suite.Case(23, 126, torch.bfloat16)],
    [suite.Case(2, 1025), suite.Case(3, 4095, T=1e-2), suite.Case(2, 9001)],
    [suite.Case(5, 17, torch.float64)],
    [suite.Case(3, 1000, torch.float16, strides="transposed", **SOFT)],
    [suite.Case(2, 2051, torch.float64, **SOFT)],
    [suite.Case(7, 11, **MIXED), suite.Case(66, 13, T=1e-2, **MIXED)],
    [suite.Case(2, 4099, torch.bfloat16, **MIXED)],
]


@pytest.fixture(scope="module")
def launches(triton_emulator):
    from emulate import tempered_mse_launches

    return tempered_mse_launches


def on(case: suite.Case):
    return lambda: suite.run("triton", *suite.build(case))


@pytest.fixture(scope="module")
def driver(triton_emulator, launches):
    """Everything this module launches, compiled."""
    from emulate import tempered_ce_launches
    from emulate.ptx.triton_driver import EmulatedDriver

    calls = [on(case) for case in itertools.chain(*CASES)]
    calls += [lambda call=call: call("triton") for call in (images, not_finite)]
    tempered_ce_launches.build(triton_emulator, launches.record(calls))
    return EmulatedDriver(triton_emulator, launches.OUTPUTS)


@pytest.mark.parametrize("group", CASES, ids=lambda g: f"{g[0].n}x{g[0].c} {g[0].dtype} {g[0].target}")
def test_keeps_its_error_bound_under_every_schedule(group, driver, launches):
    driver.launched.clear()
    with launches.triton_on_cpu(driver):
        for case in group:
            for number, schedule in enumerate(SCHEDULES):
                driver.run = Run(schedule, error_seed=number)
                check(suite.OP, "triton", case)
    assert {"forward_kernel", "backward_kernel"} <= set(driver.launched)


def test_every_tile_target_and_dtype_is_run(triton_emulator, launches):
    """The cases above are a choice; this keeps it one that leaves nothing out as kernels and tiles are added."""
    from fastrank.kernels.tempered_loss import tiles

    seen = set()
    for build in launches.record([on(case) for case in itertools.chain(*CASES)]):
        seen.add((build.name, build.constants["ROWS"], build.constants["CLASSES"]))
        seen.add((build.name, build.constants["TARGET"], build.signature["logits_ptr"]))
    for kernel in ("forward_kernel", "backward_kernel"):
        assert {(kernel, tile.rows, tile.classes) for tile in tiles.TILES} <= seen
        for dtype in ("*fp32", "*bf16", "*fp16", "*fp64"):
            assert any((kernel, target, dtype) in seen for target in ("index", "mixed", "probabilities"))
        assert {target for name, target, _ in seen if name == kernel} >= {"index", "mixed", "probabilities"}


def outputs(impl, z, target, T, **options):
    z, T = z.detach().requires_grad_(), T.detach().requires_grad_()
    loss = tempered_mse(z, target, T, **options, impl=impl)
    return loss.detach(), *torch.autograd.grad(loss.sum() * 1.5, (z, T))


def images(impl):
    """The mean over [N, C, d1, d2] with an ignored sample, weights and smoothing: three kernels."""
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(3, 21, 3, 5, generator=generator), torch.randint(21, (3, 3, 5), generator=generator)
    y[0, 1, 2] = -100
    weight = torch.rand(21, generator=generator)
    return outputs(impl, z, y, torch.tensor(0.7), weight=weight, label_smoothing=0.2)


def not_finite(impl):
    z, y = torch.randn(7, 13, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 0, 1, 12, 0])
    z[1, 0], z[2, 2], z[3], z[5, :11], z[6] = NAN, INF, NAN, -INF, -INF
    y[3] = -100
    return outputs(impl, z, y, torch.full((7,), 2.0), reduction="none")


@pytest.mark.parametrize("call", [images, not_finite], ids=lambda f: f.__name__)
def test_equals_the_reference(call, driver, launches):
    expected, first = call("reference"), None
    with launches.triton_on_cpu(driver):
        for schedule in SCHEDULES:
            driver.run = Run(schedule)
            got = call("triton")
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6, equal_nan=True)
            first = first or got
            # No sum depends on the order in which threads run, but for the last bit of T's: lanes that hold the same
            # row fuse its products differently, and whose sum is stored is open.
            for index, (a, b) in enumerate(zip(got, first, strict=True)):
                torch.testing.assert_close(a, b, rtol=0 if index < 2 else 5e-7, atol=0, equal_nan=True)


# ---- mistakes ----


def problem(n: int, c: int, kind: str = "index", T: float = 1.0):
    """The first row is ignored (of an index target), the last one's target is its largest logit."""
    generator = torch.Generator().manual_seed(n + c)
    z, y = 3 * torch.randn(n, c, generator=generator), torch.randint(c, (n,), generator=generator)
    y[-1] = z[-1].argmax()
    temperature, weight = T * (0.5 + torch.rand(n, generator=generator)), 0.5 + torch.rand(c, generator=generator)
    if kind == "index":
        y[0] = -100
    target = {
        "index": y, "mixed": (y, y.roll(1), torch.rand(n, generator=generator)),
        "probabilities": torch.rand(n, c, generator=generator),
    }[kind]  # fmt: skip
    # A mean takes a kernel more.
    reduction = "mean" if kind == "index" and c < 1000 else "none"
    return lambda impl: outputs(impl, z, target, temperature, weight=weight, label_smoothing=0.2, reduction=reduction)


def sharp(impl):
    """Rows that are certain to 1e-9, of the target and of another class: what is near one-hot."""
    z, y = torch.tensor([[20.7, 0.0, -1.0], [20.7, 0.0, -1.0], [0.0, 20.7, -1.0]]), torch.tensor([0, 1, 2])
    return outputs(impl, z, y, torch.ones(3), reduction="none")


def tied(impl):
    z = torch.randn(3, 4100, generator=torch.Generator().manual_seed(5))
    z[0, :2], z[1, 0], z[1, 4099] = 9.0, 30.0, 30.0
    return outputs(impl, z, torch.tensor([0, 4099, 3]), torch.ones(3), reduction="none")


CALLS = {
    "plain": problem(9, 94), "mixed": problem(9, 94, "mixed"), "probabilities": problem(9, 94, "probabilities"),
    "tiles": problem(3, 4099, T=3.0), "sharp": sharp, "tied": tied,
}  # fmt: skip

#: (name, text of kernels/tempered_mse/triton.py, its replacement, the call that shows it).
SOURCE_MUTANTS = [
    ("p - 1 at the top", "(1 - t) * hard + spread - q[:, None]", "p - (t * hard + soft)", "sharp"),
    ("d_a - D from its parts", "tl.where((total < 2)[:, None] &", "tl.where((total < 0)[:, None] &", "sharp"),
    ("q from S - 1", "q = others * share", "q = (total - 1) * share", "sharp"),
    ("ties counted once", "tl.where(rises, 0.0, ties) + tl.sum(", "tl.where(rises, 0.0, ties) + tl.max(", "tied"),
    ("an old maximum is lost", "rescale * (others + ties)", "rescale * others", "tiles"),
    ("weight of the first label", "w += (1 - label_share) *", "w += label_share *", "mixed"),
    ("smoothing left out", "(t * hard + soft) - mean[:, None]", "t - mean[:, None]", "probabilities"),
    ("mean without C", "tl.sum(count, 0) * C", "tl.sum(count, 0)", "plain"),
    ("slope without D", "2 * w * (moment - mean * total_moment)", "2 * w * moment", "sharp"),
]  # fmt: skip


def assert_equal(call, expected) -> None:
    for a, b in zip(call("triton"), expected, strict=True):
        # Near one-hot every figure has all its digits; else a gradient may pass through 0.
        torch.testing.assert_close(a, b, rtol=3e-5, atol=0 if call is sharp else 1e-6 * float(b.abs().max()))


@pytest.fixture(scope="module")
def compiled(triton_emulator, launches, tmp_path_factory):
    """The kernels and all mutants of their source, compiled side by side; the folder that holds these."""
    from emulate import tempered_ce_launches

    folder, builds = tmp_path_factory.mktemp("mutants"), []
    builds += launches.record([lambda call=call: call("triton") for call in CALLS.values()])
    for number, (_, old, new, shown_by) in enumerate(SOURCE_MUTANTS):
        with replaced("tempered_mse", old, new, folder / str(number)):
            builds += launches.record([lambda c=CALLS[shown_by]: c("triton")])
    tempered_ce_launches.build(triton_emulator, builds)
    return folder


def test_without_a_mistake_all_is_well(compiled, triton_emulator, launches):
    from emulate.ptx.triton_driver import EmulatedDriver

    with launches.triton_on_cpu(EmulatedDriver(triton_emulator, launches.OUTPUTS)):
        for call in CALLS.values():
            assert_equal(call, call("reference"))


@pytest.mark.parametrize("number", range(len(SOURCE_MUTANTS)), ids=[m[0] for m in SOURCE_MUTANTS])
def test_mistakes_are_caught(number, compiled, triton_emulator, launches):
    from emulate.ptx.run import KernelFailure
    from emulate.ptx.triton_driver import EmulatedDriver

    _, old, new, shown_by = SOURCE_MUTANTS[number]
    expected = CALLS[shown_by]("reference")
    driver = EmulatedDriver(triton_emulator, launches.OUTPUTS)
    with (
        replaced("tempered_mse", old, new, compiled / str(number)),
        launches.triton_on_cpu(driver),
        pytest.raises((KernelFailure, AssertionError)),
    ):
        assert_equal(CALLS[shown_by], expected)
