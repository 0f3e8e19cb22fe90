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
    select_layers,
    trained_weight,
    unmeasured,
    weight_matrix,
)
from fastrank.carried import SMALLEST_SIDE
from fastrank.errors import InputError
from fastrank.hooks import is_compiled
from fastrank.metrics.alignment import alignment
from fastrank.ranks import rank_counts
from fastrank.sinks import open_log
from fastrank.small_grams import SmallGram, small_gram
from fastrank.spectra import Spectrum, of_grams, spectrum
from fastrank.subspace import SubspaceState, top_svd
from fastrank.tracking.all_ranks import Ranks, is_sharded, whole
from fastrank.tracking.budget import Budget, parse_budget
from fastrank.tracking.costs import Costs
from fastrank.tracking.figures import Figures
from fastrank.tracking.followed import Followed
from fastrank.tracking.logits import add_logits
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
        layers: shell globs over `named_modules()` names (wrappers' prefixes stripped); see `capture.select_layers`.
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
            called on every process. Left out, the batch of rank 0 is measured, and the other processes' watchers rest.
            Either way rank 0 alone writes. What FSDP2 shards is measured with all_ranks=True only.
        mode: activations as "flatten" [B, features] (at most 10,000, a seeded subset), "channels" or "pool".
        config: stored with a run that `log` opens.

    Raises:
        InputError: a glob that matches nothing, an unknown metric, schedule or budget, T <= 0, or a directory with a
            run in it.

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
        config: dict | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError("model", "a torch.nn.Module", type(model).__name__)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError("seed", "a whole number", repr(seed))
        if not 0 < number("T", T) < math.inf:
            raise InputError("T", "a temperature > 0", float(T))
        self._kinds, self._names = parse_metrics(metrics)
        if all_ranks and "bound" in self._kinds:
            raise InputError("metrics", "kinds that all_ranks=True measures: all but bound", repr(metrics))
        self._model, self._looked = model, False
        self._ranks = Ranks(all_ranks)
        self._scheduled, self._T, self._seed = parse_schedule(every), T, seed
        self._budget = None if budget is None else Budget(parse_budget(budget))
        ends = None if window is None else parse_schedule(window, "window")
        self._window = None if ends is None else Window(EpochEnds(ends.every) if isinstance(ends, Linear) else ends)
        self._layers = select_layers(model, layers)
        self._modules = {layer.name: layer.module for layer in self._layers}
        sources = {"act", "weight", "bound"} & self._kinds | ({"weight", "input"} if "align" in self._kinds else set())
        sources |= {"window"} if window is not None and "act" in self._kinds else set()
        self._sharded = any(map(is_sharded, model.parameters()))
        self._capture = Capture(self._layers, self._on_source, kinds=frozenset(sources), mode=mode, seed=seed)
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
        self.log = open_log(log if self._ranks.first else None, config or {}, self.config)
        self._remarks = Remarks(self.log)
        self._explain, self._guarded = self._remarks.explain, self._remarks.guarded
        #: Forwards of the step under way, and of the one before: the last of as many is measured.
        self._forwards, self._expected = 0, 1
        if {"weight", "grad"} & self._kinds and layers == "*" and (left := unmeasured(model, self._layers)):
            more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
            self._explain(
                "weight", f"in no linear or convolutional layer, not measured: {', '.join(left[:NAMED])}{more}"
            )
        self._costs = Costs(next((p.device for p in model.parameters()), torch.device("cpu")))
        self._capture.around(model, self._begin_forward, self._on_output)
        self._capture.attach()  # last: a mistake in any argument leaves the model as it was
        # An optimizer may write to the gradients that it is given, as SGD with Nesterov's momentum does.
        before = weakref.WeakMethod(self._before_optimizer)
        handle = register_optimizer_step_pre_hook(lambda *call: (method := before()) and method(*call))
        self._unhook_optimizers = weakref.finalize(self, handle.remove)
        self.latest: dict[str, float] = {}
        self._step = self._first = 0
        self._paused = self._closed = False
        self._weights: dict[str, SubspaceState] = {}
        self._inputs: dict[str, SubspaceState] = {}
        #: None where every figure of a spectrum is wanted: each is then computed anew.
        self._followed = Followed(self._together, seed) if self._names == BASIC else None
        self._begin()

    def __enter__(self) -> Watcher:
        self._costs.begin()
        return self

    @property
    def tracking(self) -> bool:
        """Whether the step under way is measured."""
        return self._capture.switch.armed

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
        closes = self._ranks.measures and self._window is not None and not self._paused and self._window.ends(step)
        if not (measured or closes):
            self._step = step + 1
            if self._budget is not None and not self._paused:
                self._budget.passed(self._costs.elapsed())
                self._costs.begin()
            if self._due():
                self._begin()
            elif step == self._first:
                self._rest()
            return
        scalars = {name: number(name, value) for name, value in scalars.items()}
        logits = self._output if logits is None else logits
        logits, target = class_rows(logits, target)
        self._step = step + 1
        if measured:
            self._measure(logits, target)
            self._expected = max(1, self._forwards)
            if not self._looked:
                self._look_for_graphs()
        if closes:
            with self._costs.block("window"):
                self._measure_window()
        log_seconds = self._write(step, scalars) if self._ranks.first else 0.0
        if self._ranks.together and self._budget is not None:
            self._budget.follow(*self._ranks.agree(self._budget.decision()))
            self._resize()
        self._begin(log_seconds)

    def _measure(self, logits: Tensor | None, target: Tensor | None) -> None:
        if self._forwards < self._expected and "act" in self._kinds:
            text = f"{self._forwards} forwards in a step after one of {self._expected}, the last of which was expected"
            self._explain("act", text)
        if self._window is not None and logits is not None:
            with self._costs.block("window"), self._guarded("window/logits") as enabled:
                if enabled:
                    self._window.add("logits", self._capture.window_rows(logits, "logits"))
        if self._ranks.together:
            with self._costs.block("exchange"), self._guarded("all_ranks") as enabled:
                if enabled:
                    logits, target = self._exchange(logits, target)
            self._paused |= "all_ranks" in self._remarks.disabled
            if self._paused:
                return
        self._measure_weights()
        gradients = {}
        if "grad" in self._kinds and not self._gradients_are_measured:
            with self._costs.block("grad"):
                gradients = self._gradients()
        if not self._ranks.first:
            return
        with self._costs.block("act"):
            self._measure_activations()
        with self._costs.block("align"):
            if "align" in self._kinds:
                self._measure_alignment()
        with self._costs.block("grad"):
            if "grad" in self._kinds and not self._gradients_are_measured:
                self._measure_gradients(gradients)
        if logits is not None:
            with self._costs.block("logits"), self._guarded("logits") as enabled:
                if enabled and (reason := add_logits(self._figures, logits, target, self._T)):
                    self._explain("logits", reason)

    def cost(self, by: str = "kind") -> dict[str, Any]:
        """What measured steps cost on average; on a GPU the device's time.

        Args:
            by: "kind": {kind of work: ms, "total": ms, "share": of the rest of the step}. "source": {source, such as
                "act/layer3.1": {"ms", "share", "MB"}}, a call for many layers counting to each by its flops; MB is
                what the watcher holds of the source during a step and between steps.
        """
        if by == "kind":
            return self._costs.by_kind()
        if by != "source":
            raise InputError("by", "'kind' or 'source'", repr(by))
        kept: dict[str, int] = {}
        for name, state in (*self._weights.items(), *self._inputs.items()):
            tensors = (value for value in vars(state).values() if isinstance(value, Tensor))
            kept[f"align/{name}"] = kept.get(f"align/{name}", 0) + sum(t.numel() * t.element_size() for t in tensors)
        if self._followed is not None:
            kept |= self._followed.bytes()
        if self._window is not None:
            kept |= {f"window/{name}": size for name, size in self._window.bytes().items()}
        return self._costs.by_source(kept)

    def state_dict(self) -> dict:
        """What continues the same figures after a restart, as tensors and plain values: step number, warm subspaces,
        the window's states, the budget's decisions."""
        return {
            "step": self._step,
            "forwards": self._expected,
            "window": None if self._window is None else self._window.state_dict(),
            "budget": None if self._budget is None else self._budget.state_dict(),
            "weights": {name: state.state_dict() for name, state in self._weights.items()},
            "inputs": {name: state.state_dict() for name, state in self._inputs.items()},
            "followed": None if self._followed is None else self._followed.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        if not isinstance(state, dict) or not {"step", "weights", "inputs"} <= state.keys():
            got = f"keys {sorted(state)}" if isinstance(state, dict) else type(state).__name__
            raise InputError("state", "what state_dict() of a Watcher returned", got)
        self._step, self._expected = int(state["step"]), int(state.get("forwards", 1))
        self._first = self._step
        if self._window is not None and state.get("window") is not None:
            self._window.load_state_dict(state["window"])
        if self._budget is not None and state.get("budget") is not None:
            self._budget.load_state_dict(state["budget"])
            self._resize()
        self._weights = {name: SubspaceState.from_state_dict(s) for name, s in state["weights"].items()}
        self._inputs = {name: SubspaceState.from_state_dict(s) for name, s in state["inputs"].items()}
        if self._followed is not None and state.get("followed") is not None:
            self._followed.load_state_dict(state["followed"])
        self._begin()

    def _due(self) -> bool:
        scheduled = self._ranks.measures and not self._paused and self._scheduled(self._step)
        return bool(scheduled and (self._budget is None or self._budget.due(self._step)))

    def _begin(self, log_seconds: float = 0.0) -> None:
        """Get ready for the forward of step number `_step`; what writing the last record took counts to this one."""
        self._figures = Figures()
        self._measured_step = self._step
        self._gradients_are_measured = False
        self._output: Tensor | None = None
        #: What the hooks took: small Gram matrices of activations (spectra of float64 ones), weights with the version
        #: that they had, sampled inputs, ranks of whole inputs.
        self._acts: dict[str, SmallGram | Spectrum] = {}
        self._held_weights: dict[str, tuple[Tensor, int]] = {}
        self._held_inputs: dict[str, Tensor] = {}
        #: Activations whose Gram matrices do not add up over processes: fewer rows than features.
        self._rows: dict[str, Tensor] = {}
        self._bounds: dict[str, list[Tensor]] = {}
        self._weights_are_measured = False
        self._forwards = 0
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
        self._forwards += 1
        self._capture.begin_forward(skipping=self._forwards < self._expected)

    def _on_output(self, output: Tensor | None) -> None:
        self._output = output
        self._measure_weights()

    def _on_source(self, kind: str, name: str, matrix: Callable[[], Tensor | Spectrum]) -> None:
        """In a hook: takes what is gone or changed by the end of the step, and leaves the rest for one call for all."""
        key = f"grad/{name} bound" if kind == "bound" else f"{'align' if kind == 'input' else kind}/{name}"
        with self._costs.block("align" if kind == "input" else kind), self._guarded(key) as enabled:
            if not enabled:
                return
            self._costs.works(key)
            found = matrix()
            if kind == "act" and self._ranks.together and (len(found) < found.shape[1] or found.dtype == torch.float64):
                # To be joined with the other processes' rows; a copy, as a later layer may write to it.
                self._rows[key] = found.clone()
                self._costs.hold(key, found)
            elif kind == "act":
                gram = self._acts[key] = spectrum(found) if found.dtype == torch.float64 else small_gram(found)
                self._costs.hold(key, gram.G if isinstance(gram, SmallGram) else gram.sigma)
            elif kind == "window":
                self._window.add(name, found)
            elif kind == "weight":
                self._held_weights[name] = found, found._version
            elif kind == "input":
                self._held_inputs[name] = found
                self._costs.hold(key, found)
            else:
                self._measure_bound(name.partition("#")[0], found)

    def _look_for_graphs(self) -> None:
        """After the first measured step: a graph compiled before the hooks were there does not run them."""
        self._looked = True
        seen, layers = self._capture.seen, {layer.name for layer in self._layers}
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

    def _measure_weights(self) -> None:
        """At the end of the step's first forward, before an optimiser can touch them."""
        if self._weights_are_measured:
            return
        self._weights_are_measured = True
        held = {}
        for name, (X, version) in self._held_weights.items():
            if self._sharded:
                weight = self._whole(f"weight/{name}", trained_weight(self._modules[name]))
                held |= {} if weight is None else {name: weight_matrix(weight, self._modules[name])}
            elif X._version == version:
                held[name] = X
            else:
                self._explain(f"weight/{name}", "changed before the end of the watched model's own forward")
        if not self._ranks.first:
            return
        if "align" in self._kinds:
            with self._costs.block("align"):
                self._warm(held, self._weights, settled=True)
        if "weight" in self._kinds:
            with self._costs.block("weight"):
                weights = {f"weight/{name}": X for name, X in held.items()}
                if self._followed is None:
                    self._add_spectra(self._together(weights, spectrum))
                else:
                    if "align" not in self._kinds:
                        large = {name: X for name, X in held.items() if min(X.shape) >= SMALLEST_SIDE}
                        self._warm(large, self._weights, settled=True)
                    tops = {f"weight/{name}": state for name, state in self._weights.items()}
                    self._add_spectra(self._followed.weights(weights, tops, self._measured_step, self._figures))

    def _measure_activations(self) -> None:
        grams = {key: g for key, g in self._acts.items() if isinstance(g, SmallGram)}
        found = {key: s for key, s in self._acts.items() if isinstance(s, Spectrum)}
        found |= self._together(grams, of_grams)
        self._add_spectra({key: found[key] for key in self._acts if key in found})

    def _add_spectra(self, spectra: dict[str, Spectrum]) -> None:
        for key, s in spectra.items():
            if s.reason:
                self._explain(key, s.reason)
        self._figures.add_spectra(spectra, self._names, TOP)

    def _measure_alignment(self) -> None:
        self._warm(self._held_inputs, self._inputs)
        names = [name for name in self._held_inputs if name in self._inputs and name.partition("#")[0] in self._weights]
        pairs = {f"align/{name}": (self._weights[name.partition("#")[0]], self._inputs[name]) for name in names}
        results = self._together(pairs, lambda sides: alignment(*map(list, zip(*sides, strict=True)), TOP))
        largest = []
        for key, result in results.items():
            if result.reason:
                self._explain(key, result.reason)
            chance = result.max.new_tensor(result.chance)
            values = torch.stack([result.max, result.diagonal, result.error.to(result.max), chance])
            self._figures.add([f"{key}/{name}" for name in ("max", "diagonal", "error", "chance")], values)
            self._figures.add_array(f"{key}/cosines", result.cosines)
            largest.append(result.max)
        if largest:
            self._figures.add(["align/mean_max"], torch.stack(largest).double().mean())

    def _warm(self, matrices: dict[str, Tensor], states: dict[str, SubspaceState], settled: bool = False) -> None:
        """One step of every layer's own subspace; it starts over where a layer's width or device changed."""

        def fitting(name: str, X: Tensor) -> SubspaceState | None:
            state = states.get(name)
            fits = state is not None and state.block.shape[0] == X.shape[1] and state.block.device == X.device
            return state if fits else None

        jobs = {f"align/{name}": (X, fitting(name, X)) for name, X in matrices.items()}
        found = self._together(
            jobs,
            lambda jobs: top_svd([X for X, _ in jobs], TOP, [old for _, old in jobs], seed=self._seed, settled=settled),
        )
        for name in matrices:
            if (state := found.get(f"align/{name}")) is not None:
                states[name] = state
            else:
                states.pop(name, None)

    def _together(self, items: dict[str, Any], work: Callable[[list], list]) -> dict[str, Any]:
        """{key: result} of one call for all; where that fails, of one call each, without those that fail."""
        items = {key: item for key, item in items.items() if key not in self._remarks.disabled}
        if not items:
            return {}
        for key, item in items.items():
            self._costs.works(key, _flops(item))
        try:
            return dict(zip(items, work(list(items.values())), strict=True))
        except Exception:
            found = {}
            for key, item in items.items():
                with self._guarded(key):
                    (found[key],) = work([item])
            return found

    def _measure_window(self) -> None:
        """Ranks and spectra of all rows since the last window's end."""
        with self._guarded("window") as enabled:
            if enabled:
                found = {f"window/{name}": s for name, s in self._window.close(self._ranks).items()}
                self._add_spectra(found)
                for key, s in found.items():
                    self._costs.works(key, float(min(s.n, s.d)) ** 3)
                    self._figures.add([f"{key}/rows"], s.sigma.new_tensor([float(s.n)]))

    def _measure_bound(self, layer: str, s: Spectrum) -> None:
        """Ranks add up over the forwards whose gradients do, as those of a sum of matrices."""
        if s.reason:
            self._explain(f"grad/{layer}/input_rank", s.reason)
        ranks, before = rank_counts(s), self._bounds.get(layer)
        self._bounds[layer] = list(ranks) if before is None else [a + b for a, b in zip(before, ranks, strict=True)]

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        """Before an optimizer of the watched weights moves: with all processes together `step` does it, and where the
        optimizer makes the gradients itself, in a closure."""
        due = self._capture.switch.armed and "grad" in self._kinds and not self._gradients_are_measured
        # Before the step's first forward the gradients are still those of the last one.
        if not due or not self._forwards or self._ranks.together or any(map(callable, (*args[1:], *kwargs.values()))):
            return
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        weights = (trained_weight(layer.module) for layer in self._layers if layer.weight)
        if any(id(weight) in moved for weight in weights):
            with torch.no_grad(), self._costs.block("grad"):
                self._measure_gradients(self._gradients())
            self._gradients_are_measured = True

    def _gradients(self) -> dict[str, Tensor]:
        found = {}
        for layer in self._layers:
            if not layer.weight:
                continue
            key, weight = f"grad/{layer.name}", trained_weight(layer.module)
            if weight is None:
                self._explain(key, "no single parameter behind the weight")
            elif weight.grad is not None:
                gradient = self._whole(key, weight.grad)
                found |= {} if gradient is None else {key: weight_matrix(gradient, layer.module)}
            elif weight.requires_grad:
                self._explain(key, "no gradient at step(); call it before zero_grad()")
        return found

    def _whole(self, key: str, tensor: Tensor) -> Tensor | None:
        """A parameter or gradient, put together where FSDP2 keeps shards of it."""
        if self._sharded and not self._ranks.together:
            self._explain(key, "in shards over processes: all_ranks=True, on every process, puts it together")
            return None
        return whole(tensor)

    def _exchange(self, logits: Tensor | None, target: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What all processes saw of the step's batch takes the place of what this one saw, on rank 0."""
        mine = {f"act {key}": X for key, X in self._rows.items()}
        mine |= {f"input {name}": X for name, X in self._held_inputs.items()}
        if logits is not None:
            mine["logits"] = logits
            if target is not None:
                mine["target"] = target
        rows = self._ranks.rows(mine)
        grams = self._ranks.sums({key: g for key, g in self._acts.items() if isinstance(g, SmallGram)})
        if not self._ranks.first:
            return None, None
        for key in (mine.keys() - rows.keys()) | (self._acts.keys() - grams.keys()):
            self._explain(key.partition(" ")[2] or key, "not the same columns on every process, or missing on one")
        self._held_inputs = {name: rows[f"input {name}"] for name in self._held_inputs if f"input {name}" in rows}
        self._acts = dict(grams)
        for key in self._rows:
            with self._guarded(key) as enabled:
                if enabled and (X := rows.get(f"act {key}")) is not None:
                    self._acts[key] = spectrum(X) if X.dtype == torch.float64 else small_gram(X)
        return rows.get("logits"), rows.get("target")

    def _measure_gradients(self, found: dict[str, Tensor]) -> None:
        if self._followed is None:
            spectra = self._together(found, spectrum)
        else:
            spectra = self._followed.gradients(found, self._measured_step)
        self._add_spectra(spectra)
        for layer, bound in self._bounds.items():
            if (s := spectra.get(f"grad/{layer}")) is not None:
                excess = (rank_counts(s)[1] - bound[2]).clamp_min(0)
                names = ("input_rank", "input_rank_lo", "input_rank_hi", "bound_excess")
                self._figures.add([f"grad/{layer}/{name}" for name in names], torch.stack([*bound, excess]))

    def _write(self, step: int, scalars: dict[str, Tensor]) -> float:
        """One copy to the host and one transaction, whose seconds are returned."""
        for name, value in scalars.items():
            self._figures.add([f"train/{name}"], value)
        if self._budget is not None:
            self._figures.add(
                [f"budget/{name}" for name in ("interval", "features", "rows")],
                torch.tensor(
                    [self._budget.interval, self._capture.max_features, self._capture.input_rows], device="cpu"
                ),
            )
        with self._costs.block("copy"):
            values, arrays = self._figures.to_host()
        tracked, elapsed = self._costs.end()
        rest = elapsed - tracked
        values |= {
            "cost/track_ms": 1e3 * tracked,
            "cost/step_ms": 1e3 * elapsed,
            "cost/share": tracked / rest if rest > 0 else math.nan,
        }
        if self._budget is not None:
            decided = self._budget.took(step, tracked, rest, self._costs.seconds)
            if decided is not None:
                self._explain("budget", decided)
                self._resize()
        if self._followed is not None:
            self._followed.learn(values, self._step)
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


#: The public name, for what reads as an action: `with fastrank.watch(model) as w`.
watch = Watcher


def _flops(item: Any) -> float:
    """Roughly, to share out the time of one call for many: of a spectrum, an eigenproblem, a subspace, an alignment."""
    if isinstance(item, SmallGram):
        return float(len(item.G)) ** 3
    if isinstance(item, Tensor):
        return float(item.numel()) * min(item.shape)
    X = item[0] if isinstance(item[0], Tensor) else item[0].Vh
    return float(X.numel()) * TOP
