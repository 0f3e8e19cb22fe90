"""What `Watcher.step` is given, checked."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrank.errors import InputError

#: Positions of token logits [N, tokens, C] that enter their spectrum: with a vocabulary of 50,000, all of an 8 x 1,024
#: batch would be 1.6 GB and 3 Tflop a step.
TOKEN_ROWS = 1024


def number(name: str, value: Any) -> Tensor:
    """A number or a tensor of one element as a 0-d tensor, on whatever device it is."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise InputError(name, "one number", got)


def class_rows(logits: Any, target: Any) -> tuple[Tensor | None, Tensor | None]:
    """Logits as rows [n, C] and their class indices [n]; None for what there is not.

    Logits are [N, C], [N, C, ...] as `nn.CrossEntropyLoss` takes them, or [N, tokens, C]: a target tells which, and
    without one three dimensions are tokens, as those of an activation. Of tokens at most `TOKEN_ROWS` positions are
    kept, evenly spaced.

    Raises:
        InputError: logits that are no floating-point tensor, or a target of neither shape.
    """
    if logits is not None and not (isinstance(logits, Tensor) and logits.is_floating_point() and not logits.is_nested):
        got = type(logits).__name__
        if isinstance(logits, Tensor):
            got = "a nested tensor" if logits.is_nested else logits.dtype
        raise InputError("logits", "a floating-point tensor [N, C], [N, C, ...] or [N, tokens, C]", got)
    if logits is None or logits.ndim < 2:
        return None, None
    logits = logits.detach()
    spatial, tokens = (logits.shape[0], *logits.shape[2:]), tuple(logits.shape[:-1])
    shape = None
    if target is not None:
        if isinstance(target, Tensor) and not target.is_floating_point():
            shape = tuple(target.shape)
        if shape not in (spatial, tokens):
            got = f"{target.dtype} {tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
            wanted = " or ".join(map(str, dict.fromkeys((spatial, tokens))))
            raise InputError("target", f"class indices of shape {wanted}", got, "leave it out for other targets")
    if logits.ndim == 2 or shape == spatial or (target is None and logits.ndim > 3):
        return logits.movedim(1, -1).flatten(0, -2), None if target is None else target.reshape(-1)
    stride = -(-math.prod(tokens) // TOKEN_ROWS) or 1
    kept = slice(stride // 2, None, stride)
    return logits.flatten(0, -2)[kept], None if target is None else target.reshape(-1)[kept]
