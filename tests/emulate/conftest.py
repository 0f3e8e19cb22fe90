"""Programs built once per session, and the order in which missing tools are reported."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from emulate import toolchain

CUDA = toolchain.ROOT / "csrc" / "gram" / "cuda.cu"
PATCHES = CUDA.with_name("patches.cu")
DRIVERS = toolchain.HERE / "drivers"


class Builds:
    """Emulated programs by name and sanitizer, and object files that several of them share."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.object = cache(self._object)
        self.program = cache(self._program)
        self.precompiled = cache(self._precompiled)

    def _object(self, source: Path, sanitizer: str = "", options: tuple[str, ...] = ()) -> Path:
        output = self.folder / f"{source.name}-{sanitizer}.o"
        return toolchain.compile_object(source, output, sanitizer, options=options)

    def _precompiled(self, sanitizer: str = "") -> tuple[str, ...]:
        return toolchain.precompile(self.folder, sanitizer, ("-g0", "-DEMULATE_LAUNCH_ELSEWHERE"))

    def _program(self, name: str, sanitizer: str = "") -> Path:
        sources = {
            "gram": [CUDA, DRIVERS / "gram.cpp"],
            "patches": [PATCHES, DRIVERS / "patches.cpp"],
            "tensor": [DRIVERS / "tensor.cpp"],
        }[name]
        objects = toolchain.side_by_side(lambda source: self.object(source, sanitizer), sources)
        return toolchain.link(objects, self.folder / f"{name}-{sanitizer}", sanitizer)


@pytest.fixture(scope="session")
def builds(tmp_path_factory) -> Builds:
    return Builds(tmp_path_factory.mktemp("emulate"))


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Compiles PTX for the CPU."""
    if reason := toolchain.missing():
        pytest.skip(reason)
    from emulate.ptx.run import Emulator

    return Emulator(tmp_path_factory.mktemp("ptx"))


@pytest.fixture(scope="session")
def triton_emulator(emulator):
    """The same, where Triton can compile."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("under TRITON_INTERPRET=1 nothing is compiled")
    pytest.importorskip("triton")
    return emulator
