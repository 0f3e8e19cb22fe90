"""Stands in for Triton's CUDA driver: `kernel[grid](...)` compiles as for a GPU, then runs the PTX on CPU tensors.

Everything up to the launch is Triton's and the caller's own: grid, constants, specialisation of the arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from gpu_builds import not_assembled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .run import Buffer, Emulator, Library, Run, arguments

_FORMATS = {"fp32": "f", "fp64": "d", "fp16": "e", "i1": "?", "u1": "?"} | {
    f"{sign}{bits}": code if sign == "i" else code.upper()
    for sign in "iu"
    for bits, code in ((8, "b"), (16, "h"), (32, "i"), (64, "q"))
}


@dataclass
class EmulatedDriver:
    """Triton's `driver.active` while launches are emulated. What it does not have, a launch does not need.

    arch: the architecture compiled for. hints: whether the compiler may use what the launch knows to be divisible by
    16. outputs: names of the arguments a kernel may write, by the kernel's name. run: how to launch. behind: tensors
    that kernels find by addresses in memory (a table), to be read only.
    """

    emulator: Emulator
    outputs: dict[str, frozenset[str]]
    arch: int = 80
    hints: bool = True
    mutants: bool = False
    run: Run = field(default_factory=Run)
    behind: list[torch.Tensor] = field(default_factory=list)
    #: Called with each kernel's library before its launch: chooses the run, or None for `run`.
    choose: Callable[[str, Library], Run | None] | None = None
    launched: list[str] = field(default_factory=list)

    def get_current_device(self) -> str:
        # Key of Triton's cache of kernels: those compiled here must not meet those of a real device.
        return f"emulated sm_{self.arch} {self.hints} {self.mutants} {id(self.emulator)}"

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def launcher_cls(self, source: ASTSource, metadata: Any) -> _Launcher:
        return _Launcher(self, source, metadata)

    @property
    def utils(self) -> EmulatedDriver:
        return self

    def get_device_properties(self, device: str) -> dict[str, int]:
        return {"max_shared_mem": 163 << 10}  # sm_80; larger ones have more

    def load_binary(self, name: str, binary: bytes, shared: int, device: str) -> tuple:
        return None, None, 0, 0, 1024  # module, function, registers, spills, most threads


class _Launcher:
    """One compiled kernel, as Triton calls it."""

    def __init__(self, driver: EmulatedDriver, source: ASTSource, metadata: Any):
        self.metadata, self.source = metadata, source
        for unsupported in ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid"):
            if getattr(metadata, unsupported, 0):
                raise NotImplementedError(f"the emulator launches nothing with {unsupported}")
        if metadata.num_ctas != 1:
            raise NotImplementedError("the emulator has no clusters")
        self.library = driver.emulator.library(ptx_of(source, metadata, driver.hints), driver.mutants)
        self.kernel = self.library.module.kernels[metadata.name]

    def __call__(self, grid_x, grid_y, grid_z, stream, function, packed, launch, enter, leave, *values) -> None:
        driver = triton.runtime.driver.active
        name = self.source.fn.__name__
        packed_values = []
        buffers = [Buffer(x.data_ptr(), extent(x), False, "behind a table") for x in driver.behind]
        for (argument, kind), value in zip(self.source.signature.items(), values, strict=True):
            if kind == "constexpr":
                continue
            if kind.startswith("*"):
                if value.device.type != "cpu":
                    raise ValueError(f"{argument}: the emulator runs on CPU tensors, got one on {value.device}")
                packed_values.append(struct.pack("Q", value.data_ptr()))
                writable = argument in driver.outputs[name]
                buffers.append(Buffer(value.data_ptr(), extent(value), writable, argument))
            else:
                packed_values.append(struct.pack(_FORMATS[kind], value))
        # Triton adds two pointers to scratch memory of its own, null where there is none.
        packed_values += [bytes(8)] * (len(self.kernel.parameters) - len(packed_values))
        run = driver.choose(name, self.library) if driver.choose else None
        driver.launched.append(name)
        self.library.launch(
            self.metadata.name,
            (grid_x, grid_y, grid_z),
            (32 * self.metadata.num_warps,),
            arguments(self.kernel, packed_values),
            buffers,
            self.metadata.shared,
            run or driver.run,
        )


def extent(x: torch.Tensor) -> int:
    """Bytes from the first to behind the last element of a view."""
    if x.numel() == 0:
        return 0
    return (1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def ptx_of(source: ASTSource, metadata: Any, hints: bool) -> str:
    """The PTX of what Triton has just compiled (from its cache), or the same without hints of divisibility."""
    attributes = source.attrs if hints else {}
    plain = ASTSource(source.fn, source.signature, source.constants, attributes)
    options = {"num_warps": metadata.num_warps, "maxnreg": metadata.maxnreg}
    return triton.compile(plain, target=metadata.target, options=options).asm["ptx"]


@contextmanager
def emulated(driver: EmulatedDriver) -> Iterator[EmulatedDriver]:
    """Triton launches go to `driver` inside."""
    active = triton.runtime.driver._active
    triton.runtime.driver.set_active(driver)
    try:
        with not_assembled():
            yield driver
    finally:
        triton.runtime.driver._active = active
