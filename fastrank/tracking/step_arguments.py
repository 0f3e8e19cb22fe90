"""What `Watcher.step` is given, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrank.errors import InputError


def number(name: str, value: Any) -> Tensor:
    """A number or a tensor of one element as a 0-d tensor, on whatever device it is."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise InputError(name, "one number", got)


def check_target(target: Any, logits: Tensor) -> None:
    shape = (logits.shape[0], *logits.shape[2:])
    if not isinstance(target, Tensor) or target.is_floating_point() or target.shape != shape:
        got = f"{target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise InputError("target", f"class indices of shape {tuple(shape)}", got, "leave it out for other targets")
