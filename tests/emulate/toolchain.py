"""Compiles device code for the CPU emulator: g++, the shim in front of csrc/ and of the CUDA toolkit's headers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SHIM = HERE / "shim"

#: -ffp-contract: nvcc fuses products and sums too. -fno-gnu-unique: libraries loaded side by side must not share the
#: shared memory of kernels of the same name. No -O2: nearly all of the time goes to compiling.
FLAGS = ("-std=c++20", "-O1", "-g1", "-march=native", "-ffp-contract=fast", "-fno-gnu-unique", "-fcf-protection=none")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unknown-pragmas")

SANITIZERS = {
    "": (),
    "address": ("-fsanitize=address",),
    "address,undefined": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "bounds": ("-fsanitize=bounds,alignment", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}


#: Also what takes many compilations: `make mutants`.
ALL = os.environ.get("FASTRANK_ALL_MUTANTS") == "1"


@cache
def cuda_include() -> Path | None:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc:
        homes.append(str(Path(nvcc).resolve().parents[1]))
    for home in homes:
        if home and (Path(home) / "include" / "cuda_bf16.h").exists():
            return Path(home) / "include"
    return None


def compiler() -> str | None:
    return shutil.which("g++")


@cache
def missing(sanitizer: str = "") -> str:
    """Why device code cannot be emulated here; empty if it can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the CPU emulator switches contexts on x86-64 only, this is {platform.machine()}"
    if compiler() is None:
        return "the CPU emulator needs g++, which is not installed"
    if cuda_include() is None:
        return "the CPU emulator needs the CUDA toolkit's headers (cuda_bf16.h), none were found"
    if sanitizer:
        probe = [compiler(), *SANITIZERS[sanitizer], "-x", "c++", "-", "-o", os.devnull]
        if subprocess.run(probe, input="int main() {}", text=True, capture_output=True).returncode:
            return f"g++ cannot link the {sanitizer} sanitizer (libasan, libubsan, libtsan)"
        if sanitizer == "thread" and shutil.which("setarch") is None:
            return "ThreadSanitizer needs setarch (util-linux), to switch address randomisation off"
    return ""


@dataclass(frozen=True)
class Failed(Exception):
    command: str
    output: str

    def __str__(self) -> str:
        return f"{self.command}\n{self.output[-6000:]}"


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise Failed(" ".join(map(str, command)), done.stderr)


def command(
    source: Path,
    output: Path,
    sanitizer: str = "",
    before: Sequence[Path] = (),
    options: Sequence[str] = (),
    language: str = "c++",
) -> list[str]:
    """The g++ line for one source. `before`: folders searched first. `options`: later ones win over `FLAGS`."""
    toolkit = cuda_include()
    folders = [f"-I{folder}" for folder in (*before, SHIM, ROOT / "csrc", HERE)]
    system = ["-isystem", toolkit, "-isystem", toolkit / "cccl"]
    flags = [*FLAGS, *WARNINGS, *SANITIZERS[sanitizer], *options]
    kind = [] if "-shared" in options or language != "c++" else ["-c"]
    return list(map(str, [compiler(), *flags, *folders, *system, *kind, "-x", language, source, "-o", output]))


def compile_object(
    source: Path, output: Path, sanitizer: str = "", before: Sequence[Path] = (), options: Sequence[str] = ()
) -> Path:
    _run(command(source, output, sanitizer, before, options))
    return output


def compile_library(source: Path, output: Path, options: Sequence[str] = ()) -> Path:
    """A shared library to be loaded with ctypes."""
    _run(command(source, output, options=("-shared", "-fPIC", *options)))
    return output


def precompile(folder: Path, sanitizer: str = "", options: Sequence[str] = ()) -> tuple[str, ...]:
    """Options that make many compilations cheaper: the shim and the toolkit's headers are read once, here."""
    header = folder / f"precompiled{sanitizer}.h"
    header.write_text("#include <cuda_runtime.h>\n")
    _run(command(header, header.with_suffix(".h.gch"), sanitizer, options=options, language="c++-header"))
    return (*options, "-include", str(header))


def link(objects: Sequence[Path], output: Path, sanitizer: str = "") -> Path:
    _run([compiler(), *SANITIZERS[sanitizer], *objects, "-pthread", "-o", output])
    return output


def chosen(mutants: Sequence) -> list:
    """Every fifth of a table of mutants, each of which is compiled anew; all of them under FASTRANK_ALL_MUTANTS=1."""
    return list(mutants[:: 1 if ALL else 5])


def side_by_side(function: Callable, items: Iterable) -> list:
    """[function(x) for x in items], on all cores: what takes long here is other processes."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def run(
    program: Path, *arguments: str | Path, sanitizer: str = "", timeout: float = 120
) -> subprocess.CompletedProcess:
    """Runs an emulated program; a report of the sanitizer ends it with a status other than 0."""
    line = [str(program), *map(str, arguments)]
    if sanitizer == "thread":
        line = ["setarch", "-R", *line]  # its shadow memory needs fixed addresses
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:report_thread_leaks=0:history_size=2",
    }
    options = {"capture_output": True, "text": True, "errors": "replace", "env": environment}
    try:
        return subprocess.run(line, timeout=timeout, **options)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(line, -9, "", f"still running after {timeout} s")
