"""`Tracking`: what every adapter does with a watcher, from the first step of a training to its last."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fastrank.errors import InputError
from fastrank.hooks import Hook
from fastrank.record import RunWriter, load_run
from fastrank.record.schema import DATABASE
from fastrank.tracking.all_ranks import Ranks
from fastrank.tracking.step_arguments import class_rows
from fastrank.tracking.watcher import Watcher

#: What a forward gave: any of logits [N, C], target [N] and loss.
Seen = Mapping[str, Tensor]


class Tracking:
    """A watcher of `module` that is stepped after every optimizer step of a loop that is not ours.

    Mistakes in the options raise here, before training. From then on nothing does: an exception is said once, the
    watcher is closed and its run marked as interrupted, and training goes on. Where all processes measure together,
    they ask each other first at every measured step, and end the watching together: none waits for another that failed.

    Args:
        module: what the loop calls; its forward in training mode must run once for every batch.
        log, options: as those of `watch`; a run that `log` names is continued where `state` is given.
        state: the `state_dict()` of the step from which training goes on, or {"step": number} where there is none.
        seen: (args, kwargs, output) of a forward of `where` -> what can be seen of it.
        where: the module whose forward shows the logits; `module` if left out.
    """

    def __init__(
        self,
        module: nn.Module,
        log: Any,
        options: Mapping[str, Any],
        seen: Callable[[tuple, dict, object], Seen],
        state: dict | None = None,
        where: nn.Module | None = None,
    ) -> None:
        self._ranks = ranks = Ranks(bool(options.get("all_ranks")))
        self._failed = False
        self._writers: list[RunWriter] = []
        self._find, self._seen, self._forwards = seen, {}, 0
        try:
            if state is not None:
                step = int(state["step"])
                log = ranks.jointly(lambda: self._resumed(log, step, options.get("config")) if ranks.first else None)
                if ranks.together:
                    # A checkpoint may be there for rank 0 alone, and has one process's rows of a window: when to
                    # measure is rank 0's to say, and windows start over.
                    when = [(key, state[key]) for key in ("step", "forwards", "budget") if key in state]
                    state = {**state, **dict(ranks.agree(when)), "window": None}
            self.watcher: Watcher | None = Watcher(module, log=log, **options)
        except BaseException:
            self._close_writers(finished=False)
            raise
        self._handles = [module.register_forward_hook(Hook(self._count))]
        self._handles.append((where or module).register_forward_hook(Hook(self._look), with_kwargs=True))
        if state is not None:
            device = next((p.device for p in module.parameters()), torch.device("cpu"))
            with self._guarded():
                # A checkpoint comes back on the CPU; a subspace on another device than its layer would start anew.
                moved = tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, state)
                self.watcher.load_state_dict({**self.watcher.state_dict(), **moved})

    def step(self, target: Callable[[], Tensor | None] | None = None, **scalars: float | Tensor | None) -> None:
        """After an optimizer step and before the gradients are cleared; a scalar that is None is left out.

        `target` gives the class indices of the last forward where it did not show them.
        """
        if self.watcher is None:
            return
        logits = classes = None
        named: dict[str, Any] = {}
        with self._guarded():
            if not self._forwards:
                cure = "name the module that the loop calls"
                raise InputError(
                    "module",
                    "a module whose forward runs in training mode at every step",
                    "one that did not run so",
                    cure,
                )
            seen, self._seen, self._forwards = self._seen, {}, 0
            logits, classes = seen.get("logits"), seen.get("target") if target is None else target()
            logits, classes = class_rows(logits, classes if logits is not None and _fit(classes, logits) else None)
            named = {name: value for name, value in {"loss": seen.get("loss"), **scalars}.items() if value is not None}
        if self.watcher is not None and self.watcher.meeting and not self._all_are_well():
            self.close(finished=False)
        if self.watcher is not None:
            with self._guarded():
                self.watcher.step(logits, classes, **named)

    def _all_are_well(self) -> bool:
        with self._guarded():
            if not all(self._ranks.everyones(not self._failed)):
                raise RuntimeError("another process failed")
        return not self._failed

    def state_dict(self) -> dict | None:
        """What `state` takes; None where watching has ended."""
        if self.watcher is not None:
            with self._guarded():
                return self.watcher.state_dict()
        return None

    def attempt(self, action: Callable[[], object]) -> None:
        with self._guarded():
            action()

    def close(self, finished: bool = True) -> None:
        """End the watching; a second call does nothing."""
        watcher, self.watcher = self.watcher, None
        for handle in self._handles:
            handle.remove()
        self._seen = {}
        if watcher is not None:
            finished = finished and not self._failed
            watcher.close(finished=finished)
            self._close_writers(finished)

    def _close_writers(self, finished: bool) -> None:
        for writer in self._writers:
            try:
                writer.close(finished=finished)
            except OSError as error:
                warnings.warn(f"fastrank: the run in {writer.path} could not be closed: {error}", RuntimeWarning, 2)

    def _count(self, module: nn.Module, args: tuple, output: object) -> None:
        self._forwards += module.training

    def _look(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        # Off schedule nothing is kept: logits may be the largest tensor of a step.
        if module.training and self.watcher is not None and self.watcher.tracking:
            with self._guarded(), torch.no_grad():
                found = {name: value.detach() for name, value in self._find(args, kwargs, output).items()}
                self._seen = found if "logits" in found else {**self._seen, **found}

    def _resumed(self, log: Any, step: int, config: Mapping[str, Any] | None) -> Any:
        """`log` with every path that holds a run as the writer that goes on with it from `step`."""
        if isinstance(log, list | tuple) and not hasattr(log, "log_step"):
            return [self._resumed(item, step, config) for item in log]
        if not isinstance(log, str | PathLike) or not (Path(log) / DATABASE).exists():
            return log
        writer = RunWriter(log, {**load_run(log).config, **(config or {})}, resume=True)
        self._writers.append(writer)
        writer.truncate(step - 1)
        return writer

    @contextmanager
    def _guarded(self):
        try:
            yield
        except Exception as error:
            if not self._failed:
                warnings.warn(f"fastrank: no longer watching: {error}", RuntimeWarning, stacklevel=4)
            self._failed = True
            if not self._ranks.together:  # else all of them, at the next step in which they meet
                self.close(finished=False)


def _fit(target: Tensor | None, logits: Tensor) -> bool:
    """Whether `target` is class indices of these logits; others (mixed, regression) have no accuracy."""
    whole = isinstance(target, Tensor) and not target.is_floating_point() and target.dtype != torch.bool
    return whole and target.shape in ((logits.shape[0], *logits.shape[2:]), logits.shape[:-1])
