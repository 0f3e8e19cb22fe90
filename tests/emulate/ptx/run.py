"""PTX as a library to call: translated, compiled by g++ and launched on the memory of numpy or torch."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emulate import toolchain

from .parse import Kernel, Module, parse
from .translate import Mutant, translate

HERE = Path(__file__).resolve().parent
#: No fused products but those the PTX asks for; no debugging information (nearly all of the time goes to compiling).
OPTIONS = ("-fPIC", "-O0", "-fwrapv", "-ffp-contract=off", "-fvisibility=hidden", "-g0", "-w", "-fno-strict-aliasing")
SCHEDULES = ("lockstep", "reverse+early", "warps", "warps-reverse+early", "random:1", "random:2+early")


class KernelFailure(Exception):
    """A kernel did what it must not: an access out of bounds, a divergent barrier, a deadlock, ..."""


@dataclass(frozen=True)
class Buffer:
    """Global memory that a launch may touch."""

    address: int
    bytes: int
    writable: bool = True
    name: str = "buffer"


@dataclass(frozen=True)
class Run:
    """How to launch: the order of threads; whether approximations err as the ISA allows; which mutant is on."""

    schedule: str = "lockstep"
    error_seed: int = 0
    mutant: int = 0


@dataclass
class Library:
    """The compiled kernels of one PTX module."""

    module: Module
    path: Path
    mutants: list[Mutant]
    _loaded: ctypes.CDLL | None = field(default=None, repr=False)

    def launch(
        self,
        kernel: str,
        grid: Sequence[int],
        block: Sequence[int],
        parameters: bytes,
        buffers: Iterable[Buffer],
        shared: int = 0,
        run: Run = Run(),
    ) -> None:
        """Runs a kernel to its end. `parameters` as the kernel's parameter space; `shared`: bytes beside static ones.

        Raises KernelFailure, which names block, thread and the PTX statement.
        """
        if self._loaded is None:
            self._loaded = ctypes.CDLL(str(self.path))
            self._loaded.ptx_launch.restype = ctypes.c_char_p
        library, names = self._loaded, list(self.module.kernels)
        library.ptx_forget_buffers()
        for b in buffers:
            library.ptx_register_buffer(
                ctypes.c_uint64(b.address), ctypes.c_uint64(b.bytes), b.writable, b.name.encode()
            )
        three = ctypes.c_uint * 3
        message = library.ptx_launch(
            names.index(kernel),
            three(*grid, *(1,) * (3 - len(grid))),
            three(*block, *(1,) * (3 - len(block))),
            shared,
            parameters,
            run.schedule.encode(),
            ctypes.c_uint64(run.error_seed),
            run.mutant,
        )
        if message is not None:
            raise KernelFailure(self._explained(kernel, message.decode(errors="replace")))

    def _explained(self, kernel: str, message: str) -> str:
        lines = {s.line: s for s in self.module.kernels[kernel].statements}

        def statement(found: re.Match) -> str:
            return f"PTX {lines[int(found[1])]}" if int(found[1]) in lines else found[0]

        return re.sub(r"PTX line:?\s?(\d+)", statement, message)


def arguments(kernel: Kernel, values: Sequence[bytes]) -> bytes:
    """The parameter space for these values, one per parameter, in order."""
    space = b""
    if len(values) != len(kernel.parameters):
        raise ValueError(f"{kernel.name} has {len(kernel.parameters)} parameters, got {len(values)} arguments")
    for parameter, value in zip(kernel.parameters, values, strict=True):
        if len(value) != parameter.bytes:
            raise ValueError(f"{parameter.name}: expected {parameter.bytes} bytes, got {len(value)}")
        space += b"\0" * (-len(space) % parameter.align) + value
    return space


class Emulator:
    """Compiles PTX to libraries in a folder, side by side, each once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._libraries: dict[str, Library] = {}
        self._lock, self._once = threading.Lock(), threading.Lock()

    def library(self, text: str, mutants: bool = False) -> Library:
        # What follows the kernels is debugging information, with the path of the source.
        code = re.split(r"^\s*\.(?:file|section)\b", text, maxsplit=1, flags=re.M)[0]
        key = hashlib.sha256(f"{mutants}{code}".encode()).hexdigest()[:16]
        with self._lock:
            if key in self._libraries:
                return self._libraries[key]
        module = parse(text)
        cpp, found = translate(module, mutants)
        source, path = self.folder / f"{key}.cpp", self.folder / f"{key}.so"
        source.write_text(cpp)
        options, launcher = self._prepared()
        toolchain.compile_library(source, path, options=(*options, str(launcher)))
        with self._lock:
            return self._libraries.setdefault(key, Library(module, path, found))

    def _prepared(self) -> tuple[tuple[str, ...], Path]:
        """Options that find launch.h already parsed, and library.cpp compiled: most of what a small kernel takes."""
        folder = self.folder / "prepared"
        header, launcher = folder / "launch.h", folder / "library.o"
        options = (f"-I{folder}", *OPTIONS, f"-I{HERE}")
        with self._once:
            if not launcher.exists():
                folder.mkdir(exist_ok=True)
                shutil.copy(HERE / "launch.h", header)
                compiled = header.with_suffix(".h.gch")
                command = toolchain.command(header, compiled, options=options, language="c++-header")
                subprocess.run(command, check=True)
                toolchain.compile_object(HERE / "library.cpp", launcher, options=options)
        return options, launcher
