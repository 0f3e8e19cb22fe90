"""What the tempered losses share: what they accept (`validate`), how kernels see it (`layout`, `native`), how torch
meets them (`register`), steps of their references (`reference`), and the way from a call to an operator's arguments
(here).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from fastrank.kernels import backend
from fastrank.kernels.tempered_loss.layout import accumulator
from fastrank.kernels.tracing import transformed, varies
from torch import Tensor


def choose(op: str, input: Tensor, target: Tensor | tuple, weight: Tensor | None, impl: str | None) -> str:
    """The implementation that computes the loss `op` of these (validated) arguments."""
    # A kernel has no derivative for probabilities, shares or weights.
    share = target[2] if isinstance(target, tuple) else target
    if (weight is not None and weight.requires_grad) or (isinstance(share, Tensor) and share.requires_grad):
        problem = "has no gradient for weight, class probabilities or a mixed target's share"
    elif transformed():
        problem = "does not run in torch.func's transforms or forward-mode differentiation"
    else:
        return backend.chosen(op, input.device.type, impl)
    if impl in (None, "reference"):
        return "reference"
    raise RuntimeError(f"impl={impl!r} {problem}; leave impl=None for these arguments")


class Lowered(NamedTuple):
    """A call as the operators take it (see `register`)."""

    target: Tensor
    second: Tensor | None
    share: Tensor | None
    T: float
    temperature: Tensor | None
    with_grad: bool


def lower(input: Tensor, target: Tensor | tuple, T: float | Tensor, reduction: str, impl: str) -> Lowered:
    # On the CPU a training step's gradient comes out of the forward pass.
    with_grad = (
        impl == "native"
        and reduction != "none"
        and input.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
    temperature = second = share = None
    if isinstance(T, Tensor):
        T, temperature = 1.0, T if T.device == input.device else T.to(input.device, non_blocking=True)
    elif torch.compiler.is_compiling() and varies(T):
        # A number that changes is an input of the graph, but an operator's argument only as a tensor; only arithmetic
        # makes it one without compiling again for every value. In the accumulator's dtype: a number alone is float64.
        temperature = torch.ones((), dtype=accumulator(input.dtype), device=input.device) * T
        T = 1.0
    if isinstance(target, tuple):
        target, second, share = target
        second = second.long()
        if not isinstance(share, Tensor):
            share = torch.full((), share, dtype=accumulator(input.dtype), device=input.device)
    if not target.is_floating_point():
        target = target.long()
    return Lowered(target, second, share, float(T), temperature, with_grad)
