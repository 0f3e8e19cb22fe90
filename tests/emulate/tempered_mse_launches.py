"""Launches of the tempered squared error for the emulator, as tempered_ce_launches.py makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import gpu_builds
import torch
from emulate.ptx.triton_driver import EmulatedDriver, emulated
from fastrank.kernels import backend

#: What each kernel may write; all else is read-only to it.
OUTPUTS = {
    "forward_kernel": frozenset({"rows_ptr", "loss_ptr"}),
    "reduce_kernel": frozenset({"result_ptr", "denominator_ptr"}),
    "backward_kernel": frozenset({"grad_ptr"}),
}


@contextmanager
def _triton_chosen() -> Iterator[None]:
    chosen, backend.chosen = backend.chosen, lambda op, device, impl: impl or "native"
    try:
        yield
    finally:
        backend.chosen = chosen


@contextmanager
def triton_on_cpu(driver: EmulatedDriver) -> Iterator[EmulatedDriver]:
    """Inside, `tempered_mse(..., impl="triton")` runs compiled PTX on CPU tensors; uninitialised memory is NaN."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        with _triton_chosen(), emulated(driver):
            yield driver
    finally:
        torch.use_deterministic_algorithms(deterministic)


def record(calls: Iterable[Callable[[], object]]) -> list[gpu_builds.TritonBuild]:
    """What the calls will launch, each specialisation once; nothing is compiled or run."""
    found: dict[str, gpu_builds.TritonBuild] = {}
    with _triton_chosen():
        for call in calls:
            with gpu_builds.launches() as launched:
                call()
            for facts in launched:
                build = gpu_builds.TritonBuild("tempered_mse", facts["kernel"].__name__, **facts)
                found.setdefault(repr(vars(build)), build)
    return list(found.values())
