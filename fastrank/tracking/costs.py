"""What tracking costs: seconds by kind of work and by source, and bytes, measured while it runs."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping

import torch


class Costs:
    """Adds up blocks of tracking work.

    On a CPU a block's time is the host's. On a CUDA device it is the time between two events on the current stream,
    read after the step's one copy: the host's own time says nothing there, and waiting would slow training down.

    Args:
        device: where the model is.

    The first measured step is the set-up and stands apart: subspaces and spectra start cold, and memory is touched for
    the first time. Its figures are given only until there is a second.

    Attributes:
        seconds: by kind of work, over the measured steps but the first; `rest` is the remainder of those. steps: how
            many there were, the first included.
        of: seconds by source such as "act/layer1". A call for many sources counts to each by its share of the flops.
        bytes: by source, the most that was held of it at once during a step.
        setup: seconds of tracking in the first one.
        blocks: of the step under way. flops: of the block under way, by source.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self.seconds: dict[str, float] = defaultdict(float)
        self.of: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, int] = defaultdict(int)
        self.rest, self.steps, self.setup = 0.0, 0, math.nan
        self.begin()

    def begin(self, **seconds: float) -> None:
        """A new step; `seconds` by kind were already spent on it."""
        self.blocks: list[tuple] = []
        self.flops: dict[str, float] = {}
        self._now = defaultdict(float, seconds)
        self._clock = time.perf_counter() - sum(seconds.values())

    def block(self, kind: str) -> Block:
        """A context that times its body, during which `works` names the sources. Blocks do not nest."""
        return Block(self, kind)

    def works(self, source: str, flops: float = 1.0) -> None:
        """The block under way does `flops` (in any unit) for `source`."""
        self.flops[source] = self.flops.get(source, 0.0) + flops

    def elapsed(self) -> float:
        """Seconds since the step began, on the host."""
        return time.perf_counter() - self._clock

    def end(self) -> tuple[float, float]:
        """(seconds of tracking, seconds of the whole step), after whatever the step's figures waited for."""
        if self.steps == 1:  # so far it was all there is
            self.seconds.clear()
            self.of.clear()
            self.rest = 0.0
        for kind, flops, start, stop in self.blocks:
            if self._on_cuda:
                stop.synchronize()
            seconds = start.elapsed_time(stop) / 1e3 if self._on_cuda else stop - start
            self._now[kind] += seconds
            if flops:
                total = sum(flops.values())
                for source, share in flops.items():
                    self.of[source] += seconds * (share / total if total else 1 / len(flops))
        self.blocks = []
        elapsed, tracked = self.elapsed(), sum(self._now.values())
        for kind, seconds in self._now.items():
            self.seconds[kind] += seconds
        self.rest += elapsed - tracked
        self.setup = self.setup if self.steps else tracked
        self.steps += 1
        return tracked, elapsed

    def hold(self, source: str, tensor: torch.Tensor) -> None:
        self.bytes[source] = max(self.bytes[source], tensor.numel() * tensor.element_size())

    def by_kind(self) -> dict[str, float]:
        """Mean ms per measured step by kind of work, their `total`, `share`: tracking over the rest of the step, and
        `setup`: ms of the first, which enters no mean."""
        kinds = {kind: 1e3 * seconds / self._counted for kind, seconds in self.seconds.items()}
        total, rest = sum(kinds.values()), 1e3 * self.rest / self._counted
        return {**kinds, "total": total, "share": total / rest if rest > 0 else math.nan, "setup": 1e3 * self.setup}

    def by_source(self, kept: Mapping[str, int]) -> dict[str, dict[str, float]]:
        """{source: {ms, share, MB}}; `kept` are bytes of a source that live from step to step."""
        return {
            source: {
                "ms": 1e3 * self.of[source] / self._counted,
                "share": self.of[source] / self.rest if self.rest > 0 else math.nan,
                "MB": (self.bytes.get(source, 0) + kept.get(source, 0)) / 1e6,
            }
            for source in sorted({*self.of, *self.bytes, *kept})
        }

    @property
    def _counted(self) -> int:
        return max(self.steps - 1, 1)

    def mark(self):
        """Now, as a block begins or ends with it."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Block:
    """See `Costs.block`. A class, as hooks enter it: contextlib's generators take twice as long."""

    def __init__(self, costs: Costs, kind: str) -> None:
        self._costs, self._kind = costs, kind

    def __enter__(self) -> None:
        self._flops = self._costs.flops = {}
        self._start = self._costs.mark()

    def __exit__(self, *_: object) -> None:
        self._costs.blocks.append((self._kind, self._flops, self._start, self._costs.mark()))
