"""Tables of whole numbers that a launch over many matrices reads."""

from __future__ import annotations

import torch
from torch import Tensor


def tables(lists: list[list[int]], device: torch.device) -> list[Tensor]:
    """The lists as int64 tensors on the device, in one copy that nobody waits for (the caching allocators keep both
    ends until the stream has done with them)."""
    host = torch.tensor([x for numbers in lists for x in numbers], dtype=torch.int64, pin_memory=device.type == "cuda")
    return list(host.to(device, non_blocking=True).split([len(numbers) for numbers in lists]))
