"""Timing for benchmarks: every contender in one process, taken in turn, so that noise and clock drift hit all alike.

    results = compare({"torch": run_torch, "fastrank": run_ours}, check=lambda: assert_close(...))
    print(table(results, baseline="torch"))

Figures are medians with the quartiles beside them; on a shared machine trust the ratio, not the milliseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call over `samples` samples: median and quartiles."""

    median: float
    low: float
    high: float
    samples: int


def compare(
    contenders: dict[str, Callable[[], object]],
    check: Callable[[], None],
    seconds: float = 1.0,
    min_sample: float = 2e-3,
) -> dict[str, Timing]:
    """Times each contender for about `seconds` in all, one sample of each in turn, in a changing order.

    `check` runs first and raises where the contenders disagree: a fast wrong answer is not timed. A sample repeats a
    short call until it lasts `min_sample` seconds. CUDA work is waited for at a sample's end.
    """
    check()
    repeats = {name: _repeats(run, min_sample) for name, run in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    deadline = time.perf_counter() + seconds * len(contenders)
    while time.perf_counter() < deadline or min(map(len, samples.values())) < 5:
        for name in order:
            samples[name].append(_sample(contenders[name], repeats[name]))
        order = order[1:] + order[:1]
    return {name: _timing(values) for name, values in samples.items()}


def table(results: dict[str, Timing], baseline: str) -> str:
    """Aligned text: milliseconds (median, quartiles) and how many times faster than `baseline`."""
    width = max(map(len, results))
    lines = [f"{'':{width}}  {'median ms':>10}  {'quartiles ms':>19}  {'speed':>7}"]
    for name, t in results.items():
        ratio = results[baseline].median / t.median
        lines.append(f"{name:{width}}  {t.median * 1e3:10.4f}  {t.low * 1e3:9.4f}-{t.high * 1e3:<9.4f}  {ratio:6.2f}x")
    return "\n".join(lines)


def environment() -> str:
    """One line that says where the figures come from."""
    from fastrank.kernels import backend

    core = backend.core()
    isa = core.isa if core else "no native core"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {isa}, {device}"


def _sample(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _repeats(run: Callable[[], object], min_sample: float) -> int:
    run()
    once = _sample(run, 1)
    return max(1, round(min_sample / max(once, 1e-7)))


def _timing(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high, len(values))
