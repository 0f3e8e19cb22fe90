"""What the hooks took of a measured step, and the figures that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fastrank.carried import SMALLEST_SIDE
from fastrank.layers import Layer
from fastrank.metrics.alignment import alignment
from fastrank.ranks import rank_counts
from fastrank.small_grams import SmallGram, small_gram
from fastrank.spectra import Spectrum, of_grams, spectrum
from fastrank.subspace import SubspaceState, top_svd
from fastrank.tracking.all_ranks import Ranks, whole
from fastrank.tracking.costs import Costs
from fastrank.tracking.figures import Figures
from fastrank.tracking.followed import Followed
from fastrank.tracking.logits import add_logits
from fastrank.tracking.presets import BASIC, TOP
from fastrank.tracking.remarks import Remarks
from fastrank.tracking.touched_rows import touched_rows, with_untouched
from fastrank.tracking.window import Window


class Measurements:
    """From a step's first hook to its figures: `begin`, `take` in the hooks, `weights` after the forward, `gradients`
    before an optimizer moves, `finish` at the end. What fails is disabled with a remark.

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
        self._held_weights: dict[str, tuple[Tensor, int]] = {}
        self._held_inputs: dict[str, Tensor] = {}
        self._slopes: dict[str, Tensor] = {}
        self._bounds: dict[str, list[Tensor]] = {}
        #: Activations whose Gram matrices do not add up over processes: fewer rows than features.
        self._rows: dict[str, Tensor] = {}

    def take(self, kind: str, name: str, matrix: Callable[[], Tensor | Spectrum]) -> None:
        """In a hook: takes what is gone or changed by the end of the step, and leaves the rest for one call for all."""
        work = {"input": "align" if "align" in self._kinds else "grad", "slope": "grad"}.get(kind, kind)
        key = f"grad/{name} bound" if kind == "bound" else f"{work}/{name}"
        with self._costs.block(work), self._guarded(key) as enabled:
            if not enabled:
                return
            self._costs.works(key)
            found = matrix()
            if kind == "act" and self._ranks.together and (len(found) < found.shape[1] or found.dtype == torch.float64):
                # To be joined with the other processes' rows; a copy, as a later layer may write to it.
                self._rows[key] = found.clone()
                self._costs.hold(key, found)
            elif kind == "act":
                gram = self._acts[key] = _gram_or_spectrum(found)
                self._costs.hold(key, gram.G if isinstance(gram, SmallGram) else gram.sigma)
            elif kind == "window":
                self._window.add(name, found)
            elif kind == "weight":
                self._held_weights[name] = found, found._version
            elif kind == "input":
                self._held_inputs[name] = found
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
        held = {}
        for name, (X, version) in self._held_weights.items():
            if self._sharded:
                weight = self._whole(f"weight/{name}", self._named[name].trained())
                held |= {} if weight is None else {name: self._named[name].matrix(weight)}
            elif X._version == version:
                held[name] = X
            else:
                self._explain(f"weight/{name}", "changed before the end of the watched model's own forward")
        if "weight" in self._kinds and self.forwards:
            held |= self._parameters()
        if not self._ranks.first:
            return
        aligns, follows = "align" in self._kinds, "weight" in self._kinds and self._followed is not None
        warm = {
            name: X for name, X in held.items()
            if (aligns and not self._named[name].parameter) or (follows and min(X.shape) >= SMALLEST_SIDE)
        }  # fmt: skip
        with self._costs.block("align" if aligns else "weight"):
            self._warm(warm, self._tops, settled=True)
        if "weight" in self._kinds:
            with self._costs.block("weight"):
                weights = {f"weight/{name}": X for name, X in held.items()}
                if self._followed is None:
                    self._add_spectra(self._together(weights, spectrum))
                else:
                    tops = {f"weight/{name}": state for name, state in self._tops.items()}
                    self._add_spectra(self._followed.weights(weights, tops, self._step, self.figures))

    def gradients(self) -> None:
        """Before an optimizer touches them; with all processes together every one calls it."""
        if "grad" not in self._kinds or self._gradients_are_measured:
            return
        self._gradients_are_measured = True
        with self._costs.block("grad"):
            found = self._gradients()
            if self._ranks.first:
                self._measure_gradients(found)

    def finish(self, logits: Tensor | None, target: Tensor | None, T: float | Tensor) -> None:
        """All that was not measured yet, and the figures of logits [N, C] with target [N] at temperature T."""
        self.weights()
        self.gradients()
        if not self._ranks.first:
            return
        with self._costs.block("act"):
            self._measure_activations()
        with self._costs.block("align"):
            if "align" in self._kinds:
                self._measure_alignment()
        if logits is not None:
            with self._costs.block("logits"), self._guarded("logits") as enabled:
                if enabled and (reason := add_logits(self.figures, logits, target, T)):
                    self._explain("logits", reason)

    def exchange(self, logits: Tensor | None, target: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
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
                    self._acts[key] = _gram_or_spectrum(X)
        return rows.get("logits"), rows.get("target")

    def close_window(self) -> None:
        """Ranks and spectra of all rows since the last window's end."""
        with self._guarded("window") as enabled:
            if enabled:
                found = {f"window/{name}": s for name, s in self._window.close(self._ranks).items()}
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

    def _measure_activations(self) -> None:
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
        self._warm(self._held_inputs, self._inputs)
        names = [name for name in self._held_inputs if name in self._inputs and name.partition("#")[0] in self._tops]
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

    def _measure_bound(self, layer: str, s: Spectrum) -> None:
        """Ranks add up over the forwards whose gradients do, as those of a sum of matrices."""
        if s.reason:
            self._explain(f"grad/{layer}/input_rank", s.reason)
        ranks, before = rank_counts(s), self._bounds.get(layer)
        self._bounds[layer] = list(ranks) if before is None else [a + b for a, b in zip(before, ranks, strict=True)]

    def _parameters(self) -> dict[str, Tensor]:
        """The trained matrices of which no hook tells, as they are now."""
        whole = {x.name: self._whole(f"weight/{x.name}", x.trained()) for x in self._layers if x.parameter}
        return {name: self._named[name].matrix(X) for name, X in whole.items() if X is not None}

    def _gradients(self) -> dict[str, Tensor]:
        found = {}
        for layer in self._layers:
            if not layer.has_matrix:
                continue
            key, weight = f"grad/{layer.name}", layer.trained()
            if weight is None:
                self._explain(key, "no single parameter behind the weight")
            elif weight.grad is not None:
                gradient = self._whole(key, weight.grad)
                matrix = touched_rows if layer.is_looked_up else layer.matrix
                found |= {} if gradient is None else {key: matrix(gradient)}
            elif weight.requires_grad:
                self._explain(key, "no gradient at step(); call it before zero_grad()")
        return found

    def _whole(self, key: str, tensor: Tensor) -> Tensor | None:
        """A parameter or gradient, put together where FSDP2 keeps shards of it."""
        if self._sharded and not self._ranks.together:
            self._explain(key, "in shards over processes: all_ranks=True, on every process, puts it together")
            return None
        return whole(tensor)

    def _factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{key: gradients of a layer's outputs [n, out], its inputs [n, in]} that a gradient may be the product of."""
        if self.forwards > 1 or self._ranks.size > 1:
            return {}
        rows = {name: (G, self._held_inputs.get(name)) for name, G in self._slopes.items()}
        return {f"grad/{name}": (G, X) for name, (G, X) in rows.items() if X is not None and len(X) == len(G)}

    def _measure_gradients(self, found: dict[str, Tensor]) -> None:
        if self._followed is None:
            spectra = self._together(found, spectrum)
        else:
            spectra = self._followed.gradients(found, self._factors(), self._step)
        for layer in self._layers:
            if layer.is_looked_up and (key := f"grad/{layer.name}") in spectra:
                spectra[key] = with_untouched(spectra[key], len(layer.trained()))
        self._add_spectra(spectra)
        for layer, bound in self._bounds.items():
            if (s := spectra.get(f"grad/{layer}")) is not None:
                excess = (rank_counts(s)[1] - bound[2]).clamp_min(0)
                names = ("input_rank", "input_rank_lo", "input_rank_hi", "bound_excess")
                self.figures.add([f"grad/{layer}/{name}" for name in names], torch.stack([*bound, excess]))


def _gram_or_spectrum(X: Tensor) -> SmallGram | Spectrum:
    return spectrum(X) if X.dtype == torch.float64 else small_gram(X, rounded=True)


def _flops(item: Any) -> float:
    """Roughly, to share out the time of one call for many: of a spectrum, an eigenproblem, a subspace, an alignment."""
    if isinstance(item, SmallGram):
        return float(len(item.G)) ** 3
    if isinstance(item, Tensor):
        return float(item.numel()) * min(item.shape)
    X = item[0] if isinstance(item[0], Tensor) else item[0].Vh
    return float(X.numel()) * TOP
