"""Which backends are live in this process, and the one rule that picks among them."""

from __future__ import annotations

import json
import os
import threading
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from fastrank.kernels.tracing import constant

IMPLS = ("reference", "native", "triton")

#: What implements each op for tensors of each kind of device, best first. Every op also has its torch reference, which
#: runs anywhere.
OPS = {
    "tempered_ce": {"cpu": ("native",), "cuda": ("triton",)},
    "tempered_mse": {"cpu": ("native",), "cuda": ("triton",)},
    "gram_accumulate_": {"cpu": ("native",), "cuda": ("native",)},
    "gram_dual": {"cpu": ("native",), "cuda": ("native",)},
    "gram_patches_": {"cpu": ("native",), "cuda": ("native",)},
    "patch_rows": {"cpu": ("native",)},
    "eigvalsh_many": {"cpu": ("native",), "cuda": ("triton",)},
    "inertia_many": {"cpu": ("native",), "cuda": ("triton",)},
    "eigh_many": {"cpu": ("native",), "cuda": ("triton",)},
    "test_matrix": {"cpu": ("native",), "cuda": ("triton",)},
    "sketch": {"cpu": ("native",), "cuda": ("triton",)},
    "subspace_step_many": {"cpu": ("native",), "cuda": ("triton",)},
    "orthonormal_many": {"cpu": ("native",), "cuda": ("triton",)},
    # On the CPU torch's products, of 54 layers in 1.4 ms where rows are short and bound by memory where they are long.
    "cosines_many": {"cuda": ("triton",)},
    "distances_many": {"cpu": ("native",)},
    "products_many": {"cpu": ("native",)},
}


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


#: `threads` of a thread that holds torch itself to one (fastrank.precision.one_thread), 0 elsewhere.
held = threading.local()


def threads() -> int:
    """Threads a native kernel may use: those torch would use."""
    return getattr(held, "threads", 0) or torch.get_num_threads()


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


@cache
def cuda_status(index: int = 0) -> Status:
    """Whether the native core's CUDA kernels can run on CUDA device `index`."""
    native = native_status()
    if not native.available:
        return native
    if not core().cuda:
        report = build_report()
        if report.get("cuda_error"):
            return Status(False, f"not built: {report['cuda_error']}", "FASTRANK_CUDA=ON pip install -e . -v shows why")
        if report.get("requested_cuda") == "OFF":
            return Status(False, "not built: FASTRANK_CUDA=OFF was asked for", "FASTRANK_CUDA=ON pip install -e .")
        return Status(
            False,
            "not built: no nvcc was found",
            "install the CUDA toolkit, then FASTRANK_CUDA=ON pip install -e .",
        )
    if not torch.cuda.is_available():
        return Status(False, "no CUDA device", "run on a machine with an NVIDIA GPU and a CUDA build of torch")
    major, minor = torch.cuda.get_device_capability(index)
    if not _has_code(major, minor, core().cuda_architectures):
        return Status(
            False,
            f"no code for sm_{major}{minor} among {core().cuda_architectures}",
            "pip install -e . again with an nvcc that knows this architecture",
        )
    return Status(True)


def _has_code(major: int, minor: int, architectures: str) -> bool:
    """Whether a device runs any of `architectures`, in CMake's words: "80-real" is machine code, for devices of the
    same major and no lower minor; "90" is that and PTX, which the driver compiles for any later device."""
    for name in architectures.split(","):
        number, _, kind = name.partition("-")
        own = divmod(int(number), 10)
        if kind != "virtual" and own[0] == major and own[1] <= minor:
            return True
        if kind != "real" and own <= (major, minor):
            return True
    return False


def choose(op: str, tensor: torch.Tensor, impl: str | None) -> str:
    """The implementation of `op` that runs for `tensor`: `impl` if given, else the best that `OPS` names.

    Raises ValueError for an unknown `impl` and RuntimeError for one that cannot run here; a missing native core is
    stated once and the reference takes its place.
    """
    device = tensor.device.type
    if impl is not None:
        if impl not in IMPLS:
            raise ValueError(f"impl: expected one of {', '.join(IMPLS)} or None, got {impl!r}")
        reason = problem(op, device, impl, tensor.device.index or 0)
        if reason:
            raise RuntimeError(f"impl={impl!r} cannot run {op} on a {device} tensor: {reason}")
        return impl
    candidates = OPS[op].get(device, ())
    for candidate in candidates:
        if not problem(op, device, candidate, tensor.device.index or 0):
            return candidate
    if device == "cpu" and "native" in candidates:
        status = native_status()
        _say_once(f"fastrank runs on its slower torch reference: {status.reason}; {status.cure}")
    return "reference"


_chosen: dict[tuple[str, str, str | None], str] = {}


@constant
def chosen(op: str, device: str, impl: str | None) -> str:
    """`choose` for any tensor on a kind of device: a constant of the process, so also of a compiled graph."""
    if (op, device, impl) not in _chosen:
        _chosen[op, device, impl] = choose(op, torch.empty(0, device=device), impl)
    return _chosen[op, device, impl]


def problem(op: str, device: str, impl: str, index: int = 0) -> str:
    """Why `impl` cannot run `op` on tensors of `device`, and what cures it; empty if it can."""
    if impl == "reference":
        return ""
    supported = sorted({name for names in OPS[op].values() for name in names})
    if impl not in supported:
        return f"this op has only {', '.join(supported)}"
    if impl == "triton":
        status = triton_status()
        if status.available and device != "cuda" and not (device == "cpu" and interpreting()):
            return "Triton needs a CUDA tensor"
    elif device == "cpu":
        status = native_status()
    elif device == "cuda":
        status = cuda_status(index)
    else:
        return f"no native kernel for {device}"
    if not status.available:
        return f"{status.reason}; {status.cure}"
    return "" if device == "cpu" or impl in OPS[op].get(device, ()) else f"no {impl} kernel for {device} tensors"
