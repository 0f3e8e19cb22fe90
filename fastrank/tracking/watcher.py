"""`watch`: joins capture, spectra, subspaces and record once per training step."""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fastrank.capture import (
    INPUT_ROWS,
    MAX_FEATURES,
    WINDOW_FEATURES,
    WINDOW_ROWS,
    Capture,
)
from fastrank.errors import InputError
from fastrank.hooks import is_compiled
from fastrank.layers import select_layers, unmeasured
from fastrank.precision import one_thread
from fastrank.sinks import open_log
from fastrank.spectra import Spectrum
from fastrank.tracking.all_ranks import Ranks, is_sharded
from fastrank.tracking.budget import Budget, parse_budget
from fastrank.tracking.costs import Costs
from fastrank.tracking.measurements import Measurements
from fastrank.tracking.presets import BASIC, TOP, parse_metrics
from fastrank.tracking.remarks import Remarks
from fastrank.tracking.schedule import EpochEnds, Linear, describe, parse_schedule
from fastrank.tracking.step_arguments import class_rows, number
from fastrank.tracking.window import Window

#: So many of those that are left out are named.
NAMED = 8


class Watcher:
    """Measures a model while it trains.

        with fastrank.watch(model, log="runs/a") as w:
            ...
            w.step(target=y, loss=loss)

    At every step on schedule the figures describe one state of the network: the weights, activations and logits of
    the last training-mode forward, and the gradients that its backward left. Training is not touched: no random
    state, no tensor of the model, no autograd graph.

    Args:
        model: any torch.nn.Module; the hooks are removed when the context ends.
        layers: shell globs over `named_modules()` names (wrappers' prefixes stripped); see `layers.select_layers`.
        every: the steps to measure, counted from 0: every k-th, "log" or "log:n" (n steps per decade, 10 by default),
            "epoch:n" (the last of every n), a function of the step's number, or a list of these. On the others no
            layer has a hook.
        metrics: "light" (activations, logits), "default" (and weights, gradients, alignment), "full" (every figure of
            a spectrum, each computed anew), or a list of kinds among act, logits, weight, grad, align and bound (the
            rank of a gradient beside that of the layer's input, which bounds it, over all forwards of the step). But in
            "full", spectra of large weights are carried from step to step, see `fastrank.tracking.followed`; their
            ranks' intervals say how far that can be off.
        log: a directory for a new run database, a sink with `log_step(step, scalars, arrays)` (see `fastrank.sinks`;
            a RunWriter), a function (step, scalars, arrays), a list of these, or None. One that fails is named once and
            left out from then on. All are closed at the end but a RunWriter, which belongs to who opened it.
        seed: of every subsample and draw; the global generators are not touched.
        T: the loss's temperature, for the rank after the softmax; a 0-d tensor may change from step to step.
        window: also the spectra over many steps, of activations and logits: their measured steps' batches stream into
            one state per layer, which is written out at the steps that `window` names and starts over there: a number
            of steps, "epoch:n", or any other form of `every`. Of an activation at most 1,024 features and 4,096 rows
            of a forward enter, all forwards of accumulated gradients among them.
        budget: at most this share of training time, such as "2%" or 0.02. The watcher measures what it costs, decides
            how often to measure and halves its samples if need be, and records every decision.
        all_ranks: under torch.distributed, measure the batches of all processes as one; `watch` and its `step` are then
            called on every process, with the same options. A figure that one process cannot give is left out by all,
            with the reason, and a process that is paused comes to `step` all the same: none waits for another. Left
            out, the batch of rank 0 is measured, and the other processes' watchers rest. Either way rank 0 alone
            writes. What FSDP2 shards is measured with all_ranks=True only; until the end of the step each process
            then keeps a copy of its shards of the weights.
        resume: the `state_dict()` of an earlier watcher, to go on from. A run that `log` names is continued then, its
            steps after that state removed.
        mode: activations as "flatten" [B, features] (at most 10,000, seeded runs of 16), "channels" or "pool".
        config: stored with a run that `log` opens.

    Raises:
        InputError: a glob that matches nothing, an unknown metric, schedule or budget, T <= 0, a directory with a
            run in it, or with all_ranks=True options that differ from those of another process.
        RuntimeError: with all_ranks=True, on the other processes, where rank 0 cannot open `log`.

    Attributes:
        latest: {key: float}, the scalars of the last tracked step.
        config: what is needed to read the figures: layers, sampling, modes, seed.
        log: what takes the records, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Iterable[str] = "*",
        every: Any = 1,
        metrics: str | Iterable[str] = "default",
        log: Any = None,
        seed: int = 0,
        *,
        T: float | Tensor = 1.0,
        mode: str = "flatten",
        window: Any = None,
        budget: float | str | None = None,
        all_ranks: bool = False,
        resume: dict | None = None,
        config: dict | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError("model", "a torch.nn.Module", type(model).__name__)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError("seed", "a whole number", repr(seed))
        if not 0 < number("T", T) < math.inf:
            raise InputError("T", "a temperature > 0", float(T))
        if not isinstance(all_ranks, bool):
            raise InputError("all_ranks", "True or False", repr(all_ranks))
        if config is not None and not isinstance(config, dict):
            raise InputError("config", "a dict to store with the run, or None", type(config).__name__)
        if resume is not None:
            _check_state("resume", resume)
        self._kinds, names = parse_metrics(metrics)
        if all_ranks and "bound" in self._kinds:
            raise InputError("metrics", "kinds that all_ranks=True measures: all but bound", repr(metrics))
        self._model, self._looked = model, False
        self._ranks = Ranks(all_ranks)
        self._scheduled, self._T, self._seed = parse_schedule(every), T, seed
        self._budget = None if budget is None else Budget(parse_budget(budget))
        ends = None if window is None else parse_schedule(window, "window")
        self._window = None if ends is None else Window(EpochEnds(ends.every) if isinstance(ends, Linear) else ends)
        self._layers = select_layers(model, layers)
        sources = {"act", "weight", "bound"} & self._kinds | ({"weight", "input"} if "align" in self._kinds else set())
        sources |= {"window"} if window is not None and "act" in self._kinds else set()
        # What gradients are products of, where that helps: not where every figure of a spectrum is wanted.
        sources |= {"factors"} if "grad" in self._kinds and names == BASIC and self._ranks.size == 1 else set()
        self._capture = Capture(
            self._layers, self._on_source, kinds=frozenset(sources), mode=mode, seed=seed, fails=self._on_failure
        )
        self._resize()
        self.config = {
            "layers": [layer.name for layer in self._layers],
            "metrics": sorted(self._kinds),
            "every": describe(self._scheduled),
            "budget": None if self._budget is None else self._budget.share,
            "window": None if self._window is None else describe(self._window.ends),
            "ranks": f"all {self._ranks.size}" if self._ranks.together else f"0 of {self._ranks.size}",
            "watch_seed": seed,
            "T": float(T),
            "activation_mode": mode,
            "max_features": MAX_FEATURES,
            "input_rows": self._capture.input_rows,
            "window_features": WINDOW_FEATURES,
            "window_rows": WINDOW_ROWS,
            "top": TOP,
        }
        # T may differ: rank 0's counts. Processes that start at different steps would wait for each other.
        options = {name: value for name, value in self.config.items() if name != "T"}
        self._ranks.same({**options, "resume": None if resume is None else resume["step"]})
        self.log = self._ranks.jointly(
            lambda: open_log(log if self._ranks.first else None, config or {}, self.config, resume is not None)
        )
        self._remarks = Remarks(self.log)
        self._explain, self._guarded = self._remarks.explain, self._remarks.guarded
        if {"weight", "grad"} & self._kinds and layers == "*" and (left := unmeasured(model, self._layers)):
            more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
            self._explain(
                "weight", f"a part of a weight that is computed, not measured: {', '.join(left[:NAMED])}{more}"
            )
        self._costs = Costs(next((p.device for p in model.parameters()), torch.device("cpu")))
        self._measurements = Measurements(
            self._layers, self._kinds, names, seed, any(map(is_sharded, model.parameters())),
            self._ranks, self._remarks, self._costs, self._window,
        )  # fmt: skip
        #: Forwards of the last measured step: the last of as many is measured.
        self._expected = 1
        self._capture.around(model, self._begin_forward, self._on_output)
        self._capture.attach()  # last: a mistake in any argument leaves the model as it was
        # An optimizer may write to the gradients that it is given, as SGD with Nesterov's momentum does.
        before = weakref.WeakMethod(self._before_optimizer)
        handle = register_optimizer_step_pre_hook(lambda *call: (method := before()) and method(*call))
        self._unhook_optimizers = weakref.finalize(self, handle.remove)
        self.latest: dict[str, float] = {}
        self._step = self._first = 0
        self._paused = self._closed = False
        self._begin()
        if resume is not None:
            self.load_state_dict(resume)

    def __enter__(self) -> Watcher:
        self._costs.begin()
        return self

    @property
    def tracking(self) -> bool:
        """Whether the step under way is measured."""
        return self._capture.switch.armed

    @property
    def meeting(self) -> bool:
        """Whether `step` will be a collective call: all processes measure together, and this step. One that is paused
        comes all the same, so that the others do not wait for it."""
        if not self._ranks.together or "all_ranks" in self._remarks.disabled:
            return False
        return bool(self._scheduled_now() or (self._window is not None and self._window.ends(self._step)))

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close(finished=kind is None)

    def close(self, finished: bool = True) -> None:
        """Remove every hook and close the log; calling it twice is harmless.

        `finished=False` marks the run as interrupted, as leaving the context through an exception does.
        """
        self._capture.detach()
        self._unhook_optimizers()
        if self.log is not None:
            if self._costs.steps and not self._closed:
                self.log.note(max(self._step - 1, 0), "cost", json.dumps(self.cost(by="source")))
            self.log.close(finished=finished)
        self._closed = True
        self._measurements.begin(self._step)  # of an unfinished step nothing is held

    def pause(self) -> None:
        """Stop measuring until `resume`; steps are still counted."""
        self._paused = True
        self._begin()

    def resume(self) -> None:
        self._paused = False
        self._begin()

    def step(self, logits: Tensor | None = None, target: Tensor | None = None, **scalars: float | Tensor) -> None:
        """Close the training step: measure gradients and logits, and write one record.

        Args:
            logits: [N, C], [N, C, ...] or [N, tokens, C] (of tokens at most 1,024 positions count); if left out, those
                that the last training-mode forward gave: `logits` of its output, or the first tensor with classes.
            target: [N], [N, ...] or [N, tokens] class indices; gives `train/accuracy` of those that are not negative.
            scalars: further figures to record under `train/`, such as loss=..., lr=....
        """
        step = self._step
        measured = self._capture.switch.armed
        closes, meets = self._closes(), self.meeting
        if not (measured or closes or meets):
            self._step = step + 1
            if self._budget is not None and not self._paused:
                self._budget.passed(self._costs.elapsed())
                self._costs.begin()
            if self._due():
                self._begin()
            elif step == self._first:
                self._rest()
            return
        mistake = None
        try:
            scalars = {name: number(name, value) for name, value in scalars.items()}
            logits, target = class_rows(self._output if logits is None else logits, target)
        except InputError as error:
            if not meets:
                raise
            # Not before the others, who wait for this process, have met it.
            mistake, scalars, logits, target = error, {}, None, None
        self._step = step + 1
        if measured:
            self._look_at(logits)
        if meets:
            measured, closes, logits, target = self._meet(step, measured, closes, logits, target)
        if measured:
            with one_thread():
                self._measurements.finish(logits, target, self._T)
        if closes:
            with self._costs.block("window"):
                self._measurements.close_window()
        log_seconds = 0.0
        if self._ranks.first and (measured or closes):
            with self._guarded("record") as enabled:
                log_seconds = self._write(step, scalars) if enabled else 0.0
        if meets and self._budget is not None:
            with self._guarded("all_ranks") as enabled:
                if enabled:
                    self._budget.follow(*self._ranks.agree(self._budget.decision()))
                    self._resize()
        self._begin(log_seconds)
        if mistake is not None:
            raise mistake

    @one_thread()
    def _meet(self, step: int, *mine: Any) -> tuple[bool, bool, Tensor | None, Tensor | None]:
        """See `Measurements.exchange`. Where messages themselves fail, this process measures nothing any more."""
        with self._costs.block("exchange"), self._guarded("all_ranks"):
            return self._measurements.exchange(step, *mine)
        return False, False, None, None

    @one_thread()
    def _look_at(self, logits: Tensor | None) -> None:
        """What this process alone can say at the end of a measured step."""
        forwards = self._measurements.forwards
        if forwards < self._expected and "act" in self._kinds:
            text = f"{forwards} forwards in a step after one of {self._expected}, the last of which was expected"
            self._explain("act", text if forwards else "no forward of the watched model in training mode")
        if self._window is not None and logits is not None:
            with self._costs.block("window"), self._guarded("window/logits") as enabled:
                if enabled:
                    self._window.add("logits", self._capture.window_rows(logits, "logits"))
        self._expected = max(1, forwards)
        if not self._looked:
            with self._guarded("torch.compile") as enabled:
                if enabled:
                    self._look_for_graphs()

    def cost(self, by: str = "kind") -> dict[str, Any]:
        """What measured steps cost on average; on a GPU the device's time. The first is the set-up: it computes every
        spectrum, and enters no average once there is a second.

        Args:
            by: "kind": {kind of work: ms, "total": ms, "share": of the rest of the step, "setup": ms of the first}.
                "source": {source, such as "act/layer3.1": {"ms", "share", "MB"}}, a call for many layers counting to
                each by its flops; MB is what the watcher holds of the source during a step and between steps.
        """
        if by == "kind":
            return self._costs.by_kind()
        if by != "source":
            raise InputError("by", "'kind' or 'source'", repr(by))
        return self._costs.by_source(self._measurements.bytes())

    def state_dict(self) -> dict:
        """What continues the same figures after a restart, as tensors and plain values: step number, warm subspaces,
        the window's states, the budget's decisions."""
        return {
            "step": self._step,
            "forwards": self._expected,
            "window": None if self._window is None else self._window.state_dict(),
            "budget": None if self._budget is None else self._budget.state_dict(),
            **self._measurements.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`. Of a run that `log` continues the steps after it are removed: they come anew."""
        _check_state("state", state)
        self._step, self._expected = int(state["step"]), int(state.get("forwards", 1))
        self._first = self._step
        # First of all when to measure: where the rest fails on one process, the others still meet it.
        if self._budget is not None and state.get("budget") is not None:
            self._budget.load_state_dict(state["budget"])
            self._resize()
        if self.log is not None:
            self.log.truncate(self._step - 1)
        if self._window is not None and state.get("window") is not None:
            self._window.load_state_dict(state["window"])
        self._measurements.load_state_dict(state)
        self._begin()

    @property
    def _rests(self) -> bool:
        """Paused, or without what no figure can do without."""
        return self._paused or bool(self._remarks.disabled.keys() & {"all_ranks", "record"})

    def _closes(self) -> bool:
        """Whether a window closes with the step under way."""
        open = self._ranks.measures and self._window is not None and not self._rests
        return bool(open and self._window.ends(self._step))

    def _due(self) -> bool:
        return bool(self._ranks.measures and not self._rests and self._scheduled_now())

    def _scheduled_now(self) -> bool:
        return bool(self._scheduled(self._step) and (self._budget is None or self._budget.due(self._step)))

    def _begin(self, log_seconds: float = 0.0) -> None:
        """Get ready for the forward of step number `_step`; what writing the last record took counts to this one."""
        self._measurements.begin(self._step)
        self._output: Tensor | None = None
        #: Forwards of the model in this step that came to their end.
        self._ended = 0
        self._remarks.step = self._step
        self._capture.begin_step(self._step)
        self._capture.switch.armed = self._due()
        if self._capture.switch.armed:
            self._capture.attach()
        elif self._step > self._first:
            self._rest()
        self._costs.begin(**({"log": log_seconds} if log_seconds else {}))

    def _rest(self) -> None:
        """No step off the schedule pays for hooks, but those that a graph may still be compiled with: in the first step
        of all, and wherever one was."""
        if not self._capture.switch.traced:
            self._capture.remove()

    def _begin_forward(self) -> None:
        # One that an exception ended was none.
        self._measurements.forwards = self._ended + 1
        self._capture.begin_forward(skipping=self._measurements.forwards < self._expected)

    def _on_source(self, kind: str, name: str, matrix: Callable[[], Tensor | Spectrum]) -> None:
        self._measurements.take(kind, name, matrix)

    def _on_failure(self, key: str, error: Exception) -> None:
        """What a hook, or the search for logits, could not do."""
        self._remarks.failed(key, error)

    @torch.no_grad()
    @one_thread()
    def _on_output(self, output: Tensor | None) -> None:
        self._output, self._ended = output, self._measurements.forwards
        self._measurements.weights()

    def _look_for_graphs(self) -> None:
        """After the first measured step: a graph compiled before the hooks were there does not run them."""
        self._looked = True
        seen, layers = self._capture.seen, self._capture.hooked
        compiled = is_compiled(self._model)
        if seen and not compiled and (never := sorted(layers - seen)):
            more = f" and {len(never) - NAMED} more" if len(never) > NAMED else ""
            self._explain("layers", f"not called in the first measured step: {', '.join(never[:NAMED])}{more}")
        # Where nothing at all was seen, a graph of the model may be what ran instead of it.
        if (compiled and seen < layers) or (not seen and "torch._dynamo" in sys.modules):
            torch.compiler.reset()
            self._capture.switch.traced = True
            text = "was compiled before it was watched: torch.compile starts anew, with the hooks in its graphs"
            self._explain("torch.compile", f"a part of the model {text}")
            if compiled:
                warnings.warn(f"fastrank: a part of the model {text}", RuntimeWarning, stacklevel=4)

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        """Before an optimizer of the watched weights moves: with all processes together `step` does it, and where the
        optimizer makes the gradients itself, in a closure."""
        # Before the step's first forward the gradients are still those of the last one.
        due = self._capture.switch.armed and self._measurements.forwards
        if not due or self._ranks.together or any(map(callable, (*args[1:], *kwargs.values()))):
            return
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        weights = (layer.trained() for layer in self._layers if layer.has_matrix)
        if any(id(weight) in moved for weight in weights):
            with torch.no_grad(), one_thread():
                self._measurements.gradients()

    def _write(self, step: int, scalars: dict[str, Tensor]) -> float:
        """One copy to the host and one transaction, whose seconds are returned."""
        for name, value in scalars.items():
            self._measurements.figures.add([f"train/{name}"], value)
        if self._budget is not None:
            self._measurements.figures.add(
                [f"budget/{name}" for name in ("interval", "features", "rows")],
                torch.tensor(
                    [self._budget.interval, self._capture.max_features, self._capture.input_rows], device="cpu"
                ),
            )
        with self._costs.block("copy"):
            values, arrays = self._measurements.figures.to_host()
        tracked, elapsed = self._costs.end()
        rest = elapsed - tracked
        values["cost/step_ms"] = 1e3 * elapsed
        if self._costs.steps == 1:
            values["cost/setup_ms"] = 1e3 * tracked
        else:
            values |= {"cost/track_ms": 1e3 * tracked, "cost/share": tracked / rest if rest > 0 else math.nan}
        if self._budget is not None:
            decided = self._budget.took(step, tracked, rest, self._costs.seconds)
            if decided is not None:
                self._explain("budget", decided)
                self._resize()
        self._measurements.learn(values, self._step)
        self.latest = values
        start = time.perf_counter()
        if self.log is not None:
            self.log.log_step(step, values, arrays)
        return time.perf_counter() - start

    def _resize(self) -> None:
        """Samples as the budget has decided, or as they are without one."""
        level = 0 if self._budget is None else self._budget.level
        self._capture.max_features = MAX_FEATURES >> level
        # The samples of all processes together are as large as that of one.
        self._capture.input_rows = (INPUT_ROWS >> level) // (self._ranks.size if self._ranks.together else 1)


def _check_state(argument: str, state: Any) -> None:
    if not isinstance(state, dict) or not {"step", "weights", "inputs"} <= state.keys():
        got = f"keys {sorted(state)}" if isinstance(state, dict) else type(state).__name__
        raise InputError(argument, "what state_dict() of a Watcher returned", got)


#: The public name, for what reads as an action: `with fastrank.watch(model) as w`.
watch = Watcher
