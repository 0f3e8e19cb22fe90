"""The squared error on a device: the error bound of every dtype, layout and option; what a GPU says of bad input."""

import itertools

import pytest
import tempered_mse_conformity as suite
import torch
from conformity import check
from device_calls import DEVICE, MISSING
from fastrank.kernels.tempered_mse import tempered_mse

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

IMPL = "native" if DEVICE == "cpu" else "triton"
#: Every tile of config.py, its edges, rows of several tiles.
SHAPES = [*suite.SHAPES, (70, 16), (7, 17), (20, 128), (3, 129), (3, 1024), (2, 9001), (300, 1000), (2, 128256)]


@pytest.mark.parametrize("T", [1e-2, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_keeps_its_error_bound(dtype, T):
    for (n, c), strides in itertools.product(SHAPES, ("contiguous", "transposed", "padded", "sliced")):
        if c < 2000 or strides == "contiguous":
            check(suite.OP, IMPL, suite.Case(n, c, dtype, T, strides), DEVICE)


@pytest.mark.parametrize("options", suite.OPTIONS)
@pytest.mark.parametrize("dtype", suite.DTYPES, ids=str)
def test_keeps_its_error_bound_with_every_option(dtype, options):
    for (n, c), (strides, T) in itertools.product(suite.SHAPES, (("contiguous", 1.0), ("transposed", 30.0))):
        check(suite.OP, IMPL, suite.Case(n, c, dtype, T, strides, **options), DEVICE)


@pytest.mark.skipif(DEVICE == "cpu", reason="the CPU names the label instead")
def test_bad_labels_shares_and_temperatures_make_their_rows_nan():
    z = torch.randn(4, 5, device=DEVICE, requires_grad=True)
    y, T = torch.tensor([0, 5, -1, 2]).to(DEVICE), torch.tensor([1.0, 1.0, 1.0, 0.0]).to(DEVICE)
    rows = tempered_mse(z, y, T, reduction="none")
    assert rows.isnan().tolist() == [False, True, True, True]
    share = torch.tensor([0.5, 0.5, 0.5, 1.5], device=DEVICE)
    labels = torch.tensor([0, 1, 2, 3], device=DEVICE)
    assert tempered_mse(z, (labels, labels.flip(0), share), reduction="none").isnan().tolist() == [False] * 3 + [True]
