"""Spectra over many steps: the rows of a window stream into one Gram state per layer, so that no batch caps a rank."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from fastrank.gram import GramState
from fastrank.tracking.schedule import Schedule


class Window:
    """States of the layers' activations and of the logits, from one close to the next.

    Args:
        ends: the steps at whose end a window closes.

    Attributes:
        states: of what was added since the last close, by name.
    """

    def __init__(self, ends: Schedule) -> None:
        self.ends = ends
        self.states: dict[str, GramState] = {}

    def add(self, name: str, X: Tensor) -> None:
        """Adds the rows of X [n, d]; a width or device that changed starts that state over."""
        state = self.states.get(name)
        if state is None or state.d != X.shape[1] or state.device != X.device:
            state = self.states[name] = GramState(X.shape[1], device=X.device)
        state.update(X)

    def close(self) -> dict[str, GramState]:
        """{name: state of all rows of the window}; the next window starts empty."""
        states, self.states = self.states, {}
        return states

    def bytes(self) -> dict[str, int]:
        return {name: 8 * state.d**2 for name, state in self.states.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: state.state_dict() for name, state in self.states.items()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        self.states = {}
        for name, saved in states.items():
            state = GramState(saved["d"], saved["mode"], device=saved["gram"].device)
            state.load_state_dict(copy.copy(saved))
            self.states[name] = state
