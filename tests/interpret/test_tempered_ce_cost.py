"""kernels/tempered_ce/cost.py against the loads and stores that the kernels make, counted in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import numpy as np
import torch
import triton.language as tl
from fastrank.kernels.tempered_ce import cost
from fastrank.kernels.tempered_ce import triton as kernels
from triton.runtime.interpreter import InterpreterBuilder

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class Traffic:
    """What one launch loads and stores: bytes asked for, distinct bytes, programs."""

    def __init__(self):
        self.requested, self.read, self.written, self.blocks = 0, set(), set(), set()

    def add(self, addresses, mask, itemsize, into):
        taken = np.asarray(addresses)[np.broadcast_to(mask, np.shape(addresses))].ravel()
        into.update((int(a), itemsize) for a in taken)
        return taken.size * itemsize


@pytest.fixture
def traffic(monkeypatch):
    return traffic_of(monkeypatch, kernels)


def traffic_of(monkeypatch, *modules, tables=False):
    """{kernel: Traffic}, filled while the kernels of modules run, in their order; the second launch of one is "name 2".
    With `tables`, whole numbers of 64 bits are tables that are not counted."""
    found, current = {}, []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self, pointers, mask, *rest):
        seen, kind = current[-1], pointers.get_element_ty()
        if not (tables and kind == tl.int64):
            seen.requested += seen.add(pointers.data, mask.data, kind.primitive_bitwidth // 8, seen.read)
        seen.blocks.add(tuple(self.grid_idx))
        return load(self, pointers, mask, *rest)

    def counted_store(self, pointers, value, mask, *rest):
        seen = current[-1]
        seen.blocks.add(tuple(self.grid_idx))
        seen.add(pointers.data, mask.data, pointers.get_element_ty().primitive_bitwidth // 8, seen.written)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)

    class Counted:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            def launch(*args, **options):
                times = sum(name.partition(" ")[0] == self.name for name in found) + 1
                current.append(found.setdefault(f"{self.name} {times}" if times > 1 else self.name, Traffic()))
                self.kernel[grid](*args, **options)
                current.pop()

            return launch

    for module in modules:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            counted = Counted(name.removesuffix("_kernel"), getattr(module, name))
            monkeypatch.setattr(module, name, counted)
    return found


def size(addresses):
    return sum(itemsize for _, itemsize in addresses)


def held_to(traffic, launches):
    """What was seen is what the launches say, one by one and in their order."""
    launches = [launch for launch in launches if not launch.kernel.startswith("torch.")]
    assert [launch.kernel for launch in launches] == [name.partition(" ")[0] for name in traffic]
    for launch, (name, seen) in zip(launches, traffic.items(), strict=True):
        requested = launch.read if launch.requested is None else launch.requested
        assert (launch.read, launch.written, requested, launch.blocks) == (
            size(seen.read), size(seen.written), seen.requested, len(seen.blocks)
        ), name  # fmt: skip


#: A row for each tile, odd rows and classes, rows of several tiles; and, in float32, rows split over programs.
SHAPES = [(70, 10), (9, 100), (3, 1000), (2, 5001)]
SPLIT = (1, 14401)
OPTIONS = [
    {},
    {"reduction": "sum"},
    {"reduction": "none", "temperature": "rows"},
    {"stats": True, "temperature": "scalar"},
    {"weight": True},
    {"weight": True, "smoothing": True, "stats": True},
    {"smoothing": True},
    {"target": "mixed", "temperature": "rows"},
    {"target": "mixed", "weight": True, "smoothing": True, "stats": True},
    {"target": "probabilities", "reduction": "none"},
    {"target": "probabilities", "weight": True, "smoothing": True},
    {"target": "probabilities", "weight": True, "stats": True, "temperature": "scalar"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_bytes(traffic, dtype, options):
    for rows, classes in [*SHAPES, SPLIT] if dtype == torch.float32 else SHAPES:
        traffic.clear()
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        logits = torch.randn(rows, classes).to(dtype)
        # Labels that differ as far as they can: a gathered weight is then read once for each.
        kind = options.get("target", "index")
        target, second, share = torch.arange(rows) % classes, None, None
        if kind == "mixed":
            second, share = (rows + torch.arange(rows)) % classes, torch.full((rows,), 0.3, dtype=acc)
            second = torch.where(second == target, (second + 1) % classes, second)
        elif kind == "probabilities":
            target = torch.rand(rows, classes, dtype=acc)
        reduction, T = options.get("reduction", "mean"), options.get("temperature", "float")
        temperature = {"float": None, "scalar": torch.ones((), dtype=acc), "rows": torch.ones(rows, dtype=acc)}[T]
        weight = torch.ones(classes, dtype=acc) if options.get("weight") else None
        smoothing, stats = 0.1 if options.get("smoothing") else 0.0, bool(options.get("stats"))
        loss, state, denominator, _ = kernels.forward(
            logits, target, second, share, 1.0, temperature, weight, -100, reduction, smoothing, 0, stats, False
        )
        kernels.backward(
            loss, logits, target, second, share, state, denominator, 1.0, temperature, weight, -100, smoothing, 0
        )

        shared = {"target": kind, "reduction": reduction, "weight": weight is not None, "smoothing": smoothing > 0}
        launches = cost.forward(rows, classes, dtype, stats=stats, temperature=T, **shared)
        launches += cost.backward(rows, classes, dtype, temperature=T, **shared)
        launches = {launch.kernel: launch for launch in launches if not launch.kernel.startswith("torch.")}
        assert set(launches) == set(traffic)
        for name, seen in traffic.items():
            launch = launches[name]
            assert (launch.read, launch.written, launch.requested, launch.blocks) == (
                size(seen.read), size(seen.written), seen.requested, len(seen.blocks)
            ), (name, rows, classes)  # fmt: skip


def test_bytes_where_torch_sums_what_programs_leave(traffic, monkeypatch):
    monkeypatch.setattr(kernels, "ALONE", 1)
    monkeypatch.setattr(cost, "ALONE", 1)
    rows, classes = 70, 10
    arguments = (torch.randn(rows, classes), torch.arange(rows) % classes, None, None, 1.0, None, None, -100)
    for reduction in ("mean", "sum"):
        traffic.clear()
        kernels.forward(*arguments, reduction, 0.0, 0, False, False)
        launch = cost.forward(rows, classes, reduction=reduction)[1]
        seen = traffic["forward"]
        assert (launch.read, launch.written, launch.requested) == (size(seen.read), size(seen.written), seen.requested)
