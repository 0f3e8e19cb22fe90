"""The conformity suite's own promise: a case's memory layout survives the move to another device."""

import pytest
import torch
from conformity import _to, odd_strides


@pytest.mark.parametrize("kind", ["contiguous", "transposed", "padded", "sliced"])
def test_layouts_survive_a_move(kind):
    x = odd_strides(torch.randn(4, 6), kind)
    moved = _to(x, "meta")
    assert moved.device.type == "meta" and (moved.shape, moved.stride()) == (x.shape, x.stride())
    assert moved.storage_offset() == x.storage_offset()
    assert _to(x, "cpu") is x and _to(3, "meta") == 3
