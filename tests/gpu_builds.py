"""Everything that is compiled for a GPU: a new kernel joins the tests of its machine code by one entry here.

A Triton entry is not written down but recorded: the op is called on tensors, and what Triton's own front end would
have compiled for that launch (types, constants, which arguments are known to be divisible by 16) is the entry.
Compiling needs no GPU; CUDA sources need nvcc.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

try:
    import triton
except ImportError:
    triton = None
if TYPE_CHECKING:
    from triton.compiler import CompiledKernel

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
#: Under TRITON_INTERPRET=1 Triton's functions cannot be compiled.
COMPILES_TRITON = triton is not None and os.environ.get("TRITON_INTERPRET") != "1"


def _ends_with_ptx(backend=None, stages=None, *_):
    if stages is None:
        return "not assembled", "not assembled"  # joins the key of Triton's cache
    stages["cubin"] = lambda ptx, metadata: b""
    return None


@contextmanager
def not_assembled() -> Iterator[None]:
    """Inside, Triton compiles to PTX and no further: ptxas is a third of the time where nobody reads machine code."""
    before = triton.knobs.runtime.add_stages_inspection_hook
    triton.knobs.runtime.add_stages_inspection_hook = _ends_with_ptx
    try:
        yield
    finally:
        triton.knobs.runtime.add_stages_inspection_hook = before


@dataclass(frozen=True)
class TritonBuild:
    """One Triton kernel in one shipped specialisation, as a launch on contiguous tensors compiles it."""

    op: str
    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int
    #: Most registers a thread, as the launch asks for; None where it does not.
    registers: int | None
    #: Arguments known to be divisible by 16: pointers, strides, sizes.
    aligned: frozenset[str]

    def compile(self, arch: int, hints: bool = True) -> CompiledKernel:
        """For sm_<arch>. Without `hints` nothing is known to be divisible by 16, as for odd strides."""
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        attributes = {
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(self.kernel.arg_names)
            if hints and name in self.aligned
        }
        return triton.compile(
            ASTSource(self.kernel, signature=self.signature, constexprs=self.constants, attrs=attributes),
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": self.warps, "maxnreg": self.registers},
        )

    def __str__(self) -> str:
        return f"{self.op} {self.name}"


_DONE: dict[tuple, Any] = {}
_LOCKS: defaultdict[tuple, Lock] = defaultdict(Lock)


def _once(key: tuple, make: Callable[[], Any]) -> Any:
    with _LOCKS[key]:  # compilers run side by side
        if key not in _DONE:
            _DONE[key] = make()
        return _DONE[key]


@dataclass(frozen=True)
class CudaBuild:
    """One csrc/<op>/<name>.cu."""

    op: str
    name: str = "cuda"

    @property
    def source(self) -> Path:
        return ROOT / "csrc" / self.op / f"{self.name}.cu"

    def cubin(self, arch: int, folder: Path) -> Path:
        """Machine code for sm_<arch>, once a session, in the first caller's `folder`: that of this checkout's own core
        where that is newer than its sources, else compiled. Spilled registers are an error in both."""
        return _once((self, "cubin", arch), lambda: self._cubin(arch, folder))

    def ptx(self, arch: int, folder: Path) -> str:
        return _once((self, "ptx", arch), lambda: self._ptx(arch, folder))

    def _cubin(self, arch: int, folder: Path) -> Path:
        keep = folder / f"{self.op}-{self.name}-{arch}"
        keep.mkdir(parents=True, exist_ok=True)
        cubin = keep / f"{self.name}.sm_{arch}.cubin"
        if (core := fresh_core()) is not None:
            subprocess.run([cuobjdump(), "--extract-elf", cubin.name, str(core)], cwd=keep, capture_output=True)
        if not cubin.exists():
            self._nvcc("-cubin", arch, cubin, "-Xptxas", "-warn-spills,-Werror")
        return cubin

    def _ptx(self, arch: int, folder: Path) -> str:
        output = folder / f"{self.op}-{self.name}-{arch}.ptx"
        self._nvcc("-ptx", arch, output)
        return output.read_text()

    def _nvcc(self, what: str, arch: int, output: Path, *options: str) -> None:
        """With CMakeLists.txt's options."""
        command = [NVCC, "-std=c++17", "-O3", "-lineinfo", what, f"-arch=sm_{arch}", f"-I{ROOT / 'csrc'}", *options]
        run = subprocess.run([*command, str(self.source), "-o", str(output)], capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"nvcc failed on {self.source}:\n{run.stderr[-3000:]}")

    def __str__(self) -> str:
        return f"{self.op} {self.name}"


@cache
def fresh_core() -> Path | None:
    """The compiled module in kernels/, if none of its sources has changed since."""
    sources = [ROOT / "CMakeLists.txt", *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    for core in (ROOT / "kernels").glob("_core*.so"):
        if core.stat().st_mtime > max(path.stat().st_mtime for path in sources):
            return core
    return None


@cache
def cuobjdump() -> str | None:
    """NVIDIA's disassembler: on the path, or the one that comes with triton."""
    if found := shutil.which("cuobjdump"):
        return found
    if triton is None:
        return None
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else None


def instructions(cubin: Path) -> dict[str, str]:
    """The machine code of each kernel in a cubin, by name: an instruction a line, without addresses and encodings."""
    listing = subprocess.run([cuobjdump(), "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    functions = (text.partition("\n") for text in listing.split("Function : ")[1:])
    line = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+([^;\n]+);", re.M)
    return {name: "\n".join(line.findall(code)) + "\n" for name, _, code in functions}


def resources(cubin: Path) -> dict[str, dict[str, int]]:
    """Of each kernel in a cubin: REG, STACK, SHARED, LOCAL, ..."""
    command = [cuobjdump(), "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        name: {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", facts)}
        for name, facts in re.findall(r"Function (\w+):\n(.*)", text)
    }


class _Recorder:
    """Stands in for a GPU's driver while launches are recorded; there is nothing to launch on."""

    def get_current_device(self) -> str:
        return "recorded"

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 80, 32)


@contextmanager
def launches() -> Iterator[list[dict[str, Any]]]:
    """Instead of compiling and launching, collects what Triton would have compiled, one dict a new specialisation."""
    found: list[dict[str, Any]] = []

    def record(*, fn, compile, **_):
        kernel = fn.jit_function
        attributes = compile["configs"][0]
        found.append(
            {
                "kernel": kernel,
                "signature": dict(compile["signature"]),
                "constants": {kernel.arg_names[path[0]]: value for path, value in compile["constants"].items()},
                "warps": compile["num_warps"],
                "registers": json.loads(compile["specialization_data"])["options"]["maxnreg"],
                "aligned": frozenset(
                    kernel.arg_names[path[0]] for path, facts in attributes.items() if ["tt.divisibility", 16] in facts
                ),
            }
        )
        return True

    hook = triton.knobs.runtime.jit_cache_hook
    active = triton.runtime.driver._active
    triton.knobs.runtime.jit_cache_hook = record
    triton.runtime.driver.set_active(_Recorder())
    try:
        yield found
    finally:
        triton.knobs.runtime.jit_cache_hook = hook
        triton.runtime.driver._active = active


def _recorded(op: str, call: Callable[[], object], name: Callable[[dict[str, Any]], str]) -> list[TritonBuild]:
    with launches() as found:
        call()
    return [TritonBuild(op, name(launch), **launch) for launch in found]


#: A class count for each tile of config.py: its row stride is as aligned as users' usually are.
TEMPERED_CE_CLASSES = (12, 128, 1000, 32000)
_ROWS = 256
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
#: Options of `tempered_ce_launch`, one word each: "full" is every option; "nested" is [N, C, 2]; "split" are few rows.
_VARIANTS = (
    *((dtype, variant) for dtype in _DTYPES for variant in ("plain", "full")),
    ("fp32", "nested"),
    ("fp32", "per-sample T"),
    ("bf16", "mixed"),
    ("bf16", "probabilities"),
    *((dtype, variant) for dtype in ("fp32", "fp64") for variant in ("mixed full", "probabilities full")),
    ("bf16", "split"),
    *((dtype, f"split{target} full") for dtype in ("fp32", "fp64") for target in ("", " mixed", " probabilities")),
)


def tempered_ce_launch(classes: int, dtype: torch.dtype, variant: str) -> None:
    """Forward and backward through the launch code of kernels/tempered_ce/triton.py, on uninitialised tensors."""
    from fastrank.kernels.tempered_ce import triton as kernels
    from fastrank.kernels.tempered_loss.layout import accumulator

    nested, full, split = (word in variant.split() for word in ("nested", "full", "split"))
    rows = 4 if split else 4 * _ROWS  # so many that a program a row is enough
    shape = (rows // 2, classes, 2) if nested else (rows, classes)
    logits, target = torch.empty(shape, dtype=dtype), torch.zeros((shape[0], *shape[2:]), dtype=torch.int64)
    acc = accumulator(dtype)
    second = share = None
    if "mixed" in variant:
        second, share = target.clone(), torch.ones(shape[0], dtype=acc)
    elif "probabilities" in variant:
        target = torch.empty(shape, dtype=acc)
    temperature = torch.ones(shape[0]) if variant == "per-sample T" else torch.ones(()) if full else None
    weight = torch.ones(classes) if full else None
    smoothing, power = (0.1, 2) if full else (0.0, 0)
    # Where a rank of probabilities is asked for, rows stay whole.
    stats = full and not (split and target.is_floating_point())
    loss, state, denominator, _ = kernels.forward(
        logits, target, second, share, 1.0, temperature, weight, -100, "mean", smoothing, power, stats, False
    )
    assert loss.dtype == acc
    if not split:  # the gradient is cut the same way for any number of rows
        kernels.backward(
            loss, logits, target, second, share, state, denominator, 1.0, temperature, weight, -100, smoothing, power
        )


def _tempered_ce() -> list[TritonBuild]:
    builds: dict[str, TritonBuild] = {}
    for dtype, variant in _VARIANTS:
        for classes in TEMPERED_CE_CLASSES[-1:] if "split" in variant else TEMPERED_CE_CLASSES:

            def name(launch, dtype=dtype, variant=variant):
                constants, kernel = launch["constants"], launch["kernel"].__name__.removesuffix("_kernel")
                return f"{kernel} {constants['ROWS']}x{constants['CLASSES']} {dtype} {variant}"

            call = lambda c=classes, d=_DTYPES[dtype], v=variant: tempered_ce_launch(c, d, v)  # noqa: E731
            for build in _recorded("tempered_ce", call, name):
                builds.setdefault(build.name, build)
    return list(builds.values())


#: "soft": class probabilities, weight, smoothing and a temperature tensor; "nested": two labels, [N, C, 2].
_MSE_VARIANTS = (
    ("fp32", "plain"), ("bf16", "plain"), ("fp32", "soft"), ("fp16", "soft"), ("fp64", "soft"), ("fp32", "nested"),
)  # fmt: skip


def tempered_mse_launch(classes: int, dtype: torch.dtype, variant: str, rows: int = 1024) -> None:
    """Forward and backward through the launch code of kernels/tempered_mse/triton.py, on uninitialised tensors."""
    from fastrank.kernels.tempered_mse import triton as kernels

    shape = (rows // 2, classes, 2) if variant == "nested" else (rows, classes)
    logits, labels = torch.empty(shape, dtype=dtype), torch.zeros((shape[0], *shape[2:]), dtype=torch.int64)
    target, second, share, temperature, weight, smoothing = labels, None, None, None, None, 0.0
    if variant == "nested":
        second, share = labels, torch.ones(())
    if variant == "soft":
        target, temperature, weight, smoothing = torch.empty(shape), torch.ones(()), torch.ones(classes), 0.1
    loss, state, denominator, _ = kernels.forward(
        logits, target, second, share, 1.0, temperature, weight, -100, "mean", smoothing, 0, False
    )
    kernels.backward(
        loss, logits, target, second, share, state, denominator, 1.0, temperature, weight, -100, smoothing, 0
    )


def _tempered_mse() -> list[TritonBuild]:
    builds: dict[str, TritonBuild] = {}
    for (dtype, variant), classes in itertools.product(_MSE_VARIANTS, TEMPERED_CE_CLASSES):

        def name(launch, dtype=dtype, variant=variant):
            constants, kernel = launch["constants"], launch["kernel"].__name__.removesuffix("_kernel")
            if kernel == "reduce":
                return f"reduce {constants['ACC']} {'weights' if constants['WEIGHTED_MEAN'] else 'rows'}"
            return f"{kernel} {constants['ROWS']}x{constants['CLASSES']} {dtype} {variant}"

        call = lambda c=classes, d=_DTYPES[dtype], v=variant: tempered_mse_launch(c, d, v)  # noqa: E731
        for build in _recorded("tempered_mse", call, name):
            builds.setdefault(build.name, build)
    return list(builds.values())


def _named(kernel: str, size: int, dtype: str, variant: str) -> str:
    return f"{kernel.removesuffix('_kernel')} {size} {dtype} {variant}"


def _small_eigh() -> list[TritonBuild]:
    from fastrank.kernels.small_eigh import triton as kernels

    builds: dict[str, TritonBuild] = {}
    shift = torch.empty(1, dtype=torch.float64)
    calls = [(m, kernels.eigvalsh_many) for m in (64, 256, 512)] + [(m, kernels.eigh_many) for m in (16, 64)]
    for m, call in [*calls, (64, lambda G: kernels.inertia_many(G, shift))]:
        G = [torch.empty(m, m, dtype=torch.float64)]
        named = lambda launch: _named(launch["kernel"].__name__, launch["constants"]["N"], "fp64", "values")  # noqa: E731
        for build in _recorded("small_eigh", lambda call=call, G=G: call(G), named):
            builds.setdefault(build.name, build)
    return list(builds.values())


def _rsvd() -> list[TritonBuild]:
    from fastrank.kernels.rsvd import cosines_triton, orthonormal_triton, step_triton, triton

    builds: dict[str, TritonBuild] = {}
    cpu = torch.device("cpu")
    calls = [("fp32", 64, lambda: triton.test_matrix(256, 64, 1, 2, "gaussian", torch.float32, cpu))]
    for name, q in (("fp32", 64), ("bf16", 64), ("fp64", 64), ("fp32", 16)):
        calls.append(
            (name, q, lambda n=name, q=q: triton.sketch(torch.empty(256, 4096, dtype=_DTYPES[n]), q, 1, 2, "gaussian"))
        )
    for name, q in (("fp32", 64), ("fp32", 16)):
        calls.append(
            (name, q, lambda q=q: step_triton.subspace_step_many([torch.empty(256, 4096)], [torch.empty(4096, q)], 15))
        )
    calls.append(("fp32", 64, lambda: orthonormal_triton.orthonormal_many([torch.empty(4096, 64)])))
    for name in ("fp32", "fp64"):
        rows = torch.empty(15, 4096, dtype=_DTYPES[name])
        calls.append((name, 16, lambda rows=rows: cosines_triton.cosines_many([rows], [rows])))
    for dtype, q, call in calls:

        def name(launch, dtype=dtype, q=q):
            kernel, constants = launch["kernel"].__name__, launch["constants"]
            variant = constants.get("STAGE") or {True: "first", False: "next"}.get(constants.get("FIRST"), "float64")
            if kernel in ("project_kernel", "columns_kernel", "sketch_kernel", "add_spans_kernel"):
                variant = "plain" if constants.get("FIRST", True) else "next plain"
            if variant == "out" and "facts_ptr" in constants:
                variant += " alone"
            if kernel in (
                "cosines_kernel",
                "rotations_kernel",
                "left_kernel",
                "residual_kernel",
                "finish_kernel",
                "rows_kernel",
            ):
                variant = "plain"
            return _named(kernel, q, dtype, variant)

        for build in _recorded("rsvd", call, name):
            if build.kernel.__name__ != "jacobi_kernel" and (
                q == 64 or build.kernel.__name__ in ("sketch_kernel", "right_kernel", "cosines_kernel")
            ):
                builds.setdefault(build.name, build)
    return list(builds.values())


TRITON: tuple[TritonBuild, ...] = (
    (*_tempered_ce(), *_tempered_mse(), *_small_eigh(), *_rsvd()) if COMPILES_TRITON else ()
)
CUDA: tuple[CudaBuild, ...] = (CudaBuild("gram"), CudaBuild("gram", "patches"))
