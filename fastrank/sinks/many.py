"""`open_log`: whatever `log=` may be, as one sink that passes every step to all and outlives those that fail."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from fastrank.errors import InputError
from fastrank.record import RunWriter, load_run
from fastrank.record.schema import DATABASE

KINDS = "a path, a sink with log_step(step, scalars, arrays), a function of the same, a list of these, or None"


def open_log(log: Any, config: Mapping[str, Any], watch: Mapping[str, Any], resume: bool = False) -> Sinks | None:
    """`log` as one sink; a run that it opens stores `config` and `watch`, other sinks get `watch` as a note.

    With `resume` a path that holds a run is continued, and its config kept where `config` says nothing else.

    Raises InputError for anything that is none of `KINDS`, before a file is made.
    """
    many = isinstance(log, list | tuple) and not hasattr(log, "log_step")
    given = list(log) if many else [] if log is None else [log]
    for item in given:
        is_path = isinstance(item, str | PathLike) and str(item)
        if not is_path and (isinstance(item, type) or not (hasattr(item, "log_step") or callable(item))):
            raise InputError("log", KINDS, repr(item))
    sinks = Sinks()
    try:
        for item in given:
            if isinstance(item, str | PathLike):
                old = load_run(item).config if (again := resume and (Path(item) / DATABASE).exists()) else {}
                sinks.add(RunWriter(item, {**old, **config, "watch": dict(watch)}, resume=again), owned=True)
            else:
                # A RunWriter belongs to who opened it: evaluation and further sessions may follow.
                sinks.add(item if hasattr(item, "log_step") else Call(item), owned=not isinstance(item, RunWriter))
                sinks.tell(0, "watch", json.dumps(watch), only=-1)
    except BaseException:
        sinks.close(finished=False)
        raise
    return sinks if given else None


class Call:
    """A function (step, scalars, arrays) as a sink."""

    def __init__(self, function: Callable[[int, dict, dict], object]) -> None:
        self.function = function

    def log_step(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        self.function(step, scalars, arrays)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


class Sinks:
    """Several sinks as one. One that fails is named in a warning and in the others' notes, and gets nothing more."""

    def __init__(self) -> None:
        self._sinks: list[Any] = []
        self._owned: list[Any] = []

    def add(self, sink: Any, owned: bool) -> None:
        """`owned`: closed with this one, and when it fails."""
        self._sinks.append(sink)
        if owned:
            self._owned.append(sink)

    def log_step(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        for sink in list(self._sinks):
            try:
                sink.log_step(step, scalars, arrays)
            except Exception as error:
                self._disable(sink, step, error)

    def note(self, step: int, key: str, text: str) -> None:
        self.tell(step, key, text)

    def tell(self, step: int, key: str, text: str, only: int | None = None) -> None:
        """A note to all sinks that take notes, or to the one at place `only`."""
        for sink in list(self._sinks) if only is None else [self._sinks[only]]:
            if hasattr(sink, "note"):
                try:
                    sink.note(step, key, text)
                except Exception as error:
                    self._disable(sink, step, error)

    def truncate(self, after_step: int) -> None:
        """For a run that goes on from a checkpoint: sinks that can, forget what came after it."""
        for sink in list(self._sinks):
            if hasattr(sink, "truncate"):
                try:
                    sink.truncate(after_step)
                except Exception as error:
                    self._disable(sink, after_step, error)

    def close(self, finished: bool = True) -> None:
        """Close the sinks that are owned and have a `close`; calling it twice is harmless."""
        owned, self._owned = [sink for sink in self._owned if hasattr(sink, "close")], []
        self._sinks = []
        for sink in owned:
            try:
                sink.close(finished=finished)
            except Exception as error:
                warnings.warn(
                    f"fastrank: {_name(sink)} could not be closed: {_text(error)}", RuntimeWarning, stacklevel=3
                )

    def _disable(self, sink: Any, step: int, error: Exception) -> None:
        self._sinks = [other for other in self._sinks if other is not sink]
        message = f"{_name(sink)} failed and gets no more figures: {_text(error)}"
        warnings.warn(f"fastrank: {message}", RuntimeWarning, stacklevel=4)
        if any(sink is other for other in self._owned):
            self._owned = [other for other in self._owned if other is not sink]
            with suppress(Exception):
                sink.close(finished=False)
        self.tell(step, "log", message)


def _name(sink: Any) -> str:
    if isinstance(sink, Call):
        return repr(sink)
    where = getattr(sink, "path", None)
    return type(sink).__name__ + (f"({str(where)!r})" if where else "")


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
