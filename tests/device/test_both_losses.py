"""What holds of both tempered losses on a device, to the letter."""

import pytest
import torch
from device_calls import DEVICE, MISSING
from fastrank.kernels.tempered_ce import tempered_cross_entropy
from fastrank.kernels.tempered_mse import tempered_mse

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

IMPL = "native" if DEVICE == "cpu" else "triton"


@pytest.mark.parametrize("op", [tempered_cross_entropy, tempered_mse], ids=lambda f: f.__name__)
@pytest.mark.parametrize("c", [5, 6000])
def test_rows_that_are_not_finite_stay_alone(op, c):
    inf, nan = float("inf"), float("nan")
    z = torch.randn(7, c, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, c - 1, 0])
    z[1, 0], z[2, 2], z[3], z[5, : c - 2], z[6] = nan, inf, nan, -inf, -inf
    y[3] = -100
    z, y = z.to(DEVICE).requires_grad_(), y.to(DEVICE)
    rows, expected = (op(z, y, 2.0, reduction="none", impl=impl) for impl in (IMPL, "reference"))
    torch.testing.assert_close(rows, expected, equal_nan=True)
    grads = [torch.autograd.grad(loss.sum(), z)[0] for loss in (rows, expected)]
    torch.testing.assert_close(*grads, equal_nan=True)
