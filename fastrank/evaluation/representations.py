"""What a pass leaves of every layer's representation: class moments, its scatter for ridge, a sample for probes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastrank.capture import hash_name
from fastrank.errors import InputError
from fastrank.evaluation.class_states import ClassMoments
from fastrank.evaluation.one_pass import Batch, Observer
from fastrank.evaluation.ood import sum_of
from fastrank.evaluation.probes import Probe, ProbeProtocol, train_probes
from fastrank.evaluation.ridge import ridge_probe, ridge_probe_of_rows
from fastrank.evaluation.sample import Sample, held_out, keys
from fastrank.evaluation.scatter import Scatter


class Representations(Observer):
    """States of all layers over a labelled pass, and the probes that follow from them.

    Args:
        widths: layer -> number of features, in the order of the layers.
        classes: of the labels; None for a set whose classes are counted as they come.
        capacity: samples kept for the probes trained by Adam; 0 keeps none.
        ridge_features: columns of a layer that its ridge probe reads, seeded runs of 16 beyond; 0 for none.
        hold_out: keep one sample in five away from the probes, to measure them with.
        moments: keep class moments of all features (collapse, OrthoDev).
    """

    def __init__(
        self,
        widths: dict[str, int],
        classes: int | None,
        capacity: int,
        ridge_features: int,
        hold_out: bool,
        seed: int,
        device: torch.device,
        moments: bool = True,
    ) -> None:
        self._widths, self.classes, self._hold_out, self._seed = widths, classes or 1, hold_out, seed
        self._fixed, self._device = classes is not None, device
        self._sample = Sample(capacity, seed, device)
        self._labels_kept = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._slices: dict[str, tuple[int, int]] = {}
        by_width: dict[int, list[str]] = {}
        for name, d in widths.items():
            by_width.setdefault(d, []).append(name)
        self._groups = list(by_width.values())
        # Allocated, not written: on a CPU memory is taken only by the rows that come.
        self._kept = [torch.empty(len(names), capacity, d, device=device) for d, names in by_width.items()]
        for group, names in enumerate(self._groups):
            self._slices |= {name: (group, i) for i, name in enumerate(names)}
        self.columns = {name: _columns(name, d, ridge_features, seed, device) for name, d in widths.items()}
        self._ridge, self._ridge_moments = {}, {}
        for name, d in widths.items() if ridge_features else ():
            r = min(d, ridge_features)
            self._ridge[name] = Scatter(r, device)
            self._ridge_moments[name] = ClassMoments(self.classes, r, device)
        self.moments = {name: ClassMoments(self.classes, d, device) for name, d in widths.items() if moments}
        self.labelled = 0
        self._test: tuple[list[Tensor], Tensor] | None = None
        self._labels: Tensor | None = None

    def begin(self, batch: Batch) -> None:
        self._labels = labels = batch.labels
        if labels is None:
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (self._fixed and high >= self.classes):
            most = f"0 .. {self.classes - 1}" if self._fixed else ">= 0"
            raise InputError("labels", f"whole numbers {most}", low if low < 0 else high)
        if high >= self.classes:
            self.classes = high + 1
            for state in (*self.moments.values(), *self._ridge_moments.values()):
                state.grow(self.classes)
        self._rows, self._slots = self._sample.take(batch.first, batch.rows)
        self._labels_kept[self._slots] = labels[self._rows]
        self._fit = None
        if self._hold_out:
            self._fit = (~held_out(keys(batch.first, batch.rows, self._seed, self._device))).nonzero().flatten()
        self.labelled += batch.rows

    def layer(self, name: str, X: Tensor) -> None:
        labels = self._labels
        if labels is None:
            return
        if name not in self._widths or X.shape[1] != self._widths[name]:
            got = f"{name} with {X.shape[1]}"
            raise InputError("loader", "inputs of one shape, whose layers keep their number of features", got)
        if name in self.moments:
            self.moments[name].update(X, labels)
        if name in self._ridge:
            columns = self.columns[name]
            Z, y = (X if columns is None else X.index_select(1, columns)), labels
            if self._fit is not None:
                Z, y = Z.index_select(0, self._fit), y.index_select(0, self._fit)
            self._ridge[name].update(Z, y)
            self._ridge_moments[name].update(Z, y)
        if len(self._rows):
            group, i = self._slices[name]
            self._kept[group][i].index_copy_(0, self._slots, X.index_select(0, self._rows).float())

    def all_reduce(self) -> None:
        """The states of all processes together; kept samples stay where they are."""
        states = (*self.moments.values(), *self._ridge.values(), *self._ridge_moments.values())
        for state in states:
            state.all_reduce()
        classes = torch.tensor(self.classes, device=self._device)
        dist.all_reduce(classes, dist.ReduceOp.MAX)
        self.classes = int(classes)

    def split(self, distributed: bool = False) -> int:
        """Sets the held-out samples apart; returns how many are left to train on, of all processes together."""
        n = self._sample.rows
        self._groups_fit, self._labels_fit = [kept[:, :n] for kept in self._kept], self._labels_kept[:n]
        if self._hold_out:
            test = held_out(self._sample.keys)
            self._test = [X[:, test] for X in self._groups_fit], self._labels_fit[test]
            self._groups_fit, self._labels_fit = [X[:, ~test] for X in self._groups_fit], self._labels_fit[~test]
        self._kept = []
        return int(sum_of(len(self._labels_fit))) if distributed else len(self._labels_fit)

    @property
    def weights(self) -> int:
        """Of the probes of all layers."""
        return self.classes * sum(self._widths.values())

    def adam_probes(self, protocol: ProbeProtocol, distributed: bool = False) -> dict[str, Probe]:
        """layer -> probe. Uses up the samples that `split` left: they are standardised in place."""
        found = train_probes(self._groups_fit, self._labels_fit, self.classes, protocol, distributed)
        self._groups_fit = []
        return {name: found[group][i] for name, (group, i) in self._slices.items()}

    def ridge_probes(self, penalty: float) -> tuple[dict[str, Probe], int]:
        """(layer -> probe, which reads the columns `self.columns[layer]`; samples that they have seen)."""
        probes, seen = {}, 0
        for name, state in self._ridge.items():
            moments, few = self._ridge_moments[name], state.rows()
            if few is None:
                probes[name] = ridge_probe(state.matrix(), moments.sums(), moments.counts, penalty)
            else:
                probes[name] = ridge_probe_of_rows(few.centred, state.mean, few.labels, self.classes, penalty)
            seen = moments.n
        return probes, seen

    def show_held_out(self, observer: Observer) -> None:
        """The samples kept away from the probes, as one batch."""
        groups, labels = self._test
        if not len(labels):
            return
        observer.begin(Batch(labels, len(labels), 0))
        for name, (group, i) in self._slices.items():
            observer.layer(name, groups[group][i])


def _columns(name: str, d: int, most: int, seed: int, device: torch.device) -> Tensor | None:
    if not most or d <= most:
        return None
    generator = torch.Generator().manual_seed((seed + hash_name(name)) & 0x7FFFFFFFFFFFFFFF)
    return torch.randperm(d, generator=generator)[:most].sort().values.to(device)
