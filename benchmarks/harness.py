"""What a benchmark is, and how its contenders are checked and timed.

A benchmark is a table of cases and a function that turns a case into a `Problem`: contenders, each with its error
against a float64 truth and the largest error that counts as right. Contenders run in one process and take turns, so
that noise and clock drift hit all alike; medians and quartiles come of it, and the ratio of each to the baseline is
taken within a turn. A contender of ours that errs fails the run; one that cannot run here is listed with the reason.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

#: Turns of a contender: more of them only while its share of the time lasts. One whose call takes LONG seconds or more
#: is timed once, at its check, and has no spread.
MIN_SAMPLES, LONG = 5, 10.0
#: A sample on the CPU repeats a short call until it lasts this long: 1000 times what reading the clock takes.
MIN_SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of a benchmark's table; a benchmark adds its sizes as fields and says `title`."""

    where: str  # whose size this is: "ResNet-18, layer 4"
    quick: bool = False  # part of --quick
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def title(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        run: one call; its result goes to `error`.
        error: distance of the result from the float64 truth, in the unit that the problem names.
        budget: the largest error that counts as right; None where nothing is promised: shown, not judged.
        ours: whether it is this package's.
        launches: what the cost model says of it (`fastrank.kernels.cost.Launch`), empty where it says nothing.
        slow: left out by --quick.
        compiles: its first call compiles, which is no part of its time.
    """

    run: Callable[[], Any]
    error: Callable[[Any], float]
    budget: float | None = None
    ours: bool = False
    launches: tuple = ()
    slow: bool = False
    compiles: bool = False


@dataclass(frozen=True)
class Problem:
    """A case ready to run. The first contender is the baseline that ratios refer to."""

    contenders: dict[str, Contender]
    error_unit: str


@dataclass(frozen=True)
class Benchmark:
    """`prepare(case, device)` builds the Problem; `peers` are the optional libraries it can use (see peers.py)."""

    name: str
    about: str
    cases: tuple[Case, ...]
    prepare: Callable[[Any, str], Problem]
    peers: tuple[str, ...] = ()
    #: Whether torch.compile is among its contenders; --quick leaves that out, since it compiles for each size.
    compiled: bool = False


@dataclass(frozen=True)
class Spread:
    """Median and quartiles; with fewer than MIN_SAMPLES values the smallest and the largest."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < MIN_SAMPLES:
            return cls(statistics.median(values), min(values), max(values), len(values))
        low, median, high = statistics.quantiles(values, n=4)
        return cls(median, low, high, len(values))


@dataclass
class Outcome:
    """What became of one contender: its error, its time in seconds a call, its speed as a multiple of the baseline's.

    `seconds` is device time on CUDA and `wall` the time between calls issued one after another, which is what a loop
    of small calls feels; on the CPU the two are one and `wall` is None. `problem` says why there is no figure, or why
    the figure must not be trusted; with `failed` it fails the run.
    """

    ours: bool
    error: float | None = None
    budget: float | None = None
    seconds: Spread | None = None
    wall: Spread | None = None
    speed: Spread | None = None
    problem: str = ""
    failed: bool = False
    read: int = 0
    written: int = 0
    flops: dict[str, int] = field(default_factory=dict)


def measure(problem: Problem, device: str, seconds: float) -> dict[str, Outcome]:
    """Checks every contender, then times those that are right, each for about `seconds` in all, and checks them again.

    One whose answer is wrong after it was called many times loses its figures.
    """
    outcomes, spans = {}, {}
    for name, contender in problem.contenders.items():
        outcomes[name], spans[name] = _check(contender, device)
    live = [name for name in outcomes if not outcomes[name].problem]
    samples: dict[str, list[float]] = {name: [] for name in live}
    spent = dict.fromkeys(live, 0.0)
    for name in live:
        if spans[name] >= LONG:
            samples[name].append(spans[name])
    clock = _CudaClock(device) if device.startswith("cuda") else _CpuClock()
    runs = {name: problem.contenders[name].run for name in live if spans[name] < LONG}
    repeats = {name: clock.repeats(run) for name, run in runs.items()}
    turns: dict[str, dict[int, float]] = {name: dict(enumerate(samples[name])) for name in live}
    order, turn = list(runs), 0
    while order:
        for name in order:
            start = time.perf_counter()
            turns[name][turn] = clock.sample(runs[name], repeats[name])
            spent[name] += time.perf_counter() - start
        turn += 1
        order = [*order[1:], order[0]]  # nobody always comes after the same one
        order = [name for name in order if spent[name] < seconds or len(turns[name]) < MIN_SAMPLES]
    baseline = next(iter(problem.contenders))
    walls = {name: clock.wall(run) for name, run in runs.items()}
    for name in runs:  # a call of LONG seconds was checked itself
        _check_again(outcomes[name], problem.contenders[name], device)
        if outcomes[name].problem:
            del turns[name]
    for name in turns:
        outcomes[name].seconds = Spread.of(list(turns[name].values()))
        outcomes[name].wall = walls.get(name)
        outcomes[name].speed = _speed(turns.get(baseline, {}), turns[name])
    return outcomes


def l2_flush(device: str | torch.device) -> torch.Tensor:
    """A buffer larger than the device's L2: whoever overwrites it leaves nothing else there."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(2 * max(l2, 32 << 20), dtype=torch.int8, device=device)


def run_alone(name: str) -> None:
    """`python benchmarks/bench_<name>.py ...` is `fastrank bench <name> ...`, in a process that has not seen torch."""
    os.execv(sys.executable, [sys.executable, "-m", "fastrank", "bench", name, *sys.argv[1:]])


def _check(contender: Contender, device: str) -> tuple[Outcome, float]:
    """The contender's error, judged, and the seconds of the checked call (after a first one that warms up)."""
    outcome = Outcome(contender.ours, budget=contender.budget)
    for launch in contender.launches:
        outcome.read += launch.read
        outcome.written += launch.written
        for unit, count in launch.flops.items():
            outcome.flops[unit] = outcome.flops.get(unit, 0) + count
    try:
        if contender.compiles:
            contender.run()
        for _ in range(2):
            start = time.perf_counter()
            result = contender.run()
            _synchronize(device)
            span = time.perf_counter() - start
            if span >= LONG:
                break
        outcome.error = float(contender.error(result))
    except Exception as error:  # a peer may lack a kernel for this size; ours may not
        _raised(outcome, error)
        return outcome, math.nan
    _judge(outcome, "wrong")
    return outcome, span


def _check_again(outcome: Outcome, contender: Contender, device: str) -> None:
    """One more call, after the timed ones: `outcome` keeps the larger error."""
    try:
        result = contender.run()
        _synchronize(device)
        error = float(contender.error(result))
    except Exception as raised:
        _raised(outcome, raised)
        return
    if not error <= outcome.error:
        outcome.error = error
        _judge(outcome, "wrong after it was timed")


def _judge(outcome: Outcome, wrong: str) -> None:
    if outcome.budget is not None and not outcome.error <= outcome.budget:
        outcome.problem = f"{wrong}: error {outcome.error:.1e} above {outcome.budget:.1e}"
        outcome.failed = True


def _raised(outcome: Outcome, error: Exception) -> None:
    outcome.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    outcome.failed = outcome.ours


def _speed(baseline: dict[int, float], mine: dict[int, float]) -> Spread | None:
    shared = baseline.keys() & mine.keys()
    return Spread.of([baseline[turn] / mine[turn] for turn in shared]) if shared else None


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class _CpuClock:
    """Seconds of a call by the host's clock, averaged over enough repeats to last MIN_SAMPLE_SECONDS."""

    def repeats(self, run: Callable[[], Any]) -> int:
        return max(1, round(MIN_SAMPLE_SECONDS / max(self.sample(run, 1), 1e-7)))

    def sample(self, run: Callable[[], Any], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats

    def wall(self, run: Callable[[], Any]) -> None:
        return None


class _CudaClock:
    """Seconds of one call on the device, between events, from a cold L2.

    Before each call a buffer larger than L2 is overwritten, and a spin keeps the device busy while the host queues the
    call, so that what is measured is the device's work and not the host's. A call that waits for the device itself is
    measured with its waits.
    """

    #: Cycles of the spin: about a millisecond, longer than it takes to queue a few dozen launches.
    SPIN = 2_000_000

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.flush = l2_flush(self.device)

    def repeats(self, run: Callable[[], Any]) -> int:
        return 1

    def sample(self, run: Callable[[], Any], repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self.device):
            self.flush.zero_()
            torch.cuda._sleep(self.SPIN)
            start.record()
            run()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3

    def wall(self, run: Callable[[], Any]) -> Spread:
        """Seconds from call to call in a loop without waits, as a training loop issues them; warm caches."""
        torch.cuda.synchronize(self.device)
        values = []
        for _ in range(MIN_SAMPLES):
            start, count = time.perf_counter(), 0
            while count < 100 and time.perf_counter() - start < 0.05:
                run()
                count += 1
            torch.cuda.synchronize(self.device)
            values.append((time.perf_counter() - start) / count)
        return Spread.of(values)
