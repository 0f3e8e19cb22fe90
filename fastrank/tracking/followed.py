"""Spectra of weights and gradients from step to step: what is known of the last steps makes the next ones cheap.

Weights move little, so their spectra are carried (`fastrank.carried`). Gradients are products of few rows
(`fastrank.factored`), or their rank says how wide a sketch has to be (`fastrank.sketched`). What neither settles is
computed from the whole matrix, and so is all that is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from fastrank.carried import SMALLEST_SIDE, Anchor, carried_spectra
from fastrank.factored import factored_spectra
from fastrank.sketched import sketch_width, sketched_spectrum
from fastrank.spectra import Spectrum, quick_spectra, spectrum
from fastrank.subspace import SubspaceState
from fastrank.tracking.figures import Figures

#: {key: result} of one call for all items, without those that fail.
Together = Callable[[dict[str, Any], Callable[[list], list]], dict[str, Any]]


class Followed:
    """Keys are those of the run database, such as "weight/fc"; `together` does the work and guards it."""

    def __init__(self, together: Together, seed: int) -> None:
        self._together, self._seed = together, seed
        self._anchors: dict[str, Anchor] = {}
        self._outdated: set[str] = set()
        self._ranks: dict[str, float] = {}

    def weights(
        self, weights: dict[str, Tensor], tops: dict[str, SubspaceState], step: int, figures: Figures
    ) -> dict[str, Spectrum]:
        """Also the figure "drift" of each that is carried: how far it is from its anchor, as a share of that's norm."""
        carried = {key: X for key, X in weights.items() if min(X.shape) >= SMALLEST_SIDE and key in tops}
        spectra = self._together({key: X for key, X in weights.items() if key not in carried}, spectrum)
        jobs = {key: (X, tops[key], self._anchor(key, X)) for key, X in carried.items()}
        for key, found in self._together(jobs, partial(carried_spectra, step=step)).items():
            self._anchors[key], spectra[key] = found.anchor, found.spectrum
            figures.add([f"{key}/drift"], found.drift)
        return {key: spectra[key] for key in weights if key in spectra}

    def _anchor(self, key: str, X: Tensor) -> Anchor | None:
        anchor = self._anchors.get(key)
        return anchor if anchor is not None and anchor.fits(X) and key not in self._outdated else None

    def gradients(
        self, gradients: dict[str, Tensor], factors: dict[str, tuple[Tensor, Tensor]], step: int
    ) -> dict[str, Spectrum]:
        """factors: of those gradients that are `G^T X`, the pair (G, X); see `fastrank.factored`."""
        jobs = {key: (A, *factors[key]) for key, A in gradients.items() if key in factors}
        found = self._together(jobs, partial(factored_spectra, seed=self._seed, stream=step))
        spectra = {key: s for key, s in found.items() if s is not None}
        jobs = {}
        for key, G in gradients.items():
            if key in spectra:
                continue
            # On a GPU the answer would have to be waited for.
            width = sketch_width(*G.shape, self._ranks.get(key, math.nan)) if G.device.type == "cpu" else None
            if width is not None:
                jobs[key] = G, width, self._seed, step
        sketched = self._together(jobs, lambda jobs: [sketched_spectrum(*job) for job in jobs])
        spectra |= {key: s for key, s in sketched.items() if s is not None}
        spectra |= self._together({key: G for key, G in gradients.items() if key not in spectra}, quick_spectra)
        return {key: spectra[key] for key in gradients if key in spectra}

    def learn(self, values: dict[str, float], step: int) -> None:
        """From a step's figures, on the host: what to do about each matrix at step number `step`."""
        self._ranks |= {
            key[:-8]: x for key, x in values.items() if key.startswith("grad/") and key.endswith("/rank_hi")
        }
        self._outdated = set()
        for key, anchor in self._anchors.items():
            width = values.get(f"{key}/rank_hi", math.nan) - values.get(f"{key}/rank_lo", math.nan)
            if anchor.outdated(step, width, values.get(f"{key}/drift", math.nan)):
                self._outdated.add(key)

    def bytes(self) -> dict[str, int]:
        return {key: anchor.matrix.numel() * anchor.matrix.element_size() for key, anchor in self._anchors.items()}

    def state_dict(self) -> dict:
        anchors = {key: anchor.state_dict() for key, anchor in self._anchors.items()}
        return {"anchors": anchors, "outdated": sorted(self._outdated), "ranks": self._ranks}

    def load_state_dict(self, state: dict) -> None:
        self._anchors = {key: Anchor.from_state_dict(anchor) for key, anchor in state["anchors"].items()}
        self._outdated, self._ranks = set(state["outdated"]), dict(state["ranks"])
