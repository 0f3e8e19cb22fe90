"""One suite for every op: each implementation is held to the float64 truth of the op's own reference.

An op's test module describes itself as an `Op` and calls `check` for every implementation and case. The error budget
comes from data, not from taste: an implementation may err by at most what the reference itself errs in the case's
dtype, plus the op's stated `band` for that case (its a-priori rounding bound).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastrank.kernels import backend

Outputs = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Op:
    """`run(impl, *inputs) -> outputs` calls the op; `reference(*inputs) -> outputs` is its specification."""

    name: str
    impls: tuple[str, ...]
    run: Callable[..., Outputs]
    reference: Callable[..., Outputs]
    #: band(case, outputs in float64) -> one tensor (broadcastable) or float per output: the stated extra error, on any
    #: device; where the outputs lie says which device's arithmetic is bounded
    band: Callable[[Any, Outputs], Sequence[torch.Tensor | float]]
    #: build(case) -> inputs in the case's dtype
    build: Callable[[Any], tuple]

    def live_impls(self, device: str = "cpu") -> list[str]:
        """The implementations that can run in this process on `device`."""
        return [impl for impl in self.impls if not backend.problem(self.name, device, impl)]


def check(op: Op, impl: str, case: Any, device: str = "cpu") -> None:
    inputs = tuple(_to(x, device) for x in op.build(case))
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    outputs = op.run(impl, *inputs)
    for index, (x, old) in enumerate(zip(inputs, before, strict=True)):
        if isinstance(x, torch.Tensor):
            same = torch.equal(x.nan_to_num(), old.nan_to_num()) and torch.equal(x.isnan(), old.isnan())
            assert same, f"{op.name}[{impl}]: input {index} was overwritten"
    truth = op.reference(*(x.double() if _floating(x) else x for x in inputs))
    plain = op.reference(*inputs)
    for index, (got, ref, true, band) in enumerate(zip(outputs, plain, truth, op.band(case, truth), strict=True)):
        where = f"{op.name}[{impl}] output {index} of {case}"
        assert got.shape == true.shape, f"{where}: expected shape {tuple(true.shape)}, got {tuple(got.shape)}"
        got, ref, true = got.double(), ref.double(), true.double()
        finite = true.isfinite()
        assert torch.equal(got[~finite].nan_to_num(), true[~finite].nan_to_num()) and torch.equal(
            got.isnan(), true.isnan()
        ), f"{where}: non-finite values differ"
        error = (got - true).abs()[finite]
        band = torch.as_tensor(band, dtype=torch.float64, device=got.device)
        budget = ((ref - true).abs() + band).expand_as(true)[finite]
        worst = (error - budget).max() if error.numel() else torch.tensor(0.0)
        assert worst <= 0, f"{where}: error {error.max():.3e} above its budget by {worst:.3e}"


def odd_strides(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The same values as `x` [n, d] behind another memory layout; what lies between them in memory is NaN."""
    if kind == "contiguous":
        return x.contiguous()
    if kind == "transposed":
        return x.t().contiguous().t()
    if kind == "padded":
        wide = torch.full((x.shape[0], x.shape[1] + 3), float("nan"), dtype=x.dtype)
        wide[:, : x.shape[1]] = x
        return wide[:, : x.shape[1]]
    if kind == "sliced":
        double = torch.full((x.shape[0], 2 * x.shape[1]), float("nan"), dtype=x.dtype)
        double[:, ::2] = x
        return double[:, ::2]
    raise ValueError(f"kind: expected contiguous, transposed, padded or sliced, got {kind!r}")


def _floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _to(x: Any, device: str) -> Any:
    """`x` on `device` in the layout it has, which is part of the case: Tensor.to would close the gaps."""
    if not isinstance(x, torch.Tensor) or x.device == torch.device(device):
        return x
    elements = x.untyped_storage().nbytes() // x.itemsize
    memory = x.as_strided((elements,), (1,), 0).to(device)
    return memory.as_strided(x.shape, x.stride(), x.storage_offset())
