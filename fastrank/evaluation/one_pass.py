"""One pass over a data set in evaluation mode: a forward of each batch, shown to every observer while it is there.

Nothing is kept but what the observers keep, so memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fastrank.capture import MAX_FEATURES, Capture
from fastrank.errors import InputError
from fastrank.layers import Layer, clean_name, select_layers


@dataclass(frozen=True)
class Batch:
    """labels: [rows] int64 or None. first: position of the first row in the data set (of this process)."""

    labels: Tensor | None
    rows: int
    first: int


class Observer:
    """What sees a pass: `begin` before a forward, `layer` for each representation in it, `end` after it."""

    def begin(self, batch: Batch) -> None:
        """Before the forward of a batch."""

    def layer(self, name: str, X: Tensor) -> None:
        """X [rows, d]: a view of live data, or the seeded subset of its features."""

    def end(self, features: Tensor | None, logits: Tensor) -> None:
        """features [rows, d]: what entered the classifier, None where it is not known. logits [rows, C]."""


@dataclass(frozen=True)
class Shapes:
    """What one forward shows: classes, width of the classifier's input or None, widths of the layers in order."""

    classes: int
    features: int | None
    layers: dict[str, int]


class Forwards:
    """A model's forwards with its layers and classifier watched; the model's mode and hooks are put back afterwards.

    Args:
        layers: globs as of `fastrank.watch`; representations are outputs after the nonlinearity for "*".
        classifier: name of the linear module whose output are the logits; None takes the last one that runs, if its
            output has the shape of the logits.
        max_features: of a flattened representation, seeded runs of 16 beyond ([U] A.5).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str | Sequence[str] = "*",
        classifier: str | None = None,
        device: torch.device | None = None,
        seed: int = 0,
        max_features: int = MAX_FEATURES,
    ) -> None:
        self.model = model = getattr(model, "_orig_mod", model)  # torch.compile's graph has no place for new hooks
        self.device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
        self.layers = [layer for layer in select_layers(model, layers) if layer.output]
        self.classifier: str | None = None
        self._finding = False
        self._observers: Sequence[Observer] = ()
        self._features: dict[str, Tensor] = {}
        modules = {clean_name(name): module for name, module in model.named_modules()}
        linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
        if classifier is not None and classifier not in linear:
            raise InputError("classifier", f"a linear module such as {', '.join(list(linear)[-3:])}", repr(classifier))
        self._wanted = classifier
        self._linear = linear
        heads = [Layer(name, module, output=False, weight=True) for name, module in linear.items()]
        options = {"seed": seed, "max_features": max_features, "training": False}
        self._captures = [
            Capture([Layer(one.name, one.module, True, False) for one in self.layers], self._on_layer,
                    kinds=frozenset({"act"}), **options),
            Capture(heads, self._on_features, kinds=frozenset({"features"}), **options),
        ]  # fmt: skip

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The model in evaluation mode with hooks, without gradients; everything as it was afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        for capture in self._captures:
            capture.attach()
            capture.switch.armed = True
        try:
            with torch.no_grad():
                yield
        finally:
            for capture in self._captures:
                capture.detach()
            for module, mode in modes:
                module.training = mode

    def shapes(self, x: Tensor) -> Shapes:
        """From a forward of x [1 or more, ...], which also finds the classifier."""
        widths, self._finding = _Widths(), True
        with self.watched():
            logits = self._forward(x.to(self.device), Batch(None, len(x), 0), (widths,))
        self._finding = False
        features = None if self.classifier is None else self._features_width
        return Shapes(logits.shape[1], features, widths.found)

    def run(self, loader: Iterable[Any], observers: Sequence[Observer], limit: int | None = None) -> int:
        """Shows the observers every batch of the loader; returns the number of samples. limit: samples at most."""
        seen = 0
        with self.watched():
            for x, y in batches(loader):
                if limit is not None and seen + len(x) > limit:
                    x, y = x[: limit - seen], None if y is None else y[: limit - seen]
                if not len(x):
                    continue
                x = x.to(self.device, non_blocking=True)
                y = None if y is None else y.to(self.device, non_blocking=True)
                self._forward(x, Batch(y, len(x), seen), observers)
                seen += len(x)
                if seen == limit:
                    break
        if not seen:
            raise InputError("loader", "at least one sample", "none")
        return seen

    def _forward(self, x: Tensor, batch: Batch, observers: Sequence[Observer]) -> Tensor:
        for capture in self._captures:
            capture.begin_forward()
        self._observers = observers
        self._features.clear()
        for observer in observers:
            observer.begin(batch)
        logits = self.model(x)
        logits = getattr(logits, "logits", logits)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch.rows:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError("model", f"logits [{batch.rows}, C] for {batch.rows} samples", got)
        if self._finding:
            self._find_classifier(logits)
        features = self._features.get(self.classifier)
        for observer in observers:
            observer.end(features, logits)
        self._features.clear()
        return logits

    def _find_classifier(self, logits: Tensor) -> None:
        name = self._wanted or next(reversed(self._features), None)
        features = self._features.get(name)
        fits = features is not None and len(features) == len(logits)
        if fits:
            module = self._linear[name]
            given = nn.functional.linear(features, module.weight, module.bias)
            # Whatever came after the last linear module (a scale, a norm) would make its weight no classifier.
            fits = given.shape == logits.shape and torch.allclose(given, logits, rtol=1e-3, atol=1e-5, equal_nan=True)
        if self._wanted and not fits:
            raise InputError("classifier", "the linear module whose output are the logits", repr(self._wanted))
        self.classifier = name if fits else None
        self._features_width = features.shape[1] if fits else None

    @property
    def weight(self) -> Tensor:
        """[C, d], the classifier's."""
        return self._linear[self.classifier].weight.detach()

    def _on_layer(self, kind: str, name: str, matrix) -> None:
        X = matrix()
        for observer in self._observers:
            observer.layer(name, X)

    def _on_features(self, kind: str, name: str, matrix) -> None:
        if self._finding or name == self.classifier:
            self._features[name] = matrix()


class _Widths(Observer):
    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def layer(self, name: str, X: Tensor) -> None:
        self.found[name] = X.shape[1]


#: Names under which a batch that is a mapping has its inputs and its labels.
INPUTS = ("pixel_values", "inputs", "input", "images", "image", "img", "x")
LABELS = ("labels", "label", "targets", "target", "y")


def batches(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(inputs, labels or None) of a loader of tensors, (inputs,), (inputs, labels, ...), or mappings.

    A mapping (a dict, the batches of Hugging Face) has its inputs under one of the names INPUTS and its labels, if any,
    under one of LABELS; what else it has is left out.

    Raises:
        InputError: anything else, labels that are not whole numbers [n], or a loader that cannot be gone through.
    """
    if not isinstance(loader, Iterable):
        raise InputError("loader", "batches (inputs, labels)", type(loader).__name__)
    for batch in loader:
        parts = (batch,) if isinstance(batch, Tensor) else batch
        if isinstance(batch, Mapping):
            parts = _of_mapping(batch)
        if not isinstance(parts, tuple | list) or not parts or not isinstance(parts[0], Tensor):
            got = type(batch).__name__
            if isinstance(parts, tuple | list) and parts:
                got += f" of {type(parts[0]).__name__}"
            raise InputError("loader", "batches (inputs, labels) of tensors", got)
        x, y = parts[0], parts[1] if len(parts) > 1 else None
        if y is not None:
            try:
                y = torch.as_tensor(y)
            except (TypeError, ValueError, RuntimeError):
                raise InputError("loader", f"{len(x)} whole numbers as labels", repr(y)[:60]) from None
            if y.shape != (len(x),) or y.dtype.is_floating_point:
                raise InputError("loader", f"{len(x)} whole numbers as labels", f"{y.dtype} {tuple(y.shape)}")
            y = y.long()
        yield x, y


def _of_mapping(batch: Mapping[str, Any]) -> tuple[Any, Any]:
    found = []
    for names, at_least in ((INPUTS, 1), (LABELS, 0)):
        here = [name for name in names if name in batch]
        if not at_least <= len(here) <= 1:
            what = (
                f"{'one' if at_least else 'at most one'} of the names {', '.join(names)} in a batch that is a mapping"
            )
            cure = "give tuples, ((b['inputs'], b['labels']) for b in loader)"
            raise InputError("loader", what, ", ".join(map(str, batch)) or "none", cure)
        found.append(batch[here[0]] if here else None)
    return found[0], found[1]


def peek(loader: Iterable[Any]) -> tuple[Tensor, Iterable[Any]]:
    """Some inputs of the first batch, and what goes on to give all batches: a loader of one pass loses nothing."""
    if not isinstance(loader, Iterable):
        raise InputError("loader", "batches (inputs, labels)", type(loader).__name__)
    iterator = iter(loader)
    for first in iterator:
        x, _ = next(batches([first]))
        if len(x):
            return x[:2], chain([first], iterator)
    raise InputError("loader", "at least one sample", "none")


def labelled(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader whose samples must have labels."""
    for x, y in batches(loader):
        if y is None:
            raise InputError("loader", "batches (inputs, labels)", "inputs alone")
        yield x, y
