"""kernels/tempered_mse/cost.py against the loads and stores that the kernels make, counted in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

import torch
from fastrank.kernels.tempered_mse import cost
from fastrank.kernels.tempered_mse import triton as kernels
from interpret.test_tempered_ce_cost import size, traffic_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def traffic(monkeypatch):
    return traffic_of(monkeypatch, kernels)


#: A row for each tile, odd rows and classes, rows of several tiles.
SHAPES = [(70, 10), (9, 100), (3, 1000), (2, 4500)]
OPTIONS = [
    {},
    {"reduction": "sum", "weight": True},
    {"reduction": "none", "temperature": "rows"},
    {"target": "mixed", "temperature": "scalar"},
    {"target": "mixed", "weight": True},
    {"target": "probabilities"},
    {"target": "probabilities", "weight": True, "temperature": "rows"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_bytes(traffic, dtype, options):
    for rows, classes in SHAPES:
        traffic.clear()
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        logits, second, share = torch.randn(rows, classes).to(dtype), None, None
        # Labels that differ as far as they can: a gathered weight is then read once for each.
        target = torch.arange(rows) % classes
        kind, reduction = options.get("target", "index"), options.get("reduction", "mean")
        if kind == "mixed":
            second, share = target.roll(1), torch.full((), 0.3, dtype=acc)
        if kind == "probabilities":
            target = torch.rand(rows, classes, dtype=acc)
        form = options.get("temperature", "float")
        temperature = {"float": None, "scalar": torch.ones((), dtype=acc), "rows": torch.ones(rows, dtype=acc)}[form]
        weight = torch.ones(classes, dtype=acc) if options.get("weight") else None
        loss, state, denominator, _ = kernels.forward(
            logits, target, second, share, 1.0, temperature, weight, -100, reduction, 0.0, 0, False
        )
        kernels.backward(
            loss, logits, target, second, share, state, denominator, 1.0, temperature, weight, -100, 0.0, 0
        )
        shared = {"target": kind, "reduction": reduction, "temperature": form}
        launches = cost.forward(rows, classes, dtype, weight=weight is not None, **shared)
        launches += cost.backward(rows, classes, dtype, **shared)
        launches = {launch.kernel: launch for launch in launches if not launch.kernel.startswith("torch.")}
        assert set(launches) == set(traffic)
        for name, seen in traffic.items():
            launch = launches[name]
            assert (launch.read, launch.written, launch.requested, launch.blocks) == (
                size(seen.read), size(seen.written), seen.requested, len(seen.blocks)
            ), (name, rows, classes)  # fmt: skip
