"""Which backends are live in this process, and the one rule that picks among them."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

IMPLS = ("reference", "native", "triton")


@dataclass(frozen=True)
class Status:
    """Whether a backend can run here; if not, why, and what cures it."""

    available: bool
    reason: str = ""
    cure: str = ""


@cache
def _load_core() -> tuple[ModuleType | None, Status]:
    try:
        from fastrank.kernels import _core
    except ImportError as error:
        report = build_report()
        if report.get("native") is False:
            return None, Status(
                False,
                "fastrank was installed without a C++ compiler",
                "install one (Debian/Ubuntu: `apt install g++`), then run `pip install -e .` again",
            )
        return None, Status(False, f"the native core does not load ({error})", "run `pip install -e .` again")
    return _core, Status(True)


def core() -> ModuleType | None:
    """The extension module `fastrank.kernels._core`, or None where it is missing."""
    return _load_core()[0]


def build_report() -> dict:
    """What `setup.py` asked for and what came of it; empty where the report is missing."""
    path = Path(__file__).with_name("_build_report.json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def native_status() -> Status:
    return _load_core()[1]


@cache
def triton_status() -> Status:
    try:
        import triton  # noqa: F401  (asked only whether it imports)
    except ImportError as error:
        return Status(False, f"triton does not import ({error})", "pip install triton (Linux)")
    if interpreting():
        return Status(True, "interpreter mode (TRITON_INTERPRET=1)")
    if not torch.cuda.is_available():
        return Status(False, "no CUDA device", "run on a machine with an NVIDIA GPU and a CUDA build of torch")
    return Status(True)


def interpreting() -> bool:
    """Whether Triton kernels run on the CPU in its interpreter: fixed by the environment at import."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def threads() -> int:
    """Threads a native kernel may use: those torch would use."""
    return torch.get_num_threads()


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def choose(op: str, tensor: torch.Tensor, impl: str | None, supported: tuple[str, ...]) -> str:
    """The implementation of `op` that runs for `tensor`: `impl` if given, else the best of `supported`.

    CUDA tensors go to Triton or native CUDA, CPU tensors to native, everything else to the reference. Raises
    ValueError for an unknown `impl` and RuntimeError for one that cannot run here; a missing native core is
    stated once and the reference takes its place.
    """
    if impl is not None:
        if impl not in IMPLS:
            raise ValueError(f"impl: expected one of {', '.join(IMPLS)} or None, got {impl!r}")
        problem = _problem(tensor, impl, supported)
        if problem:
            raise RuntimeError(f"impl={impl!r} cannot run {op} on a {tensor.device.type} tensor: {problem}")
        return impl
    order = ("triton", "native") if tensor.device.type == "cuda" else ("native",)
    for candidate in order:
        if candidate in supported and not _problem(tensor, candidate, supported):
            return candidate
    if tensor.device.type == "cpu" and "native" in supported and not native_status().available:
        status = native_status()
        _say_once(f"fastrank runs on its slower torch reference: {status.reason}; {status.cure}")
    return "reference"


def _problem(tensor: torch.Tensor, impl: str, supported: tuple[str, ...]) -> str:
    """Why `impl` cannot take `tensor`; empty if it can."""
    if impl == "reference":
        return ""
    if impl not in supported:
        return f"this op has only {', '.join(supported)}"
    device = tensor.device.type
    if impl == "triton":
        status = triton_status()
        if not status.available:
            return f"{status.reason}; {status.cure}"
        return "" if device == "cuda" or (device == "cpu" and interpreting()) else "Triton needs a CUDA tensor"
    status = native_status()
    if not status.available:
        return f"{status.reason}; {status.cure}"
    if device == "cpu":
        return ""
    if device == "cuda":
        return "" if core().cuda else "the native core was built without CUDA (set FASTRANK_CUDA=ON and reinstall)"
    return f"no native kernel for {device}"
