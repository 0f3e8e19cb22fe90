"""What the cost model predicts of each kernel, and what the device takes: `python benchmarks/predict.py DEVICE [JSON]`.

On CUDA the profiler gives every kernel's own time, from a cold L2. On the CPU, which the model does not describe,
the whole call is set against the model's roofline on measured peaks, only to try this file.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from fastrank.kernels import cost
from fastrank.kernels.cost import DEVICES, Device, Launch
from fastrank.kernels.gram import cost as gram_cost
from fastrank.kernels.gram import gram_accumulate_, gram_dual
from fastrank.kernels.tempered_ce import cost as loss_cost
from fastrank.kernels.tempered_ce import tempered_cross_entropy
from harness import l2_flush

CALLS = 10
#: Products that have a data sheet in the model, by the exact name that the driver gives. A PCIe, NVL or Grace variant
#: has other figures under a similar name, and a MIG slice has fewer multiprocessors.
SHEETS = {
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}
#: Multiprocessors by NVIDIA's own account; of the B200 there is none.
MULTIPROCESSORS = {name: DEVICES[name].sms for name in ("a100", "h100", "h200")}
#: The peak that torch's fp64 product reaches on a GPU: cuBLAS takes tensor cores where it finds them, and does not say.
FP64_MEASURED = "fp64_tensor-or-vector"


def losses(device: str):
    sizes = ((256, 1000), (256, 21841), (8192, 32000), (8192, 128256)) if _gpu(device) else ((256, 1000),)
    for rows, classes in sizes:
        z = torch.randn(rows, classes, device=device).to(torch.bfloat16).requires_grad_()
        y = torch.randint(classes, (rows,), device=device)
        launches = loss_cost.forward(rows, classes, z.dtype) + loss_cost.backward(rows, classes, z.dtype)
        run = lambda z=z, y=y: torch.autograd.grad(tempered_cross_entropy(z, y, 100.0), z)  # noqa: E731
        yield f"tempered_ce {rows} x {classes} bfloat16", run, launches


def grams(device: str):
    sizes = ((128, 2048, True), (128, 10_000, True), (4096, 512, False), (100_000, 1000, False))
    for n, d, is_dual in sizes if _gpu(device) else sizes[:1]:
        X, shift = torch.randn(n, d, device=device), torch.zeros(d, dtype=torch.float64, device=device)
        G, total = torch.zeros(d, d, dtype=torch.float64, device=device), torch.zeros_like(shift)
        for mode in ("exact", "fast"):
            if is_dual:
                run, launches = lambda X=X, mode=mode: gram_dual(X, mode), gram_cost.dual(n, d, X.dtype, mode)
            else:
                run = lambda G=G, total=total, X=X, s=shift, mode=mode: gram_accumulate_(G, total, X, s, mode)  # noqa: E731
                launches = gram_cost.accumulate(n, d, X.dtype, mode)
            yield f"gram {'dual' if is_dual else 'accumulate'} {n} x {d} {mode}", run, launches


def compare(device: str, model: Device) -> list[dict]:
    """One entry a kernel: case, kernel, seconds measured, of the roofline and predicted."""
    rows = []
    for cases in (losses, grams):
        for case, run, launches in cases(device):
            ours = [launch for launch in launches if not launch.kernel.startswith("torch.")]
            if _gpu(device):
                measured, ours = kernel_times(run, device), [(launch.kernel, [launch]) for launch in ours]
            else:
                measured, ours = {"all": _wall(run)}, [("all", ours)]
            for name, group in ours:
                rows.append(_row(case, name, _find(measured, name), group, model))
    return rows


def model_of(device: str) -> tuple[Device, str]:
    """The data sheet's figures of a known GPU, else this device's own measured copy and products; and why these."""
    if not _gpu(device):
        return cost.host(), "measured peaks: the model has no data sheet of a CPU"
    properties = torch.cuda.get_device_properties(device)
    name, sms = properties.name, properties.multi_processor_count
    if key := SHEETS.get(name):
        if MULTIPROCESSORS.get(key, sms) == sms:
            known = replace(DEVICES[key], sms=sms)
            return known, f"data sheet ({known.source}): the device is {name} with {sms} multiprocessors"
        why = f"{name} has {sms} multiprocessors here, and {MULTIPROCESSORS[key]} in its data sheet"
    else:
        why = f"no data sheet of {name} in the model"
    import machine

    peaks = machine.peaks(device)
    # The model asks for either unit by name; what was measured is one figure for both.
    flops = {unit: peaks["fp64"] for unit in ("fp64", "fp64_tensor", FP64_MEASURED)}
    flops |= {"fp32": peaks["fp32"], "bf16_tensor": peaks["bf16_tensor"], "sfu": peaks["fp32"] / 16}
    measured = Device(
        name, peaks["copy"], flops, cost.LAUNCH, properties.total_memory, properties.L2_cache_size, sms,
        "measured here: copy and matrix products",
    )  # fmt: skip
    return measured, f"measured peaks: {why}; that of fp64 is a product's, on tensor cores or not ({FP64_MEASURED})"


def _gpu(device: str) -> bool:
    return torch.device(device).type != "cpu"


def kernel_times(run: Callable[[], object], device: str) -> dict[str, float]:
    """Median seconds of each kernel by its name, from CALLS profiled calls after three that warm up.

    Each call finds a cold L2, as in the benchmarks: the model counts bytes of memory.
    """
    from torch.profiler import ProfilerActivity, profile

    flush = l2_flush(device)
    for _ in range(3):
        run()
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(CALLS):
            flush.zero_()  # a kernel of torch's own, which `_find` passes over
            run()
        torch.cuda.synchronize(device)
    times = defaultdict(list)
    for event in profiled.events():
        if str(event.device_type).endswith("CUDA"):
            times[event.name].append(event.device_time_total / 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def _find(measured: dict[str, float], kernel: str) -> float | None:
    """The time of the kernel whose profiled name (with template arguments, or Triton's suffix) contains ours.

    torch has kernels of such names too, in its own namespace. None where nothing or more than one thing matches.
    """
    found = [seconds for name, seconds in measured.items() if kernel in name and "at::" not in name]
    return found[0] if len(found) == 1 else None


def _row(case: str, kernel: str, seconds: float | None, launches: list[Launch], model: Device) -> dict:
    predicted = cost.predict(launches, model) - len(launches) * model.launch  # a kernel's own time has no launch in it
    bound = cost.limiter(launches[0], model)
    if bound.startswith("fp64") and FP64_MEASURED in model.flops:
        bound = FP64_MEASURED
    roof = cost.roofline(launches, model)
    return {
        "case": case,
        "kernel": kernel,
        "bound": bound,
        "roofline": roof,
        "predicted": predicted,
        "measured": seconds,
    }


def _wall(run: Callable[[], object]) -> float:
    run()
    samples = []
    for _ in range(CALLS):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def main(device: str, path: str | None = None) -> int:
    """Exit code 1 where a kernel of the model is not among those that ran: then it is not a model of this code."""
    model, why = model_of(device)
    print(f"model of {model.name}, {why}")
    rows = compare(device, model)
    if path:
        Path(path).write_text(json.dumps({"model": model.name, "why": why, "kernels": rows}) + "\n")
    for row in rows:
        measured = "not found" if row["measured"] is None else f"{row['measured'] * 1e6:.1f} us"
        print(f"{row['case']}, {row['kernel']}: predicted {row['predicted'] * 1e6:.1f} us, measured {measured}")
    missing = [row["kernel"] for row in rows if row["measured"] is None]
    return 1 if missing or not rows else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
