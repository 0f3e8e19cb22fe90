"""Where figures come from: a description of the machine, and the peaks it reaches today.

The peaks are measured beside the benchmarks, with torch's copy and matrix product, rather than taken from a data
sheet: they are what this machine gives to anyone now, with these threads and these neighbours.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from fastrank.kernels import backend

import fastrank
from fastrank.record.environment import git_state

#: Bytes of the copied buffer: beyond any last-level cache; and within a core's L2, or a GPU's.
COPY_BYTES, CACHED_BYTES = 512 << 20, {"cpu": 512 << 10, "cuda": 8 << 20}
#: Side of the multiplied matrices, by device.
GEMM_SIDE = {"cpu": 1024, "cuda": 8192}


def describe(device: str) -> dict:
    """What a reader needs to doubt a figure: hardware, versions, threads, load."""
    core = backend.core()
    facts = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "load_average": round(os.getloadavg()[0], 2),
        "isa": core.isa if core else "no native core",
        "torch_isa": torch.backends.cpu.get_cpu_capability().lower(),
        "blas": _blas(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "triton": _version("triton"),
        "fastrank": fastrank.__version__,
        "commit": _commit(),
        "device": device,
    }
    return facts | (_gpu(device) if device.startswith("cuda") else {})


def summary(facts: dict) -> str:
    """The description as two or three lines of text."""
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads (OMP_WAIT_POLICY "
        f"{facts['omp_wait_policy']}), load {facts['load_average']}, kernels {facts['isa']}, "
        f"torch {facts['torch_isa']}, {facts['blas']}",
        f"torch {facts['torch']}, numpy {facts['numpy']}, triton {facts['triton']}, Python {facts['python']}, "
        f"fastrank {facts['fastrank']} at {facts['commit']}",
    ]
    if "gpu" in facts:
        lines.append(
            f"{facts['gpu']}, sm_{facts['capability']}, {facts['memory_gb']} GB, {facts['sms']} SMs, "
            f"driver {facts['driver']}, CUDA {facts['cuda']}, clocks {facts['clocks']}"
        )
    if facts["load_average"] > facts["cores"] * 0.5 and not facts["device"].startswith("cuda"):
        lines.append(f"NOTE: other work keeps {facts['load_average']} cores busy; trust ratios, not milliseconds")
    return "\n".join(lines)


def peaks(device: str, seconds: float = 0.3) -> dict[str, float]:
    """Best of several tries: bytes/s of a copy (read + written), from memory and cached; FLOP/s of a product."""
    kind = torch.device(device).type
    found = {"copy": _copy(COPY_BYTES, device, seconds), "copy_cached": _copy(CACHED_BYTES[kind], device, seconds)}
    units = {"fp32": torch.float32, "fp64": torch.float64}
    if kind == "cuda":
        units["bf16_tensor"] = torch.bfloat16
    side = GEMM_SIDE[kind]
    for unit, dtype in units.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        with _no_tf32():
            found[unit] = 2 * side**3 / _best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, seconds)
    return found


def higher(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Of two measurements of the peaks: what other work took from one of them it may have left in the other."""
    return {name: max(rate, second[name]) for name, rate in first.items()}


def slug(device: str) -> str:
    """The device's name as a file name: NVIDIA-H100-80GB-HBM3, or the processor's."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_model()
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def _copy(size: int, device: str, seconds: float) -> float:
    source = torch.zeros(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    repeats = max(1, (8 << 20) // size)  # a cached copy is shorter than the clock's reading

    def run() -> None:
        for _ in range(repeats):
            target.copy_(source)

    return 2 * size * repeats / _best(run, device, seconds)


def _best(run: Callable[[], object], device: str, seconds: float) -> float:
    """Shortest of the calls that fit `seconds`, five at least."""
    wait = (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda: None)
    best, deadline, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < 5 or time.perf_counter() < deadline:
        wait()
        start = time.perf_counter()
        run()
        wait()
        best, calls = min(best, time.perf_counter() - start), calls + 1
    return best


class _no_tf32:
    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self.before)


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.M)
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _blas() -> str:
    config = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version (\S+)", config)
    info = re.search(r"BLAS_INFO=(\w+)", config)
    return f"MKL {mkl.group(1)}" if mkl else (info.group(1) if info else "unknown BLAS")


def _gpu(device: str) -> dict:
    properties = torch.cuda.get_device_properties(device)
    query = _smi("driver_version,clocks.sm,clocks.mem")
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "memory_gb": round(properties.total_memory / 2**30),
        "sms": properties.multi_processor_count,
        "driver": query[0] if query else "unknown",
        "clocks": " / ".join(query[1:]) if query else "unknown",
        "cuda": torch.version.cuda,
    }


def _smi(fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [value.strip() for value in output.splitlines()[0].split(",")] if output else []


def _version(distribution: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"


def _commit() -> str:
    state = git_state(Path(__file__).parents[1])
    return "no repository" if state is None else state["commit"][:12] + (" with changes" if state["dirty"] else "")
