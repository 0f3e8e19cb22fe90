"""The classifier's input over a pass, and the neural collapse that follows from it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fastrank.evaluation import collapse as nc
from fastrank.evaluation.class_states import ClassMoments
from fastrank.evaluation.collapse import Collapse
from fastrank.evaluation.one_pass import Batch, Observer, Shapes
from fastrank.evaluation.ood import sum_of
from fastrank.evaluation.sample import Sample
from fastrank.evaluation.scatter import Scatter
from fastrank.evaluation.softmax_codes import gnc3, one_vs_rest_margin

#: Samples kept for NC4 and, without a test set, as the in-distribution side of detection.
KEPT = 10_000
#: More classes than this have no GNC2: its quadratic programs take 12 s for 400 classes on one core, and grow as C^3.
GNC2_CLASSES = 400


class FeatureStates(Observer):
    """Of the classifier's input: scatter, class moments, and a sample with the model's own decisions."""

    def __init__(self, shapes: Shapes, capacity: int, seed: int, device: torch.device) -> None:
        """capacity: samples kept, 0 where a test set takes their place."""
        self.d = shapes.features
        self._sample = Sample(capacity, seed, device)
        self._rows = torch.empty(capacity, self.d or 0, device=device)
        self._logits = torch.empty(capacity, shapes.classes, device=device)
        self._batch: Batch | None = None
        if self.d is not None:
            self.scatter = Scatter(self.d, device)
            self.moments = ClassMoments(shapes.classes, self.d, device)

    def begin(self, batch: Batch) -> None:
        self._batch = batch

    def end(self, features: Tensor | None, logits: Tensor) -> None:
        rows, slots = self._sample.take(self._batch.first, self._batch.rows)
        self._logits[slots] = logits[rows].float()
        if self.d is not None:
            self.scatter.update(features, self._batch.labels)
            self.moments.update(features, self._batch.labels)
            self._rows[slots] = features[rows].float()

    def all_reduce(self) -> None:
        if self.d is not None:
            self.scatter.all_reduce()
            self.moments.all_reduce()

    def agreement(self, kept: bool) -> Agreement:
        """NC4's counter: empty, for a pass over a test set, or that of the kept sample."""
        if self.d is None:
            return Agreement(None, None)
        judged = Agreement(self.moments.means(), self.moments.present)
        if kept:
            self.show(judged)
        return judged

    def show(self, observer: Observer) -> None:
        """The kept sample, as one batch."""
        n = self._sample.rows
        observer.end(None if self.d is None else self._rows[:n], self._logits[:n])


class Agreement(Observer):
    """How often the model and the nearest class mean decide alike (NC4)."""

    def __init__(self, means: Tensor | None, present: Tensor | None) -> None:
        """means: [C', d] of the training classes `present` [C']; None where the classifier is not known."""
        self._means, self._present = means, present
        self._alike, self._seen = 0, 0

    def end(self, features: Tensor | None, logits: Tensor) -> None:
        if self._means is None or features is None:
            return
        nearest = self._present[nc.nearest_class(features, self._means)]
        self._alike = self._alike + (nearest == logits.argmax(1)).sum()
        self._seen += len(logits)

    def share(self, distributed: bool) -> tuple[float, int]:
        """(of disagreements, number of samples)"""
        alike, seen = (int(sum_of(int(x)) if distributed else x) for x in (self._alike, self._seen))
        return (1 - alike / seen if seen else math.nan), seen


def collapse_of(
    states: FeatureStates, weight: Tensor | None, shapes: Shapes, judged: Agreement, distributed: bool
) -> Collapse:
    """Every measure of the features that enter a classifier with `weight` [C, d]."""
    if states.d is None:
        note = "the logits are not the output of a linear module that was found; name it: classifier=..."
        return Collapse(classes=shapes.classes, notes=(note,))
    moments = states.moments
    means, present, samples = moments.means(), moments.present, moments.n
    found = Collapse(classes=shapes.classes, present=len(present), samples=samples)
    if len(present) < 2:
        return replace(found, notes=(f"{len(present)} class with samples; collapse is between two or more",))
    if not bool(means.isfinite().all()):
        return replace(found, notes=("non-finite features",))
    notes = [] if len(present) == shapes.classes else [f"{shapes.classes - len(present)} classes without samples"]
    M, W = nc.centered(means), weight.double()[present]
    disagree, judged_on = judged.share(distributed)
    margin = (math.nan, math.nan)
    if len(present) > GNC2_CLASSES:
        notes.append(f"gnc2 is left out beyond {GNC2_CLASSES} classes")
    elif bool((W.norm(dim=1) > 0).all()) and bool(W.isfinite().all()):
        codes = one_vs_rest_margin(W)
        margin = codes.margin, codes.margin_lo
    if len(present) > states.d + 1:
        notes.append(f"{len(present)} classes in {states.d} features: no simplex exists, nc2 and nc3 cannot reach 0")
    notes += _undefined(means, M, W)
    if lone := int((moments.counts[present] == 1).sum()):
        notes.append(f"{lone} of {len(present)} classes have one sample, which nc1 counts as collapsed")
    nc1 = float(nc.nc1_pinv(means, **_within(states, means, present)))
    return replace(
        found,
        nc1_pinv=nc1 if math.isnan(nc1) else max(0.0, nc1), nc1_rank=int(nc.between_rank(means)),
        nc1_trace=float(nc.nc1_trace(means, (moments.variances() * moments.counts[present]).sum() / samples)),
        nc1_cdnv=float(nc.cdnv(means, moments.variances())),
        nc2_equinorm=float(nc.nc2_equinorm(M)), nc2_equiangular=float(nc.nc2_equiangular(M)),
        nc2_angle_spread=float(nc.nc2_angle_spread(M)), nc2_etf=float(nc.etf_error(M, M)),
        nc2_equinorm_weight=float(nc.nc2_equinorm(W)), nc2_equiangular_weight=float(nc.nc2_equiangular(W)),
        nc3_duality=float(nc.nc3_duality(W, means)), nc3_etf=float(nc.etf_error(W, M)),
        nc4=disagree, nc4_samples=judged_on, gnc2=margin[0], gnc2_lo=margin[1],
        gnc3=float(gnc3(W, means)), gnc3_centered=float(gnc3(W, means, center=True)),
        mean_share=float(nc.mean_share(means)), notes=tuple(notes),
    )  # fmt: skip


def _within(states: FeatureStates, means: Tensor, present: Tensor) -> dict[str, Tensor]:
    """The covariance within classes, as `nc1_pinv` takes it: rows where there are fewer of them than features."""
    moments, n = states.moments, states.moments.n
    few = states.scatter.rows()
    if few is None:
        between = moments.scatter_between()
        # What the classes do not explain of the whole scatter; rounding may leave a trace of it below zero.
        return {"within": (states.scatter.matrix() - between.T @ between) / n}
    place = torch.searchsorted(present, few.labels)
    return {"rows": (few.centred - (means - moments.mean())[place]) / math.sqrt(n)}


def _undefined(means: Tensor, M: Tensor, W: Tensor) -> list[str]:
    """Why figures are NaN: means [C, d], centred M, classifier W [C, d]."""
    zero = {what: int((rows.norm(dim=1) == 0).sum()) for what, rows in (("w", W), ("mean", means), ("centred", M))}
    found = []
    if zero["centred"] == len(M):
        found.append("all class means coincide: nc1, nc2, nc3 and gnc3_centered are not defined")
    elif zero["centred"]:
        found.append(f"{zero['centred']} class means are their common mean: angles and gnc3_centered are not defined")
    if zero["mean"]:
        found.append(f"{zero['mean']} class means are zero: gnc3 is not defined")
    if not bool(W.isfinite().all()):
        found.append("non-finite classifier")
    elif zero["w"]:
        found.append(f"{zero['w']} rows of the classifier are zero: its angles, gnc2 and gnc3 are not defined")
    return found


def layer_figures(moments: ClassMoments) -> dict[str, float]:
    """What class moments alone tell of a layer: intermediate neural collapse ([U] I.1)."""
    means = moments.means()
    if len(means) < 2 or not bool(means.isfinite().all()):
        return dict.fromkeys(("nc1_trace", "nc1_cdnv", "nc2_equinorm", "nc2_equiangular", "nc2_etf"), math.nan)
    variances, M = moments.variances(), nc.centered(means)
    return {
        "nc1_trace": float(nc.nc1_trace(means, (variances * moments.counts[moments.present]).sum() / moments.n)),
        "nc1_cdnv": float(nc.cdnv(means, variances)),
        "nc2_equinorm": float(nc.nc2_equinorm(M)),
        "nc2_equiangular": float(nc.nc2_equiangular(M)),
        "nc2_etf": float(nc.etf_error(M, M)),
    }
