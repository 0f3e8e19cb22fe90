"""The temperature of training: schedules that change it in place, and its calibration to the network's first logits.

criterion = fastrank.TemperedCE(T=torch.tensor(1.0))
schedule = fastrank.TemperatureSchedule(criterion, constant(100, steps=500) + cosine(100, 1, steps=500))
for x, y in loader:
    loss = criterion(model(x), y)
    ...
    schedule.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fastrank.errors import InputError


@dataclass(frozen=True)
class Curve:
    """A temperature as a function of the step: `at(step)` for step = 0 .. steps, and what `at(steps)` is from then on.

    `first + second` runs one after the other.
    """

    steps: float
    at: Callable[[float], float]

    def __call__(self, step: float) -> float:
        return self.at(min(max(step, 0), self.steps))

    def __add__(self, other: Curve) -> Curve:
        if not isinstance(other, Curve):
            return NotImplemented
        if math.isinf(self.steps):
            raise InputError("steps", "a length of every part but the last", self.steps, "constant(T, steps=...)")
        return Curve(
            self.steps + other.steps, lambda step: self(step) if step < self.steps else other(step - self.steps)
        )


def constant(T: float, steps: float = math.inf) -> Curve:
    _check_temperature("T", T)
    return Curve(_checked_steps(steps), lambda step: float(T))


def linear(start: float, end: float, steps: float) -> Curve:
    """From `start` at step 0 to `end` at step `steps`, along a straight line."""
    return _between(start, end, steps, lambda share: share)


def cosine(start: float, end: float, steps: float) -> Curve:
    """From `start` at step 0 to `end` at step `steps`, along half a cosine: slow at both ends."""
    return _between(start, end, steps, lambda share: (1 - math.cos(math.pi * share)) / 2)


class TemperatureSchedule:
    """Sets a loss's temperature, a 0-d tensor, in place: a compiled loss is not compiled again, and no device waits.

    Args:
        criterion: any module whose `T` is a 0-d tensor, such as `TemperedCE(T=torch.tensor(1.0))`. It is read anew at
            each step, so `criterion.to(device)` may come later. A `watch(T=criterion.T)` follows.
        curve: step -> temperature > 0; `constant`, `linear`, `cosine`, sums of them, or a function.

    The temperature of step 0 is set at once; `step()` sets that of the next.

    Raises:
        InputError: `T` is no 0-d tensor, or the curve's first temperature is not a finite number > 0.
    """

    def __init__(self, criterion: nn.Module, curve: Callable[[float], float]) -> None:
        T = getattr(criterion, "T", None)
        if not isinstance(T, Tensor) or T.dim():
            got = f"a tensor of shape {tuple(T.shape)}" if isinstance(T, Tensor) else repr(T)
            raise InputError("criterion", "a loss whose T is a 0-d tensor", got, "TemperedCE(T=torch.tensor(1.0))")
        self._criterion, self._curve, self._step = criterion, curve, 0
        self._set()

    @property
    def value(self) -> float:
        """The temperature of the step under way, without asking the device."""
        return float(self._curve(self._step))

    def step(self) -> None:
        self._step += 1
        self._set()

    def state_dict(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on at the step of a `state_dict`; the curve is this schedule's own.

        Raises InputError, and changes nothing, where `state` is no such state, or the curve has no temperature there.
        """
        step = state.get("step") if isinstance(state, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            got = repr(state) if step is None else f"step = {step!r}"
            raise InputError("state", "what state_dict() gave, {'step': a whole number >= 0}", got)
        _check_temperature("curve", float(self._curve(step)))
        self._step = step
        self._set()

    def _set(self) -> None:
        value = self.value
        _check_temperature("curve", value)
        with torch.no_grad():
            self._criterion.T.fill_(value)


@torch.no_grad()
def logits_norm(model: nn.Module, loader: Iterable[Any], batches: int | None = None) -> float:
    """Root mean square over samples of the norm of their logits, `||M||_F / sqrt(n)`, as a training step sees it.

    The forwards run in training mode (what batch normalisation does there is what a loss sees), without gradients; the
    model's buffers, its mode and the random states are put back. Call it before `watch`, whose hooks would see them.

    Args:
        model: input -> logits [n, C]. loader: batches, tensors or tuples whose first item is the input, on the model's
            device. batches: at most so many of them.
    Raises:
        InputError: no batch, or logits that are not finite.
    """
    square, n = 0.0, 0
    with _training_untouched(model):
        for batch in islice(loader, batches):
            logits = model(batch[0] if isinstance(batch, list | tuple) else batch)
            square += float(logits.double().square().sum())
            n += logits.shape[0]
    if not n:
        raise InputError("loader", "at least one batch", "none")
    if not math.isfinite(square):
        raise InputError("model", "finite logits", "NaN or infinity")
    return math.sqrt(square / n)


def calibrate_temperature(
    model: nn.Module, loader: Iterable[Any], norm: float | nn.Module, batches: int | None = None
) -> float:
    """The T for which `logits_norm(model) / T` is `norm`, or that of another model at T = 1, on the same batches.

    This is how Masarczyk et al. 2025 (Fig. 9 and 17) give networks of different initial logits norms the same start; by
    itself a norm says little across architectures (their A.7).

    Raises:
        InputError: as `logits_norm`; a target that is not a finite number > 0; logits that are all zero.
    """
    if isinstance(norm, nn.Module):
        loader = list(islice(loader, batches))
        norm = logits_norm(norm, loader)
    if not (isinstance(norm, int | float) and 0 < norm < math.inf):
        raise InputError("norm", "a finite number > 0, or a model with logits that are not all zero", norm)
    own = logits_norm(model, loader, batches)
    if not own > 0:
        raise InputError("model", "logits that are not all zero", "zeros", "its last layer starts at zero")
    return own / norm


@contextmanager
def _training_untouched(model: nn.Module) -> Iterator[None]:
    """Training mode inside; modes, buffers and random states as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices):
        try:
            model.train()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for buffer, value in buffers:
                buffer.copy_(value)


def _between(start: float, end: float, steps: float, shape: Callable[[float], float]) -> Curve:
    _check_temperature("start", start)
    _check_temperature("end", end)
    steps = _checked_steps(steps)
    if math.isinf(steps):
        raise InputError("steps", "a finite number of steps", steps)
    return Curve(steps, lambda step: start + (end - start) * shape(step / steps))


def _checked_steps(steps: float) -> float:
    if not (isinstance(steps, int | float) and steps > 0):
        raise InputError("steps", "a number > 0", repr(steps))
    return steps


def _check_temperature(name: str, T: float) -> None:
    if not (isinstance(T, int | float) and 0 < T < math.inf):
        raise InputError(name, "a finite temperature > 0", repr(T))
