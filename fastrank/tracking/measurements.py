"""What the hooks took of a measured step, and the figures that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastrank.carried import SMALLEST_SIDE
from fastrank.gram import GramState
from fastrank.layers import Layer, is_computed
from fastrank.metrics.alignment import alignment
from fastrank.ranks import rank_counts
from fastrank.small_grams import SmallGram, small_gram, small_grams
from fastrank.spectra import Spectrum, of_grams, spectrum
from fastrank.subspace import SubspaceState, top_svd
from fastrank.tracking.all_ranks import Ranks, Rows, Shards, States, Sums, is_sharded
from fastrank.tracking.costs import Costs
from fastrank.tracking.figures import Figures
from fastrank.tracking.followed import Followed
from fastrank.tracking.logits import add_logits
from fastrank.tracking.presets import BASIC, TOP
from fastrank.tracking.remarks import Remarks
from fastrank.tracking.touched_rows import touched_rows, with_untouched
from fastrank.tracking.window import Window

#: Why one process alone cannot say anything of a weight or gradient.
SHARDED = "in shards over processes: all_ranks=True, on every process, puts it together"

#: Samples of activations that are held until one call multiplies the Gram matrices of all: caches are cold in a hook,
#: where a call for each took 0.4 ms more (ResNet-50, 224 px).
HELD_BYTES = 8 << 20


class Measurements:
    """From a step's first hook to its figures: `begin`, `take` in the hooks, `weights` after the forward, `gradients`
    before an optimizer moves, `finish` and `close_window` at the end. What fails is disabled with a remark.

    Processes that measure together call `exchange` before the end, and wait for each other nowhere else.

    Args:
        layers: those watched. kinds: what to measure of them. names: the figures of each spectrum.
        sharded: whether the parameters are shards (FSDP2). ranks, remarks, costs: the watcher's own.
        window: takes the outputs that windows are of, or None.

    Attributes:
        figures: of the step. forwards: of the model so far in the step.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        kinds: Collection[str],
        names: Sequence[str],
        seed: int,
        sharded: bool,
        ranks: Ranks,
        remarks: Remarks,
        costs: Costs,
        window: Window | None,
    ) -> None:
        self._layers, self._named = layers, {layer.name: layer for layer in layers}
        self._kinds, self._names, self._seed, self._sharded = kinds, names, seed, sharded
        self._ranks, self._costs, self._window, self._remarks = ranks, costs, window, remarks
        self._explain, self._guarded = remarks.explain, remarks.guarded
        of_input = "align" if "align" in kinds else "grad"
        self._work_of = {"input": of_input, "factor": of_input, "slope": "grad", "sample": "act"}
        #: Warm subspaces of weights and inputs.
        self._tops: dict[str, SubspaceState] = {}
        self._inputs: dict[str, SubspaceState] = {}
        #: None where every figure of a spectrum is wanted: each is then computed anew.
        self._followed = Followed(self._together, seed) if names == BASIC else None
        self.begin(0)

    def begin(self, step: int) -> None:
        self.figures, self.forwards = Figures(), 0
        self._step = step
        self._weights_are_measured = self._gradients_are_measured = False
        #: What the hooks took: small Gram matrices of activations (spectra of float64 ones), weights with the version
        #: that they had, sampled inputs, gradients of outputs, ranks of whole inputs.
        self._acts: dict[str, SmallGram | Spectrum] = {}
        self._samples: dict[str, Tensor] = {}
        self._held_weights: dict[str, tuple[Tensor, int]] = {}
        self._held_inputs: dict[str, Tensor] = {}
        #: Weights and inputs whose subspaces were brought up to date, and inputs that gradients may be products of.
        self._seen_weights: set[str] = set()
        self._seen_inputs: dict[str, None] = {}
        self._factors: set[str] = set()
        self._slopes: dict[str, Tensor] = {}
        self._bounds: dict[str, list[Tensor]] = {}
        #: Activations whose Gram matrices do not add up over processes: fewer rows than features.
        self._rows: dict[str, Tensor] = {}
        #: What FSDP2 keeps in shards: copies of the weights as they were, and what `exchange` put together.
        self._shards: dict[str, Tensor] = {}
        self._assembled: dict[str, Tensor] = {}
        #: States of the window that this step closes, where `exchange` brought them together.
        self._closed: dict[str, GramState] | None = None

    def take(self, kind: str, name: str, matrix: Callable[[], Tensor | Spectrum]) -> None:
        """In a hook: takes what is gone or changed by the end of the step, and leaves the rest for one call for all."""
        work = self._work_of.get(kind, kind)
        key = f"grad/{name} bound" if kind == "bound" else f"{work}/{name}"
        with self._costs.block(work), self._guarded(key) as enabled:
            if not enabled or work in self._remarks.disabled:
                return
            self._costs.works(key)
            found = matrix()
            if work == "act" and self._ranks.together and (len(found) < found.shape[1] or found.dtype == torch.float64):
                # To be joined with the other processes' rows.
                self._rows[key] = found if kind == "sample" else found.clone()
                self._costs.hold(key, found)
            elif kind == "sample" and found.dtype != torch.float64:
                self._samples[key] = found
                self._costs.hold(key, found)
                if sum(X.nbytes for X in self._samples.values()) > HELD_BYTES:
                    self._multiply_samples()
            elif work == "act":
                # At once, as a later layer may write to what is no copy.
                gram = self._acts[key] = _gram_or_spectrum(found)
                self._costs.hold(key, gram.G if isinstance(gram, SmallGram) else gram.sigma)
            elif kind == "window":
                self._window.add(name, found)
            elif kind == "weight":
                # One that is computed is another tensor in every forward: none is held once they are measured.
                if not self._weights_are_measured:
                    self._held_weights[name] = found, found._version
            elif kind in ("input", "factor"):
                self._held_inputs[name] = found
                self._seen_inputs.pop(name, None)
                if kind == "factor":
                    self._factors.add(name)
                self._costs.hold(key, found)
            elif kind == "slope":
                self._slopes[name] = found
                self._costs.hold(key, found)
            else:
                self._measure_bound(name.partition("#")[0], found)

    def weights(self) -> None:
        """At the end of the step's first forward, before an optimiser can touch them."""
        if self._weights_are_measured:
            return
        self._weights_are_measured = True
        found = {}
        if self._sharded:
            self._keep_shards()
        elif self._ranks.first:
            found = self._held() | self._parameters()
        self._held_weights.clear()
        self._measure_weights(found)

    def _held(self) -> dict[str, Tensor]:
        """The weights that hooks took."""
        found = {}
        for name, (X, version) in self._held_weights.items():
            if X._version == version:
                found[name] = X
            else:
                self._explain(f"weight/{name}", "changed before the end of the watched model's own forward")
        return found

    def _keep_shards(self) -> None:
        """Copies of this process's shards: an optimizer moves before all processes meet."""
        for layer in self._layers:
            if not (
                layer.name in self._held_weights or (layer.parameter and "weight" in self._kinds and self.forwards)
            ):
                continue
            key = f"weight/{layer.name}"
            with self._guarded(key) as enabled:
                if not enabled:
                    continue
                if not self._ranks.together:
                    self._explain(key, SHARDED)
                elif is_computed(layer.module):
                    self._explain(key, "computed from what is in shards: not measured")
                elif (X := layer.trained()) is not None and (is_sharded(X) or self._ranks.first):
                    self._shards[key] = X.detach().clone()
                    self._costs.hold(key, _local(X))

    def _measure_weights(self, held: dict[str, Tensor]) -> None:
        if not held:
            return
        aligns, follows = "align" in self._kinds, "weight" in self._kinds and self._followed is not None
        warm = {
            name: X for name, X in held.items()
            if (aligns and not self._named[name].parameter) or (follows and min(X.shape) >= SMALLEST_SIDE)
        }  # fmt: skip
        work = "align" if aligns else "weight"
        with self._costs.block(work), self._guarded(work) as enabled:
            if enabled:
                self._warm(warm, self._new_inputs())
                # A backward has not yet taken its memory.
                self._held_inputs = {
                    name: X for name, X in self._held_inputs.items()
                    if name not in self._seen_inputs or name in self._factors
                }  # fmt: skip
        if "weight" in self._kinds:
            with self._costs.block("weight"), self._guarded("weight") as enabled:
                if not enabled:
                    return
                weights = {f"weight/{name}": X for name, X in held.items()}
                if self._followed is None:
                    self._add_spectra(self._together(weights, spectrum))
                else:
                    tops = {f"weight/{name}": state for name, state in self._tops.items()}
                    self._add_spectra(self._followed.weights(weights, tops, self._step, self.figures))

    def gradients(self) -> None:
        """Before an optimizer touches them."""
        if "grad" not in self._kinds or self._gradients_are_measured or not self._ranks.first:
            return
        self._gradients_are_measured = True
        with self._costs.block("grad"), self._guarded("grad") as enabled:
            if enabled:
                self._measure_gradients(self._gradients())

    def finish(self, logits: Tensor | None, target: Tensor | None, T: float | Tensor) -> None:
        """All that was not measured yet, and the figures of logits [N, C] with target [N] at temperature T."""
        self.weights()
        if not self._ranks.first:
            return
        if self._sharded:
            self._measure_weights(self._unsharded())
        self.gradients()
        with self._costs.block("act"), self._guarded("act") as enabled:
            if enabled:
                self._measure_activations()
        with self._costs.block("align"), self._guarded("align") as enabled:
            if enabled and "align" in self._kinds:
                self._measure_alignment()
        if logits is not None:
            with self._costs.block("logits"), self._guarded("logits") as enabled:
                if enabled and (reason := add_logits(self.figures, logits, target, T)):
                    self._explain("logits", reason)

    def exchange(
        self, step: int, measured: bool, closes: bool, logits: Tensor | None, target: Tensor | None
    ) -> tuple[bool, bool, Tensor | None, Tensor | None]:
        """What all processes saw of the step's batch takes the place of what this one saw, on rank 0.

        A collective call, of a process that measures nothing too. What one of them lacks is left out by all, and what
        one of them disabled is disabled.

        Args:
            measured, closes: whether this process measures the step, and closes a window.
        Returns:
            Whether all do, and the logits [N, C] and targets [N] of all, on rank 0.
        """
        disabled = self._remarks.disabled
        rows, grams, shards, states = {}, {}, {}, {}
        if measured:
            self.weights()
            self._multiply_samples()
            rows = {**self._rows, **{f"align/{name}": X for name, X in self._held_inputs.items()}}
            rows |= {} if logits is None else {"logits": logits}
            rows |= {} if logits is None or target is None else {"target": target}
            grams = {key: g for key, g in self._acts.items() if isinstance(g, SmallGram)}
            weights = {key: X for key, X in self._shards.items() if is_sharded(X)}
            gradients = self._raw_gradients() if self._sharded else {}
            shards = weights | {key: X for key, X in gradients.items() if is_sharded(X)}
        if closes:
            states = {f"window/{name}": state for name, state in self._window.states.items()}
        parts = [
            kind(self._ranks, {key: item for key, item in items.items() if key not in disabled})
            for kind, items in ((Rows, rows), (Sums, grams), (Shards, shards), (States, states))
        ]
        mine = {"step": step, "measured": measured, "closes": closes, "disabled": dict(disabled)}
        everywhere = self._ranks.everyones({**mine, "parts": [part.facts for part in parts]})
        for rank, theirs in enumerate(everywhere):
            if theirs["step"] != step:
                raise RuntimeError(f"step {theirs['step']} on process {rank} is step {step} here")
            for key, reason in theirs["disabled"].items():
                self._disable(rank, key, reason)
        resting = [str(rank) for rank, theirs in enumerate(everywhere) if not theirs["measured"]]
        closes = all(theirs["closes"] for theirs in everywhere)
        if closes:
            # Else the windows of all go on to the next end.
            self._window.close()
        for rank, key, reason in self._ranks.exchange(parts, [theirs["parts"] for theirs in everywhere]):
            self._disable(rank, key, reason)
        if measured and resting:
            measured = False
            self._explain("all_ranks", f"not measured: process {', '.join(resting)} did not")
        if not self._ranks.first:
            return measured, closes, None, None
        for part in parts if measured or closes else ():
            for key in part.facts.keys() - set(part.keys) - disabled.keys():
                self._explain(key, part.why_not(key))
        found: list[dict[str, Any]] = [{} for _ in parts]
        for part, results in zip(parts, found, strict=True):
            for key in part.keys:
                with self._guarded(key) as enabled:
                    if enabled:
                        results[key] = part.found(key)
        rows, self._acts, self._assembled, states = found
        inputs = {name: rows.get(f"align/{name}") for name in self._held_inputs}
        self._held_inputs = {name: X for name, X in inputs.items() if X is not None}
        self._closed = states
        for key in self._rows:
            with self._guarded(key) as enabled:
                if enabled and key in rows:
                    self._acts[key] = _gram_or_spectrum(rows[key])
        return measured, closes, rows.get("logits"), rows.get("target")

    def _disable(self, rank: int, key: str, reason: str) -> None:
        """What process `rank` said that it cannot measure."""
        if key not in self._remarks.disabled:
            if rank == self._ranks.rank:
                self._remarks.disable(key, reason, reason)
            else:
                self._remarks.disable(key, f"on process {rank}: {reason}", "")

    def close_window(self) -> None:
        """Ranks and spectra of all rows since the last window's end."""
        with self._guarded("window") as enabled:
            states = self._closed
            if states is None:
                states = {f"window/{name}": state for name, state in self._window.close().items()}
            if not enabled or not self._ranks.first:
                return
            states = {key: state for key, state in states.items() if state.n and key not in self._remarks.disabled}
            found = dict(zip(states, of_grams([state.small_gram() for state in states.values()]), strict=True))
            self._add_spectra(found)
            for key, s in found.items():
                self._costs.works(key, float(min(s.n, s.d)) ** 3)
                self.figures.add([f"{key}/rows"], s.sigma.new_tensor([float(s.n)]))

    def bytes(self) -> dict[str, int]:
        """By source, what is kept from step to step."""
        kept: dict[str, int] = {}
        for name, state in (*self._tops.items(), *self._inputs.items()):
            tensors = (value for value in vars(state).values() if isinstance(value, Tensor))
            kept[f"align/{name}"] = kept.get(f"align/{name}", 0) + sum(t.numel() * t.element_size() for t in tensors)
        if self._followed is not None:
            kept |= self._followed.bytes()
        if self._window is not None:
            kept |= {f"window/{name}": size for name, size in self._window.bytes().items()}
        return kept

    def learn(self, values: dict[str, float], step: int) -> None:
        """From a step's figures, on the host: what to do at step number `step`."""
        if self._followed is not None:
            self._followed.learn(values, step)

    def state_dict(self) -> dict:
        """The warm subspaces, and what spectra are carried from."""
        return {
            "weights": {name: state.state_dict() for name, state in self._tops.items()},
            "inputs": {name: state.state_dict() for name, state in self._inputs.items()},
            "followed": None if self._followed is None else self._followed.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        self._tops = {name: SubspaceState.from_state_dict(s) for name, s in state["weights"].items()}
        self._inputs = {name: SubspaceState.from_state_dict(s) for name, s in state["inputs"].items()}
        if self._followed is not None and state.get("followed") is not None:
            self._followed.load_state_dict(state["followed"])

    def _multiply_samples(self) -> None:
        self._acts |= self._together(self._samples, partial(small_grams, rounded=True))
        self._samples = {}

    def _measure_activations(self) -> None:
        self._multiply_samples()
        grams = {key: g for key, g in self._acts.items() if isinstance(g, SmallGram)}
        found = {key: s for key, s in self._acts.items() if isinstance(s, Spectrum)}
        found |= self._together(grams, of_grams)
        self._add_spectra({key: found[key] for key in self._acts if key in found})

    def _add_spectra(self, spectra: dict[str, Spectrum]) -> None:
        for key, s in spectra.items():
            if s.reason:
                self._explain(key, s.reason)
        self.figures.add_spectra(spectra, self._names, TOP)

    def _measure_alignment(self) -> None:
        self._warm({}, self._new_inputs(whole=True))
        names = []
        for name in self._seen_inputs:
            layer = name.partition("#")[0]
            if layer not in self._seen_weights:
                if f"weight/{layer}" not in self._remarks.disabled:
                    self._explain(f"align/{name}", "no weight of this step: its layer did not run in the first forward")
            elif name in self._inputs and layer in self._tops:
                names.append(name)
        pairs = {f"align/{name}": (self._tops[name.partition("#")[0]], self._inputs[name]) for name in names}
        results = self._together(pairs, lambda sides: alignment(*map(list, zip(*sides, strict=True)), TOP))
        for key, result in results.items():
            if result.reason:
                self._explain(key, result.reason)
            self.figures.add_array(f"{key}/cosines", result.cosines)
        if results:
            first = next(iter(results.values())).max
            measured = [x.to(first) for r in results.values() for x in (r.max, r.diagonal, r.error)]
            chances = first.new_tensor([r.chance for r in results.values()])
            values = torch.cat([torch.stack(measured).view(-1, 3), chances[:, None]], 1)
            names = ("max", "diagonal", "error", "chance")
            self.figures.add([f"{key}/{name}" for key in results for name in names], values)
            self.figures.add(["align/mean_max"], values[:, 0].double().mean())

    def _new_inputs(self, whole: bool = False) -> dict[str, Tensor]:
        """Sampled inputs whose subspaces were not brought up to date yet; whole: `exchange` is over."""
        if "align" not in self._kinds or (self._ranks.together and not whole):
            return {}
        return {name: X for name, X in self._held_inputs.items() if name not in self._seen_inputs}

    def _warm(self, weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
        """One step of the subspaces of these weights and inputs, in one call for all; each starts over where a layer's
        width or device changed."""
        jobs: dict[str, list[tuple]] = {}
        for matrices, states, settled in ((weights, self._tops, True), (inputs, self._inputs, False)):
            for name, X in matrices.items():
                old = states.pop(name, None)
                fits = old is not None and old.block.shape[0] == X.shape[1] and old.block.device == X.device
                jobs.setdefault(f"align/{name}", []).append((X, old if fits else None, settled, states, name))
        self._seen_weights |= weights.keys()
        self._seen_inputs |= dict.fromkeys(inputs)

        def step(jobs: list[list[tuple]]) -> list[list[SubspaceState]]:
            X, old, settled, *_ = map(list, zip(*(job for of_layer in jobs for job in of_layer), strict=True))
            found = iter(top_svd(X, TOP, old, seed=self._seed, settled=settled))
            return [[next(found) for _ in of_layer] for of_layer in jobs]

        for key, found in self._together(jobs, step).items():
            for (*_, states, name), state in zip(jobs[key], found, strict=True):
                states[name] = state

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

    def _measure_bound(self, layer: str, s: Spectrum) -> None:
        """Ranks add up over the forwards whose gradients do, as those of a sum of matrices."""
        if s.reason:
            self._explain(f"grad/{layer}/input_rank", s.reason)
        ranks, before = rank_counts(s), self._bounds.get(layer)
        self._bounds[layer] = list(ranks) if before is None else [a + b for a, b in zip(before, ranks, strict=True)]

    def _parameters(self) -> dict[str, Tensor]:
        """The trained matrices of which no hook tells, as they are now."""
        found = {}
        for layer in self._layers if "weight" in self._kinds and self.forwards else ():
            with self._guarded(f"weight/{layer.name}") as enabled:
                if enabled and layer.parameter and (X := layer.trained()) is not None:
                    found[layer.name] = layer.matrix(X)
        return found

    def _unsharded(self) -> dict[str, Tensor]:
        """The weights that were in shards, as `exchange` put them together."""
        found = {}
        for key, X in self._shards.items():
            layer = self._named[key.partition("/")[2]]
            with self._guarded(key) as enabled:
                whole = self._assembled.get(key) if is_sharded(X) else X
                if enabled and whole is not None:
                    found[layer.name] = layer.matrix(whole)
        return found

    def _raw_gradients(self) -> dict[str, Tensor]:
        """By key, as the parameters have them."""
        found = {}
        for layer in self._layers if "grad" in self._kinds else ():
            key = f"grad/{layer.name}"
            with self._guarded(key) as enabled:
                if not enabled or not layer.has_matrix:
                    continue
                weight = layer.trained()
                if weight is None:
                    self._explain(key, "no single parameter behind the weight, whose own gradient is not kept")
                elif weight.grad is not None:
                    found[key] = weight.grad
                elif weight.requires_grad:
                    self._explain(key, "no gradient at step(); call it before zero_grad()")
        return found

    def _gradients(self) -> dict[str, Tensor]:
        found = {}
        for key, gradient in self._raw_gradients().items():
            layer = self._named[key.partition("/")[2]]
            with self._guarded(key):
                if self._sharded and not self._ranks.together:
                    self._explain(key, SHARDED)
                    continue
                whole = self._assembled.get(key) if is_sharded(gradient) else gradient
                if whole is not None:
                    found[key] = (touched_rows if layer.is_looked_up else layer.matrix)(whole)
        return found

    def _pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{key: gradients of a layer's outputs [n, out], its inputs [n, in]} that a gradient may be the product of."""
        if self.forwards > 1 or self._ranks.size > 1:
            return {}
        rows = {name: (G, self._held_inputs.get(name)) for name, G in self._slopes.items()}
        return {f"grad/{name}": (G, X) for name, (G, X) in rows.items() if X is not None and len(X) == len(G)}

    def _measure_gradients(self, found: dict[str, Tensor]) -> None:
        if self._followed is None:
            spectra = self._together(found, spectrum)
        else:
            spectra = self._followed.gradients(found, self._pairs(), self._step)
        for layer in self._layers:
            if layer.is_looked_up and (key := f"grad/{layer.name}") in spectra:
                spectra[key] = with_untouched(spectra[key], len(layer.trained()))
        self._add_spectra(spectra)
        for layer, bound in self._bounds.items():
            if (s := spectra.get(f"grad/{layer}")) is not None:
                excess = (rank_counts(s)[1] - bound[2]).clamp_min(0)
                names = ("input_rank", "input_rank_lo", "input_rank_hi", "bound_excess")
                self.figures.add([f"grad/{layer}/{name}" for name in names], torch.stack([*bound, excess]))


def _local(X: Tensor) -> Tensor:
    return X.to_local() if is_sharded(X) else X


def _gram_or_spectrum(X: Tensor) -> SmallGram | Spectrum:
    return spectrum(X) if X.dtype == torch.float64 else small_gram(X, rounded=True)


def _flops(item: Any) -> float:
    """Roughly, to share out the time of one call for many: of a spectrum, an eigenproblem, a subspace, an alignment."""
    if isinstance(item, SmallGram):
        return float(len(item.G)) ** 3
    if isinstance(item, Tensor):
        return float(item.numel()) * min(item.shape)
    if isinstance(item, list):
        return sum(map(_flops, item))
    X = item[0] if isinstance(item[0], Tensor) else item[0].Vh
    return float(X.numel()) * TOP
