"""`fastrank doctor`: which backends are live, why the others are not, and what cures it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

import numpy
import torch

from fastrank import __version__
from fastrank.extras import EXTRAS
from fastrank.kernels import backend


def doctor() -> dict[str, str]:
    """One line a subject, as `fastrank doctor` prints them: {subject: finding}; a cure follows after "->"."""
    native, triton = backend.native_status(), backend.triton_status()
    core, report = backend.core(), backend.build_report()
    findings = {
        "fastrank": f"{__version__} at {os.path.dirname(__file__)}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "torch": f"{torch.__version__}, numpy {numpy.__version__}, triton {_version('triton')}",
        "platform": f"{platform.platform()}, {os.cpu_count()} CPUs",
        "threads": _threads(),
        "C++ compiler": _compiler(),
        "nvcc": _nvcc(),
        "GPU": _gpu(),
        "native core": f"live, instruction set {core.isa} of {core.built_isas}" if core else _problem(native),
        "native CUDA": "built" if core and core.cuda else _no_cuda(report),
        "triton": "live" + (f" ({triton.reason})" if triton.reason else "") if triton.available else _problem(triton),
        "CPU tensors": "native C++" if core else "torch reference (slower, same figures)",
    }
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages.values() if _version(name) == "missing"]
        findings[f"extra [{extra}]"] = (
            f"missing {', '.join(missing)} -> pip install 'fastrank[{extra}]'" if missing else "complete"
        )
    return findings


def describe() -> str:
    """The findings as text, one a line, aligned; ready to be pasted into a bug report."""
    findings = doctor()
    width = max(map(len, findings))
    return "\n".join(f"{subject:<{width}}  {finding}" for subject, finding in findings.items())


def _threads() -> str:
    policy = os.environ.get("OMP_WAIT_POLICY")
    advice = "" if policy else " -> export OMP_WAIT_POLICY=PASSIVE if other processes share the cores"
    return f"{torch.get_num_threads()} by torch and the native core, OMP_WAIT_POLICY {policy or 'unset'}{advice}"


def _problem(status: backend.Status) -> str:
    return f"not available: {status.reason} -> {status.cure}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _first_line(*command: str) -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run ({error})"
    return output.strip().splitlines()[-1 if "nvcc" in command[0] else 0] if output.strip() else "says nothing"


def _compiler() -> str:
    path = next((p for name in ("c++", "g++", "clang++") if (p := shutil.which(name))), None)
    cure = "none on PATH -> `apt install g++`, then `pip install -e .` again"
    return _first_line(path, "--version") if path else cure


def _nvcc() -> str:
    path = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    return _first_line(path, "--version") if path else "none on PATH (needed only to build the CUDA kernels)"


def _gpu() -> str:
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    built = torch.version.cuda
    return f"none visible to torch ({f'built for CUDA {built}' if built else 'a CPU-only build of torch'})"


def _no_cuda(report: dict) -> str:
    if report.get("cuda_error"):
        return f"not built: {report['cuda_error']} -> FASTRANK_CUDA=ON pip install -e . -v shows why"
    if report.get("requested_cuda") == "OFF":
        return "not built: FASTRANK_CUDA=OFF was asked for -> FASTRANK_CUDA=ON pip install -e ."
    return "not built: no nvcc was found -> install the CUDA toolkit, then FASTRANK_CUDA=ON pip install -e ."
