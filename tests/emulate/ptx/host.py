"""Programs in which our own CUDA launch code (csrc/<op>/cuda.cu) runs kernels from their PTX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emulate import toolchain

from .parse import Module, parse
from .run import HERE, OPTIONS
from .translate import translate


def _sources(module: Module) -> str:
    """The table of host/common/launch.cuh. g++ and nvcc mangle alike, so a kernel's PTX name is its symbol."""
    declared = "".join(f'extern "C" __attribute__((weak)) void {name}();\n' for name in module.kernels)
    listed = ", ".join(f"reinterpret_cast<void*>(&{name})" for name in module.kernels)
    return f"{declared}namespace ptx {{ extern void* const sources[] = {{{listed}}}; }}\n"


def program(ptx: str, sources: Sequence[Path], folder: Path) -> Path:
    """`sources` (launch code and a driver with a main) linked with the translated kernels."""
    module = parse(ptx)
    code, _ = translate(module)
    kernels = folder / "kernels.cpp"
    kernels.write_text(code + _sources(module))

    def compile_one(source: Path) -> Path:
        output = folder / f"{source.name}.o"
        options = [o for o in OPTIONS if o != "-fvisibility=hidden"] if source == kernels else ["-w", "-g0"]
        return toolchain.compile_object(source, output, before=(HERE / "host", HERE), options=options)

    objects = toolchain.side_by_side(compile_one, [kernels, *sources])
    return toolchain.link(objects, folder / "program")
