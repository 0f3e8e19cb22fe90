"""Where a run was made: versions, processor, threads, devices, and the state of the working directory's repository."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

import fastrank
from fastrank.kernels import backend


def environment() -> dict:
    """Versions and hardware that could change a figure; asks nothing that would start a device."""
    core = backend.core()
    return {
        "fastrank": fastrank.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "isa": core.isa if core else torch.backends.cpu.get_cpu_capability().lower(),
        "native_core": core is not None,
        "devices": _devices(),
    }


def _devices() -> list[str]:
    # Naming a CUDA device creates a context on it (hundreds of MB): done only where the run already has one.
    if not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def git_state(directory: Path) -> dict | None:
    """{"commit": hash, "dirty": tracked files differ from it}, or None outside a repository or without git."""
    try:
        commit = _git(directory, "rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(_git(directory, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    # A status may refresh and rewrite the index; a measurement must not change the repository it describes.
    command = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout
