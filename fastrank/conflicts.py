"""What in this process or machine is known to make fastrank wrong, slow or absent, each with its cure.

A check is one function below: it returns what it found and what cures it, or None. `fastrank doctor` prints them.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

from fastrank.kernels import backend

Conflict = tuple[str, str]  # what is wrong, what cures it


def conflicts() -> list[Conflict]:
    """Every known conflict of this process, in the order of `CHECKS`."""
    return [found for check in CHECKS if (found := check()) is not None]


def interpreter() -> Conflict | None:
    """Triton's interpreter is for tests: thousands of times slower, and wrong for bfloat16 `tl.dot` in places."""
    if backend.interpreting():
        return "TRITON_INTERPRET=1: Triton kernels run in the interpreter", "unset TRITON_INTERPRET"
    return None


def too_many_threads() -> Conflict | None:
    """More threads than this process may use cores (an affinity mask or a container's quota)."""
    cores, threads = usable_cores(), torch.get_num_threads()
    if threads <= cores:
        return None
    return f"{threads} threads on {cores} usable cores", f"export OMP_NUM_THREADS={max(1, int(cores))}"


def bad_thread_count() -> Conflict | None:
    """What OpenMP cannot read it leaves out, with a line on stderr at most."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        value = os.environ.get(name)
        if value is not None and not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", value):
            return f"{name}={value!r} is no number of threads and is ignored", f"unset {name}, or export a whole number"
    return None


def instruction_set() -> Conflict | None:
    """FASTRANK_ISA forces a lower instruction set than the processor's best, for tests."""
    wanted, core = os.environ.get("FASTRANK_ISA"), backend.core()
    if wanted is None or core is None:
        return None
    if wanted != core.isa:
        return f"FASTRANK_ISA={wanted!r} is not among {core.built_isas} or not this processor's", "unset FASTRANK_ISA"
    return f"FASTRANK_ISA={wanted} may hold the native core below what the processor can", "unset FASTRANK_ISA"


def hidden_devices() -> Conflict | None:
    """A GPU that the driver knows and CUDA_VISIBLE_DEVICES hides."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or driver_cuda() is None or torch.cuda.is_available():
        return None
    return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU from torch", "unset CUDA_VISIBLE_DEVICES"


def openmp_runtimes() -> Conflict | None:
    """GNU's and Intel's OpenMP in one process keep a pool of threads each, and have been known to hang after a fork."""
    loaded = {name for name in ("libgomp", "libiomp5", "libomp") if _loaded(name)}
    if len(loaded) < 2:
        return None
    return (
        f"{' and '.join(sorted(loaded))} are both loaded: two pools of threads",
        "install numpy, scipy and torch from one source (all pip or all conda)",
    )


def triton_version() -> Conflict | None:
    """torch pins the Triton release that its own compiler and our kernels were tested with."""
    try:
        installed = importlib.metadata.version("triton")
        required = importlib.metadata.requires("torch") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pinned = next((m[1] for line in required if (m := re.match(r"triton\s*==\s*([\w.]+)", line))), None)
    if pinned is None or pinned == installed:
        return None
    return f"triton {installed} beside a torch that asks for {pinned}", f"pip install triton=={pinned}"


def driver_too_old() -> Conflict | None:
    """A kernel linked against a newer CUDA major than the driver knows fails at its first launch."""
    core, driver = backend.core(), driver_cuda()
    if driver is None or core is None or not core.cuda or core.cuda_version // 1000 <= driver // 1000:
        return None
    return (
        f"the core was built with CUDA {version(core.cuda_version)}, the driver knows up to {version(driver)}",
        "update the NVIDIA driver, or reinstall with that CUDA's nvcc on PATH",
    )


def no_device_code() -> Conflict | None:
    """A device that none of the built architectures runs on."""
    if not torch.cuda.is_available():
        return None
    for index in range(torch.cuda.device_count()):
        status = backend.cuda_status(index)
        if not status.available and backend.core() is not None and backend.core().cuda:
            return f"{torch.cuda.get_device_name(index)}: {status.reason}", status.cure
    return None


def cupy_version() -> Conflict | None:
    """CuPy for another CUDA major than torch's loads a second set of CUDA libraries."""
    found = [d.name for d in importlib.metadata.distributions() if (d.name or "").lower().startswith("cupy-cuda")]
    if len(found) > 1:
        return f"{' and '.join(sorted(found))} are installed together", "keep one: pip uninstall the others"
    major = (torch.version.cuda or "").split(".")[0]
    if found and major and not found[0].lower().startswith(f"cupy-cuda{major}"):
        return f"{found[0]} beside a torch built for CUDA {torch.version.cuda}", f"pip install cupy-cuda{major}x"
    return None


CHECKS: tuple[Callable[[], Conflict | None], ...] = (
    interpreter,
    too_many_threads,
    bad_thread_count,
    instruction_set,
    hidden_devices,
    openmp_runtimes,
    triton_version,
    driver_too_old,
    no_device_code,
    cupy_version,
)


def waiting_threads_spin() -> bool:
    """Whether libgomp's threads spin while they wait: with another busy process on the same cores, steps took ten
    times as long. The command line sets the policy for itself; what counts is the shell that a script starts from."""
    return _shell_variable("OMP_WAIT_POLICY").upper() != "PASSIVE"


def usable_cores() -> float:
    """Cores that this process may use: its affinity mask, cut by a cgroup's quota."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores


def driver_cuda() -> int | None:
    """CUDA version of the driver as NVIDIA writes it (13000 for 13.0); None without a driver."""
    import ctypes

    try:
        library, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        return number.value if library.cuDriverGetVersion(ctypes.byref(number)) == 0 else None
    except (OSError, AttributeError):
        return None


def version(number: int) -> str:
    """13000 as 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _shell_variable(name: str) -> str:
    """As the process was started with, whatever this process has set since."""
    try:
        started_with = Path("/proc/self/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return os.environ.get(name, "")
    return next((line.partition("=")[2] for line in started_with if line.startswith(name + "=")), "")


def _loaded(name: str) -> bool:
    try:
        return bool(re.search(rf"/{name}[-.][^/\n]*so", Path("/proc/self/maps").read_text()))
    except OSError:
        return False
