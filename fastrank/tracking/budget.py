"""`watch(budget="2%")`: how often to measure, and how much of it, so that tracking keeps to a share of training."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from fastrank.errors import InputError

#: Measured steps after which the first decision falls. The first of them is left out of it: subspaces start cold, and
#: memory is touched for the first time.
CALIBRATION = 3
#: Then a decision every so many measured steps, from the median of the last MEMORY.
CHECK, MEMORY = 8, 9
#: What was overspent is paid back within so many steps; one calibration is at most a few hundred steps' allowance.
HORIZON = 1000
#: Rarer than every so many steps, samples get smaller first: half the features and rows, at most twice. Rows fall to
#: 128, still several times the 27 columns of a subspace; 2,500 features still exceed most batches.
RARE, LEVELS = 10, 2
#: A shorter interval is taken up only where it is at most this share of the one so far: two rungs, so that noise does
#: not flip it.
SLACK = 0.7


def parse_budget(given: Any) -> float:
    """ "5%", "0.05" or 0.05 as a share; 1 and more only as a percentage, as 2 may mean 2 % or twice the training.

    Raises:
        InputError: anything else, or a share outside (0, 100).
    """
    try:
        text = str(given).strip()
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if isinstance(given, bool) or not 0 < share < 100:
        raise InputError("budget", "a share of a training step such as 5%", repr(given))
    if share >= 1 and not text.endswith("%"):
        raise InputError("budget", "a share below 1, or a percentage", repr(given), f"{share:g}% or {share:.0%}")
    return share


class Budget:
    """Decides the interval between measured steps, and the size of the samples, from measured times.

    The decisions depend on the clock and nothing else does; each is given as text for the run's record, and
    `state_dict` keeps them for a resumed run.

    Attributes:
        share: tracking over the rest of training, at most. interval: steps from one measured step to the next.
        level: how often the sample sizes have been halved.
    """

    def __init__(self, share: float) -> None:
        self.share, self.interval, self.level = share, 1, 0
        self._next = 0
        self._spent = self._rest = 0.0
        self._measured = 0
        self._costs: deque[float] = deque(maxlen=MEMORY)
        self._rests: deque[float] = deque(maxlen=MEMORY)

    def due(self, step: int) -> bool:
        return step >= self._next

    def passed(self, seconds: float) -> None:
        """A step that was not measured."""
        self._rest += seconds
        self._rests.append(seconds)

    def took(self, step: int, tracked: float, rest: float, kinds: Mapping[str, float]) -> str | None:
        """A measured step, and seconds by kind over all of them; what was decided, where that changes anything."""
        self._spent += tracked
        self._measured += 1
        self._costs.append(tracked)
        self.passed(rest)
        decided = None
        if self._measured == CALIBRATION:
            self._costs.popleft()
        if self._measured == CALIBRATION or (self._measured > CALIBRATION and self._measured % CHECK == 0):
            decided = self._decide(kinds)
        self._next = step + self.interval
        return decided

    def _decide(self, kinds: Mapping[str, float]) -> str | None:
        cost, rest = median(self._costs), median(self._rests)
        steady = cost / (self.share * rest) if rest > 0 else math.inf
        sampled = kinds.get("act", 0.0) + kinds.get("align", 0.0) >= 0.5 * sum(kinds.values())
        if steady > RARE and sampled and self.level < LEVELS:
            self.level += 1
            self._measured = 0
            self._costs.clear()
            return f"samples halved: {self._reason(cost, rest)}, every {_rung(steady)}th step otherwise"
        # Over the next HORIZON steps, what is left of the budget pays for so many measured steps.
        left = self.share * (self._rest + HORIZON * rest) - self._spent
        wanted = max(steady, HORIZON * cost / left if left > 0 else HORIZON)
        new = _rung(wanted)
        if new == self.interval or SLACK * self.interval < new < self.interval:
            return None
        self.interval = new
        return f"every {new}{'st' if new == 1 else 'th'} step: {self._reason(cost, rest)}"

    def _reason(self, cost: float, rest: float) -> str:
        return f"a measured step takes {1e3 * cost:.3g} ms, the rest of a step {1e3 * rest:.3g} ms"

    def decision(self) -> tuple[int, int, int]:
        """(interval, level, next step to measure), for other processes to follow."""
        return self.interval, self.level, self._next

    def follow(self, interval: int, level: int, following: int) -> None:
        self.interval, self.level, self._next = interval, level, following

    def state_dict(self) -> dict[str, Any]:
        return {
            "interval": self.interval, "level": self.level, "next": self._next, "spent": self._spent,
            "rest": self._rest, "measured": self._measured, "costs": list(self._costs), "rests": list(self._rests),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.follow(int(state["interval"]), int(state["level"]), int(state["next"]))
        self._spent, self._rest, self._measured = float(state["spent"]), float(state["rest"]), int(state["measured"])
        self._costs = deque(state["costs"], maxlen=MEMORY)
        self._rests = deque(state["rests"], maxlen=MEMORY)


def _rung(interval: float) -> int:
    """The next of 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, ..., up to 100,000."""
    rungs = (scale * digit // 10 for scale in (1, 10, 100, 1000, 10_000) for digit in (10, 15, 20, 30, 40, 50, 60, 80))
    return next((rung for rung in rungs if rung >= interval * (1 - 1e-9)), 100_000)
