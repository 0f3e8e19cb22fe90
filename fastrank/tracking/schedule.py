"""Which steps are measured: a schedule is a function of the step's number, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastrank.errors import InputError

Schedule = Callable[[int], bool]

FORMS = "a whole number of steps >= 1, 'log[:per decade]', 'epoch:<steps per epoch>', a function of the step, or a list"
#: Steps per decade of `log` where none are given: 1, 2, 3, 4, 5, 6, 8, 10, 13, ..., 79, 100, ...
PER_DECADE = 10


@dataclass(frozen=True)
class Linear:
    """Steps 0, every, 2 every, ..."""

    every: int

    def __call__(self, step: int) -> bool:
        return step % self.every == 0

    def __str__(self) -> str:
        return str(self.every)


@dataclass(frozen=True)
class Logarithmic:
    """Step 0 and the whole numbers nearest to 10^(i / per_decade), i = 0, 1, 2, ..."""

    per_decade: int = PER_DECADE

    def __call__(self, step: int) -> bool:
        # Some i has step - 1/2 <= 10^(i / per_decade) < step + 1/2.
        first, end = (self.per_decade * math.log10(max(step + half, 0.5)) for half in (-0.5, 0.5))
        return step == 0 or math.ceil(first) < end

    def __str__(self) -> str:
        return f"log:{self.per_decade}"


@dataclass(frozen=True)
class EpochEnds:
    """The last step of each epoch."""

    steps: int

    def __call__(self, step: int) -> bool:
        return (step + 1) % self.steps == 0

    def __str__(self) -> str:
        return f"epoch:{self.steps}"


@dataclass(frozen=True)
class AnyOf:
    """Steps that any of several schedules has."""

    schedules: tuple[Schedule, ...]

    def __call__(self, step: int) -> bool:
        return any(schedule(step) for schedule in self.schedules)

    def __str__(self) -> str:
        return ", ".join(str(describe(schedule)) for schedule in self.schedules)


def parse_schedule(given: Any, argument: str = "every") -> Schedule:
    """A schedule from what `watch(every=...)` takes; `str()` of ours gives the same one back.

    Raises:
        InputError: naming `argument`, for anything that is none of `FORMS`.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return Linear(given)
    if isinstance(given, str) and (found := _parse_text(given)) is not None:
        return found
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        return AnyOf(tuple(parse_schedule(one, argument) for one in given))
    if callable(given) and not isinstance(given, type):
        return given
    raise InputError(argument, FORMS, repr(given))


def describe(schedule: Schedule) -> str | int:
    """As it stands in the record of a run."""
    if isinstance(schedule, Linear):
        return schedule.every
    known = isinstance(schedule, Logarithmic | EpochEnds | AnyOf)
    return str(schedule) if known else getattr(schedule, "__qualname__", repr(schedule))


def _parse_text(text: str) -> Schedule | None:
    if "," in text:
        members = [_parse_text(part.strip()) for part in text.split(",")]
        return None if None in members else AnyOf(tuple(members))
    name, _, number = text.partition(":")
    if text == "log":
        return Logarithmic()
    if number and not (number.isascii() and number.isdigit() and int(number) > 0):
        return None
    if name.isascii() and name.isdigit() and not number:
        return Linear(int(name)) if int(name) > 0 else None
    kinds = {"linear": Linear, "log": Logarithmic, "epoch": EpochEnds}
    return kinds[name](int(number)) if name in kinds and number else None
