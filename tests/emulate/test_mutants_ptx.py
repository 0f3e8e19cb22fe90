"""Do these tests find mistakes? Deliberate ones in the Triton kernels, each of which must be caught or explained.

In the compiled PTX: each barrier removed, each mask dropped, each stride and comparison off by one. In the source:
the mistakes that people make, by replacing text. A table says how each is caught; `pytest -rP` prints it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import tempered_ce_conformity as suite
import torch
from emulate.mistakes import replaced
from fastrank.kernels import tempered_ce, tempered_loss
from fastrank.kernels.tempered_ce import RowStats, tempered_cross_entropy

SCHEDULES = ("lockstep", "warps", "warps-reverse+early", "random:1", "reverse", "random:2")
FOLDERS = [Path(package.__file__).parent for package in (tempered_ce, tempered_loss)]
SOURCES = {path.name: path for folder in FOLDERS for path in folder.glob("*triton.py")}
OUTPUTS = ("loss", "gradient", "gradient of T", *RowStats._fields)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def launches(triton_emulator):
    from emulate import tempered_ce_launches

    return tempered_ce_launches


def outputs(impl, z, y, T, **options):
    z, T = z.detach().requires_grad_(), T.detach().requires_grad_()
    loss, stats = tempered_cross_entropy(z, y, T, **options, return_stats=True, impl=impl)
    grad_loss = 1.5 + torch.arange(loss.numel()).view(loss.shape) / 8
    return loss.detach(), *torch.autograd.grad(loss, (z, T), grad_loss), *stats


def problem(n: int, c: int):
    """The first row is ignored; the last one's target is its largest logit."""
    generator = torch.Generator().manual_seed(n + c)
    z, y = 3 * torch.randn(n, c, generator=generator), torch.randint(c, (n,), generator=generator)
    y[0], y[-1] = -100, z[-1].argmax()
    return z, y, 0.5 + torch.rand(n, generator=generator), {"weight": 0.5 + torch.rand(c, generator=generator)}


def ordinary(n: int, c: int, reduction: str = "mean") -> Callable[[str], tuple]:
    z, y, T, options = problem(n, c)
    return lambda impl: outputs(impl, z, y, T, **options, label_smoothing=0.2, reduction=reduction)


def unusual(n: int, c: int, reduction: str = "mean") -> Callable[[str], tuple]:
    """Labels and temperatures that do not exist: their rows and the mean are NaN, the others' gradients as ever."""
    z, y, T, options = problem(n, c)
    bad_y, bad_T = y.clone(), T.clone()
    bad_y[1], bad_y[2], bad_T[3:7] = -1, c, torch.tensor([0.0, -1.0, INF, NAN])
    options["label_smoothing"], mean = 0.2, reduction == "mean"
    counted = options["weight"][y[3:]].sum() if mean else 1.0

    def call(impl):
        if impl == "triton":
            return outputs(impl, z, bad_y, bad_T, **options, reduction=reduction)
        loss, grad, grad_T, *stats = outputs(impl, z, y, T, **options, reduction="sum" if mean else "none")
        loss[... if mean else slice(1, 7)] = NAN
        grad[1:7] = grad_T[1:7] = NAN
        for x in stats[:3]:
            x[3:7] = NAN
        stats[-1][1:3] = -1
        return loss, grad / counted, grad_T / counted, *stats

    return call


def mixed(n: int, c: int) -> Callable[[str], tuple]:
    """Rows with one label, with two, with a share of none; the largest logit is the first label's or the second's."""
    z, y, T, options = problem(n, c)
    first, share = y.clamp(min=0), torch.linspace(0, 1, n)
    second = (first + 3 * torch.arange(n)) % c
    z[2, first[2]] = z[3, second[3]] = 9.0
    return lambda impl: outputs(impl, z, (first, second, share), T, **options, scale_gradient="T2")


def unusual_mixed(n: int, c: int) -> Callable[[str], tuple]:
    """The same of mixed targets, and shares that do not exist."""
    z, y, T, options = problem(n, c)
    labels = y.clamp(min=0), (y.clamp(min=0) + 3) % c
    share, bad_T = torch.linspace(0, 1, n), T.clone()
    first, second, bad_share = labels[0].clone(), labels[1].clone(), share.clone()
    first[0], first[1], second[2], second[3] = -1, c, -1, c
    bad_share[4:7] = torch.tensor([-0.5, 1.5, NAN])
    bad_T[7:9] = torch.tensor([0.0, INF])
    options["scale_gradient"] = "T2"

    def call(impl):
        if impl == "triton":
            return outputs(impl, z, (first, second, bad_share), bad_T, **options)
        loss, grad, grad_T, *stats = outputs(impl, z, (*labels, share), T, **options, reduction="sum")
        grad[:9] = grad_T[:9] = NAN
        for x in stats[:3]:
            x[7:9] = NAN
        stats[-1][:7] = -1
        return loss * NAN, grad / n, grad_T / n, *stats

    return call


def split(call: Callable[[str], tuple]) -> Callable[[str], tuple]:
    """`call` on 300 classes in three parts a row, two rows a step put together."""

    def run(impl):
        with suite.split_rows():
            return call(impl)

    return run


def bad_labels(n: int, c: int) -> Callable[[str], tuple]:
    """Their mean is NaN; what matters is that no weight is read for them."""
    z, y, T, options = problem(n, c)
    bad = y.clone()
    bad[1], bad[2] = -1, c
    return lambda impl: (
        tempered_cross_entropy(z, bad, T, **options, impl=impl) if impl == "triton" else torch.tensor(NAN),
    )


def plain(n: int, c: int) -> Callable[[str], tuple]:
    """Nothing but loss and gradients: the smallest kernels."""
    z, y, T, _ = problem(n, c)

    def call(impl):
        leaves = z.detach().requires_grad_(), T.detach().requires_grad_()
        loss = tempered_cross_entropy(leaves[0], y, leaves[1], impl=impl)
        return loss.detach(), *torch.autograd.grad(loss * 1.5, leaves)

    return call


def check(call: Callable[[str], tuple], expected: tuple) -> None:
    for name, a, b in zip(OUTPUTS, call("triton"), expected, strict=False):
        torch.testing.assert_close(
            a, b, rtol=1e-5, atol=2e-5, equal_nan=True, msg=lambda m, n=name: f"{n}: {m.splitlines()[0]}"
        )


#: Mutants of the PTX that change nothing: (kernel, kind and change, text of the source's line, why).
EXPLAINED = [
    ("forward.*", "compare lt becomes le", "tl.where.*T > 0|triton.py:0.*setp.lt.s32",
     "T = 0 has no sign: it is neither subnormal nor normal"),
    ("backward", "compare lt becomes le", "tl.where.*T > 0", "the forward pass made these rows NaN, or as above"),
    ("forward.*", "compare lt becomes le", "for start in range", "one more tile, all of it masked"),
    ("forward.*", "compare lt becomes le", "tl.log|log_total = |8388607|2139095040",
     "library code of log: at 2^-126 both ways are right, and no sum of exponentials is infinite"),
    ("forward.*", "compare eq becomes ne", "tl.store", "other lanes hold, and store, the same"),
    ("backward", "guard dropped", r"= tl.load\(rows_ptr",
     "rows beyond the last read the next plane, and nothing made of it is stored"),
    ("forward.*", "compare ge becomes gt", "for start in range", "one more tile, all masked; no part is empty"),
    ("forward of split rows", "compare lt becomes le", "return r, n, offset, r < R", "one row a program, all exist"),
    ("forward.*", "guard dropped", r"tl.store\(at", "one number a program, the same in all threads"),
    ("forward.*", "guard dropped", r"tl.store\((loss|denominator)_ptr, ", "all threads hold, and store, the same"),
    ("forward.*", "compare eq becomes ne", "u == 1", "a test for which lanes store, as above; or of x, as below"),
    ("forward.*", "compare neu becomes equ", r"\(x != 0\)", "which logarithm: digits alone (see tests/interpret)"),
    ("forward.*", "compare ne becomes eq", "if tl.atomic_add",
     "all programs but one put everything together, and the latest of them after all have stored"),
    ("forward.*", "barrier removed", "tl.debug_barrier", "the thread that counts is the one that stored"),
    ("backward", "stride shift by 7 + 1", r"j = tl.program_id\(1\)", "one block of columns here; `tiles` has several"),
]  # fmt: skip


def explanation(mutant, name: str) -> str:
    """`text` is looked for in the source's line, or in the PTX where the compiler says of none."""
    line = str(mutant)
    file, _, number = mutant.source.rpartition(":")
    if file in SOURCES and number != "0":
        line = SOURCES[file].read_text().splitlines()[int(number) - 1]
    for kernel, change, text, why in EXPLAINED:
        if re.fullmatch(kernel, name) and change == f"{mutant.kind} {mutant.what}" and re.search(text, line):
            return why
    return ""


def barrier_explanation(mutant, kernel) -> str:
    """A barrier before any access to shared memory, outside loops, orders nothing."""
    if mutant.kind != "barrier":
        return ""
    statements = kernel.statements
    at = statements.index(mutant.statements[0])
    if any(s.opcode.startswith("atom") for s in statements[:at]):
        return "the sum of what programs left: of so few that one warp holds them all"
    touched = [s for s in statements[:at] if ".shared" in s.opcode]
    return "" if touched else "nothing before it touches shared memory"


#: What is mutated, and the calls that are to show it.
KERNELS = {
    "forward": ("forward_kernel", [ordinary(17, 94), unusual(17, 94)]),  # three programs
    "forward of split rows": ("forward_kernel", [split(mixed(5, 300)), split(unusual_mixed(11, 300))]),
    "backward": ("backward_kernel", [ordinary(9, 94, "none"), unusual(9, 94, "none")]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_every_mutant_of_the_ptx_is_caught_or_explained(name, triton_emulator, launches):
    from emulate.ptx.run import KernelFailure, Run
    from emulate.ptx.triton_driver import EmulatedDriver

    kernel, calls = KERNELS[name]
    expected = [call("reference") for call in calls]
    libraries, now = {}, [0, "lockstep"]

    def choose(name, library):
        same = libraries.setdefault(name, library) is library
        assert same or name != kernel, "the calls must share one specialisation, or mutants are of different ones"
        return Run(now[1], mutant=now[0] if name == kernel else 0)

    caught, open_ = Counter(), []
    with launches.triton_on_cpu(EmulatedDriver(triton_emulator, launches.OUTPUTS, mutants=True, choose=choose)):
        for call, truth in zip(calls, expected, strict=True):
            check(call, truth)  # without a mutant all is well
        for mutant in libraries[kernel].mutants:
            module = libraries[kernel].module.kernels[kernel]
            why = explanation(mutant, name) or barrier_explanation(mutant, module)
            for schedule in SCHEDULES[:2] if why else SCHEDULES:
                now[:] = mutant.number, schedule
                try:
                    for call, truth in zip(calls, expected, strict=True):
                        check(call, truth)
                except (KernelFailure, AssertionError) as error:
                    caught[schedule, "failure" if isinstance(error, KernelFailure) else "result"] += 1
                    break
            else:
                print(f"not caught: {mutant}: {why}")
                if not why:
                    open_.append(str(mutant))
    for (schedule, how), count in caught.items():
        print(f"{kernel}: {count} caught under {schedule} by a {how}")
    assert not open_
    assert sum(caught.values()) > 10


#: (name, text of the kernels' source, its replacement, the call that shows it).
SOURCE_MUTANTS = [
    ("forward reads past the row", "mask=inside, other=lowest)\n        z =",
     "mask=row_ok[:, None], other=lowest)\n        z =", "plain"),
    ("programs skip rows", "r = first + tl.arange", "r = 2 * first + tl.arange", "plain"),
    ("one class too many", "column_ok = j < C\n        inside", "column_ok = j <= C\n        inside", "plain"),
    ("sums not rescaled", "others = rescale * others +", "others = others +", "tiles"),
    ("moment not shifted", "moment = rescale * (moment + shift * others)", "moment = rescale * moment", "tiles"),
    ("wrong plane", "tl.store(rows_ptr + 2 * plane + r, others", "tl.store(rows_ptr + 3 * plane + r, others", "plain"),
    ("gradient not over T", "scale = scale * inverse", "scale = scale", "plain"),
    ("ignored rows count", "used = row_ok & (y != ignore_index)", "used = row_ok", "plain"),
    ("label C exists", "(y < C)\n            ranked", "(y <= C)\n            ranked", "bad labels"),
    ("backward writes past the row", "    mask=inside,\n    )", "    mask=row_ok[:, None],\n    )", "plain"),
    ("sizes not in units of ALIGN", "offset = r * stride_n * ALIGN", "offset = r * stride_n", "plain"),
    ("offsets of 32 bits", "offset = r * stride_n * ALIGN", "offset = (r.to(tl.int32) * stride_n * ALIGN).to(tl.int64)",
     "far"),
    ("the first program reduces", "1) + 1 == tl.num_programs(0) * tl.num_programs(1)", "1) == 0", "plain"),
]  # fmt: skip


def far(impl):
    """Rows that lie so far apart that the last one's offset does not fit 32 bits."""
    from emulate.test_ptx_triton import FAR, far_apart

    return (far_apart(impl, *FAR[1]),)


CALLS = {"plain": plain(9, 94), "bad labels": bad_labels(9, 94), "tiles": plain(3, 9001), "far": far}


@pytest.fixture(scope="module")
def compiled(triton_emulator, launches, tmp_path_factory):
    """All mutants of the source, compiled side by side; the folder that holds them."""
    folder, builds = tmp_path_factory.mktemp("mutants"), []
    for number, (_, old, new, shown_by) in enumerate(SOURCE_MUTANTS):
        with replaced("tempered_ce", old, new, folder / str(number)):
            builds += launches.record([lambda c=CALLS[shown_by]: c("triton")])
    launches.build(triton_emulator, builds)
    return folder


@pytest.mark.parametrize("number", range(len(SOURCE_MUTANTS)), ids=[m[0] for m in SOURCE_MUTANTS])
def test_mutants_of_the_source_are_caught(number, compiled, triton_emulator, launches):
    from emulate.ptx.run import KernelFailure, Run
    from emulate.ptx.triton_driver import EmulatedDriver

    name, old, new, shown_by = SOURCE_MUTANTS[number]
    expected = CALLS[shown_by]("reference")
    driver = EmulatedDriver(triton_emulator, launches.OUTPUTS)
    with replaced("tempered_ce", old, new, compiled / str(number)), launches.triton_on_cpu(driver):
        for schedule in SCHEDULES[:3]:
            driver.run = Run(schedule)
            try:
                check(CALLS[shown_by], expected)
            except (KernelFailure, AssertionError) as error:
                print(f"{name}: caught under {schedule}: {str(error)[:200]}")
                return
    raise AssertionError(f"{name}: not caught")
