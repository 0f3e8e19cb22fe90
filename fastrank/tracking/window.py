"""Spectra over many steps: the rows of a window stream into one Gram state per layer, so that no batch caps a rank."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from fastrank.gram import GramState
from fastrank.spectra import Spectrum, of_grams
from fastrank.tracking.all_ranks import Ranks
from fastrank.tracking.schedule import Schedule


class Window:
    """States of the layers' activations and of the logits, from one close to the next.

    Args:
        ends: the steps at whose end a window closes.
    """

    def __init__(self, ends: Schedule) -> None:
        self.ends = ends
        self._states: dict[str, GramState] = {}

    def add(self, name: str, X: Tensor) -> None:
        """Adds the rows of X [n, d]; a width or device that changed starts that state over."""
        state = self._states.get(name)
        if state is None or state.d != X.shape[1] or state.device != X.device:
            state = self._states[name] = GramState(X.shape[1], device=X.device)
        state.update(X)

    def close(self, ranks: Ranks) -> dict[str, Spectrum]:
        """{name: spectrum of all rows of the window}, in grouped calls; the next window starts empty.

        Where processes measure together, of the rows that all of them saw, on rank 0: a collective call.
        """
        states, self._states = self._states, {}
        if ranks.together:
            _, names = ranks.shared({name: None for name in states})
            states = {name: states[name].all_reduce() for name in names}
        if not ranks.first:
            return {}
        found = of_grams([s.small_gram() for s in states.values() if s.n])
        return dict(zip((name for name, s in states.items() if s.n), found, strict=True))

    def bytes(self) -> dict[str, int]:
        return {name: 8 * state.d**2 for name, state in self._states.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: state.state_dict() for name, state in self._states.items()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        self._states = {}
        for name, saved in states.items():
            state = GramState(saved["d"], saved["mode"], device=saved["gram"].device)
            state.load_state_dict(copy.copy(saved))
            self._states[name] = state
