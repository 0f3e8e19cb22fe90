"""`fastrank doctor`: which backends are live, why the others are not, and what cures it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import torch

from fastrank import __version__
from fastrank.conflicts import conflicts, driver_cuda, usable_cores, version, waiting_threads_spin
from fastrank.extras import EXTRAS
from fastrank.kernels import backend

#: Environment variables that change what runs, and where: by name, or by the beginning of it.
SETTINGS = (
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "FASTRANK_", "TRITON_", "OMP_", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "PYTORCH_",
)  # fmt: skip


def doctor() -> dict[str, str]:
    """One line a subject, as `fastrank doctor` prints them: {subject: finding}; a cure follows after "->".

    Every op has a line of its own, "op <name>", and every known conflict (fastrank/conflicts.py) "conflict <number>".
    """
    native, triton, cuda = backend.native_status(), backend.triton_status(), backend.cuda_status()
    core = backend.core()
    findings = {
        "fastrank": f"{__version__} at {os.path.dirname(__file__)}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "torch": f"{torch.__version__}, numpy {numpy.__version__}, triton {_version('triton')}",
        "platform": f"{platform.platform()}, {_processor()}",
        "threads": _threads(),
        "environment": _environment(),
        "BLAS": _blas(),
        "C++ compiler": _compiler(),
        "nvcc": _nvcc(),
        "driver": _driver(),
        **_devices(),
        "native core": f"live, instruction set {core.isa} of {core.built_isas}{_tiles(core)}"
        if core
        else _problem(native),
        "native CUDA": _cuda_code() + ("live" if cuda.available else _problem(cuda)),
        "triton": "live" + (f" ({triton.reason})" if triton.reason else "") if triton.available else _problem(triton),
        **{f"op {op}": _op(op) for op in backend.OPS},
    }
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages.values() if _version(name) == "missing"]
        findings[f"extra [{extra}]"] = (
            f"missing {', '.join(missing)} -> pip install 'fastrank[{extra}]'" if missing else "complete"
        )
    found = conflicts()
    for number, (wrong, cure) in enumerate(found, 1):
        findings[f"conflict {number}"] = f"{wrong} -> {cure}"
    return findings if found else findings | {"conflicts": "none known"}


def describe() -> str:
    """The findings as text, one a line, aligned; ready to be pasted into a bug report."""
    findings = doctor()
    width = max(map(len, findings))
    return "\n".join(f"{subject:<{width}}  {finding}" for subject, finding in findings.items())


def _tiles(core) -> str:
    return ", and AMX's integer tiles" if core.gram_digits else ""


def _processor() -> str:
    try:
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return f"{model[1] if model else platform.processor() or 'processor unknown'}, {os.cpu_count()} CPUs"


def _threads() -> str:
    found = f"{torch.get_num_threads()} by torch and the native core, {usable_cores():g} usable cores"
    advice = "; if other processes share them -> export OMP_WAIT_POLICY=PASSIVE before scripts of your own"
    return found + (advice if waiting_threads_spin() else "")


def _environment() -> str:
    found = (f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS))
    return ", ".join(found) or "nothing set that matters here"


def _blas() -> str:
    """torch's own, and any other that numpy or scipy brought."""
    config = torch.__config__.show()
    name = re.search(r"BLAS_INFO=(\w+)", config)
    release = re.search(r"Math Kernel Library Version ([\d.]+)", config)
    found = f"torch {name[1] if name else 'unknown'}{' ' + release[1] if release else ''}"
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return found
    others = {f"{p['internal_api']} {p['version']}" for p in threadpool_info() if p["user_api"] == "blas"}
    return ", ".join([found, *(f"numpy/scipy {other}" for other in sorted(others) if "mkl" not in other)])


def _problem(status: backend.Status) -> str:
    return f"not available: {status.reason} -> {status.cure}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _run(*command: str) -> str:
    """What the command prints, never empty."""
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run ({error})"
    return output.strip() or "says nothing"


def _first_line(*command: str) -> str:
    return _run(*command).splitlines()[0]


def _compiler() -> str:
    path = next((p for name in ("c++", "g++", "clang++") if (p := shutil.which(name))), None)
    if path:
        return _first_line(path, "--version")
    if backend.core():
        return "none on PATH (needed only to build the core, which is there)"
    return "none on PATH -> `apt install g++`, then `pip install -e .` again"


def _nvcc() -> str:
    path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if not path:
        return "none on PATH (needed only to build the CUDA kernels)"
    return f"{_run(path, '--version').splitlines()[-1]} ({path})"


def _driver() -> str:
    driver = driver_cuda()
    if driver is None:
        return "no NVIDIA driver (needed only to run on a GPU)"
    program = shutil.which("nvidia-smi")
    release = _first_line(program, "--query-gpu=driver_version", "--format=csv,noheader") if program else ""
    return f"{release} (up to CUDA {version(driver)})".strip()


def _devices() -> dict[str, str]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = f"built for CUDA {built}" if built else "a CPU-only build of torch"
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            reason += f", CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r}"
        return {"GPU": f"none visible to torch ({reason})"}
    found = {}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found[f"GPU {index}"] = (
            f"{facts.name}, sm_{facts.major}{facts.minor}, {facts.multi_processor_count} multiprocessors, "
            f"{facts.total_memory / 2**30:.0f} GiB"
        )
    return found


def _cuda_code() -> str:
    core = backend.core()
    if core is None or not core.cuda:
        return ""
    return f"built with CUDA {version(core.cuda_version)} for {core.cuda_architectures}, "


def _op(op: str) -> str:
    """What runs it for tensors of each kind of device, and why not what would be best."""
    return "; ".join(f"{device} -> {_runs(op, device)}" for device in ("cpu", "cuda"))


def _runs(op: str, device: str) -> str:
    best = next(iter(backend.OPS[op].get(device, ())), "reference")
    if device == "cuda" and not torch.cuda.is_available():
        return f"{best} (no device here)"
    reason = backend.problem(op, device, best)
    if not reason:
        return best
    return f"reference, since {best}: {reason}"
