"""What a kernel launch moves and computes, what a device can do, and the time that follows: all before it is run.

`kernels/<op>/cost.py` gives the launches of an op as functions of shape, dtype and options. Two times follow:

* `roofline`: the floor of the algorithm on the units it is counted on, with every byte from cold memory.
* `predict`: the same for the kernel as it is cut: padding of tiles, multiprocessors without a block, launch latency.

Both leave out what no count can see (cache misses, latency that too few warps leave exposed, clocks below the data
sheet's), so they are predictions, to be held against a measurement.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Launch:
    """One kernel launch: what the algorithm must move and compute, not what a cache adds.

    Attributes:
        kernel: its name; torch's own begin with "torch.".
        read, written: distinct bytes of global memory that it loads and stores.
        flops: by unit, "fp32", "fp64", "sfu" (exponentials), "fp64_tensor", "bf16_tensor": the algorithm's own. An
            addition, multiplication, division or maximum is one, a fused multiply-add two.
        issued: the same with what the kernel adds, padding of tiles above all; None where that is nothing.
        requested: bytes that all its loads ask for; what exceeds `read` is for the caches to serve. None: `read`.
        blocks: thread blocks of equal work; None where they are many (or unknown: torch's own kernels).
    """

    kernel: str
    read: int
    written: int
    flops: dict[str, int] = field(default_factory=dict)
    issued: dict[str, int] | None = None
    requested: int | None = None
    blocks: int | None = None

    @property
    def bytes(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Device:
    """Peaks of one device, per second.

    Attributes:
        name: as people call it.
        bandwidth: bytes of main memory. memory: bytes there are. l2: bytes of the last cache, 0 if unknown.
        flops: by unit, dense. "sfu" counts results.
        launch: seconds from one kernel of a stream to the next; an assumption on a GPU (no data sheet has it).
        sms: multiprocessors (cores of a CPU).
        source: where the figures are from.
    """

    name: str
    bandwidth: float
    flops: dict[str, float]
    launch: float
    memory: int
    l2: int
    sms: int
    source: str


#: Back-to-back kernels of one stream start about this far apart on any recent GPU. An assumption, not a measurement.
LAUNCH = 3e-6


def _gpu(name: str, source: str, *, sms: int, sfu: float, **figures: float) -> Device:
    units = {unit: figures[unit] * 1e12 for unit in ("fp32", "fp64", "fp64_tensor", "bf16_tensor")}
    return Device(
        name, figures["bandwidth"] * 1e12, {**units, "sfu": units["fp32"] * sfu}, LAUNCH,
        round(figures["memory"] * 1e9), round(figures["l2"] * 2**20), sms, source,
    )  # fmt: skip


#: Dense peaks in TFLOPS, TB/s, GB (memory) and MiB (L2). `sfu`: results of the special function units per fp32 flop,
#: 16 results a clock and multiprocessor in every one of them (CUDA C++ Programming Guide, "Arithmetic Instructions")
#: over 2 flops of 64 (A100) or 128 lanes.
DEVICES: dict[str, Device] = {
    # NVIDIA A100 Tensor Core GPU data sheet (June 2021), column A100 80GB SXM; L2 and SMs: NVIDIA A100 whitepaper.
    "a100": _gpu(
        "A100 80GB SXM", "NVIDIA A100 data sheet, 80GB SXM", bandwidth=2.039, memory=80, l2=40, sms=108, sfu=1 / 8,
        fp32=19.5, fp64=9.7, fp64_tensor=19.5, bf16_tensor=312,
    ),
    # NVIDIA H100 Tensor Core GPU data sheet, column H100 SXM (tensor figures there are with sparsity: halved); L2 and
    # SMs: NVIDIA H100 whitepaper, H100 SXM5.
    "h100": _gpu(
        "H100 SXM", "NVIDIA H100 data sheet, SXM", bandwidth=3.35, memory=80, l2=50, sms=132, sfu=1 / 16,
        fp32=67, fp64=34, fp64_tensor=67, bf16_tensor=989.5,
    ),
    # NVIDIA H200 Tensor Core GPU data sheet, column H200 SXM; the chip is the H100's.
    "h200": _gpu(
        "H200 SXM", "NVIDIA H200 data sheet, SXM", bandwidth=4.8, memory=141, l2=50, sms=132, sfu=1 / 16,
        fp32=67, fp64=34, fp64_tensor=67, bf16_tensor=989.5,
    ),
    # NVIDIA HGX B200 data sheet, an eighth of the eight-GPU figures (fp32 600, fp64 296 vector and tensor, bf16 36,000
    # with sparsity; 1.44 TB); bandwidth: DGX B200 data sheet, 64 TB/s over eight. They give neither L2 nor SMs:
    # 126 MB and 148 (18,944 fp32 lanes) are what others report; `l2` enters no time here, `sms` enters `predict`.
    "b200": _gpu(
        "B200", "NVIDIA HGX B200 and DGX B200 data sheets, per GPU", bandwidth=8.0, memory=180, l2=126, sms=148,
        sfu=1 / 16, fp32=75, fp64=37, fp64_tensor=37, bf16_tensor=2250,
    ),
}  # fmt: skip


def roofline(launches: Iterable[Launch], device: Device) -> float:
    """Seconds: the sum over launches of max(bytes / bandwidth, flops / peak); launch latency apart."""
    return sum(_bound(launch.bytes, launch.flops, device) for launch in launches)


def predict(launches: Iterable[Launch], device: Device) -> float:
    """Seconds for the launches as they are cut: issued flops on the multiprocessors that have a block, plus latency.

    Of `blocks` equal blocks on `sms` multiprocessors the busiest has ceil(blocks / sms). Memory is taken at its full
    rate even for a few blocks, which is optimistic below a third of the multiprocessors.
    """
    seconds = 0.0
    for launch in launches:
        used = 1.0
        if launch.blocks:
            used = launch.blocks / (device.sms * math.ceil(launch.blocks / device.sms))
        issued = launch.flops if launch.issued is None else launch.issued
        seconds += device.launch + _bound(launch.bytes, {unit: n / used for unit, n in issued.items()}, device)
    return seconds


def limiter(launch: Launch, device: Device) -> str:
    """What bounds the launch's roofline: "memory" or a unit of arithmetic."""
    times = {"memory": launch.bytes / device.bandwidth}
    times |= {unit: count / device.flops[unit] for unit, count in launch.flops.items()}
    return max(times, key=times.get)


def total(launches: Iterable[Launch], of: str) -> dict[str, int]:
    """Sum of `flops` or `issued` by unit."""
    sums: dict[str, int] = {}
    for launch in launches:
        work = launch.flops if of == "flops" or launch.issued is None else launch.issued
        for unit, count in work.items():
            sums[unit] = sums.get(unit, 0) + count
    return sums


def together(launches: Sequence[Launch]) -> Launch:
    """What one launch does for several matrices, as one; blocks are then of unequal work."""
    return Launch(
        launches[0].kernel, sum(x.read for x in launches), sum(x.written for x in launches),
        total(launches, "flops"), total(launches, "issued"),
        sum(x.read if x.requested is None else x.requested for x in launches), sum(x.blocks or 0 for x in launches),
    )  # fmt: skip


def _bound(moved: float, work: dict[str, float], device: Device) -> float:
    return max([moved / device.bandwidth, *(count / device.flops[unit] for unit, count in work.items())])


def host(seconds: float = 0.3) -> Device:
    """This machine's CPU with torch's threads, by measurement: a copy of 64 MiB, square products of 1024, a sum of 16.

    There is no data sheet for what a process gets of a shared machine. Each figure is the best of several runs within
    about `seconds`; "bf16_tensor" is what a bf16 product reaches, "sfu" a sixteenth of fp32 (an exponential).
    """
    source = torch.empty(16 << 20, dtype=torch.float32).fill_(1.0)
    copy = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / best(lambda: copy.copy_(source), seconds / 4)
    size, rates = 1024, {}
    for unit, dtype in (("fp32", torch.float32), ("fp64", torch.float64), ("bf16_tensor", torch.bfloat16)):
        A = torch.ones(size, size, dtype=dtype)
        out = torch.empty_like(A)
        rates[unit] = 2 * size**3 / best(lambda A=A, out=out: torch.mm(A, A, out=out), seconds / 4)
    rates |= {"fp64_tensor": rates["fp64"], "sfu": rates["fp32"] / 16}
    small = torch.ones(16)
    launch = best(lambda: small + small, seconds / 10)
    return Device(
        "CPU", bandwidth, rates, launch, 0, 0, torch.get_num_threads(),
        f"measured here: copy, and matrix products of {size}, {torch.get_num_threads()} threads",
    )  # fmt: skip


def best(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of the runs that fit into about `seconds`, after one to warm up."""
    run()
    best, deadline = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == math.inf:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
