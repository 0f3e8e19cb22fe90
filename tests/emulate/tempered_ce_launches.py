"""Launches of the tempered cross-entropy for the emulator: through the product's own code, down to `kernel[grid]`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import gpu_builds
import torch
from emulate import toolchain
from emulate.ptx.run import Emulator
from emulate.ptx.triton_driver import EmulatedDriver, emulated
from fastrank.kernels import backend

#: What each kernel may write; all else is read-only to it.
OUTPUTS = {
    "forward_kernel": frozenset({"rows_ptr", "loss_ptr", "denominator_ptr", "arrived_ptr", "part_ptr"}),
    "backward_kernel": frozenset({"grad_ptr"}),
}


@contextmanager
def triton_on_cpu(driver: EmulatedDriver) -> Iterator[EmulatedDriver]:
    """Inside, `tempered_cross_entropy(..., impl="triton")` takes CPU tensors and runs compiled PTX. Memory that torch
    leaves uninitialised is NaN, so that whatever a kernel fails to write, or reads too early, shows."""
    chosen, backend.chosen = backend.chosen, lambda op, device, impl: impl or "native"
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        with emulated(driver):
            yield driver
    finally:
        torch.use_deterministic_algorithms(deterministic)
        backend.chosen = chosen


def record(calls: Iterable[Callable[[], object]]) -> list[gpu_builds.TritonBuild]:
    """What the calls will launch, each specialisation once; nothing is compiled or run."""
    found: dict[str, gpu_builds.TritonBuild] = {}
    chosen, backend.chosen = backend.chosen, lambda op, device, impl: impl or "native"
    try:
        for call in calls:
            with gpu_builds.launches() as launched:
                call()
            for facts in launched:
                build = gpu_builds.TritonBuild("tempered_ce", facts["kernel"].__name__, **facts)
                found.setdefault(repr(vars(build)), build)
    finally:
        backend.chosen = chosen
    return list(found.values())


def build(emulator: Emulator, builds: Iterable[gpu_builds.TritonBuild], hints: bool = True, arch: int = 80) -> None:
    """Compiles side by side what would else be compiled launch by launch."""
    with gpu_builds.not_assembled():
        toolchain.side_by_side(lambda b: emulator.library(b.compile(arch, hints).asm["ptx"]), builds)


def prepare(emulator: Emulator, calls: Iterable[Callable[[], object]], hints: bool = True) -> None:
    """Compiles what the calls will launch."""
    build(emulator, record(calls), hints)
