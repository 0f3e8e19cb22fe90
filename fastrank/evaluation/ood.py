"""Out-of-distribution data: OrthoDev ([U] eq. 4), NECO (Ammar et al. 2024), and what detection by a score achieves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.evaluation.one_pass import Batch, Observer
from fastrank.extras import require

SCORES = ("neco", "neco_max_logit", "max_logit", "max_softmax")
#: Share of the variance whose directions span the principal subspace by default.
VARIANCE = 0.9


def orthodev(means: Tensor, ood_mean: Tensor) -> Tensor:
    """[...]: mean over classes of |cos(mu_c, mu_G^OOD)|, uncentred ([U] eq. 4); 0 where both are orthogonal.

    means: [..., C, d] of the training classes. ood_mean: [..., d]. NaN with a zero vector.
    """
    norms = means.norm(dim=-1) * ood_mean.norm(dim=-1)[..., None]
    cosines = (means @ ood_mean[..., None])[..., 0] / norms.where(norms > 0, math.nan)
    return cosines.abs().mean(-1)


@dataclass(frozen=True)
class Neco:
    """The principal subspace of standardised training features, and the score ||P_d h|| / ||h|| in it.

    mean, std: [d] float64 of the training features (a constant one has std 1); components [d, dim] orthonormal columns.

    These are scikit-learn's `StandardScaler` and `PCA` (which centres again, by nothing), as in Ammar et al.'s code.

    Directions in which nothing varies are not determined by the data (with n <= d rows there are d - n + 1 of them, and
    any choice of them changes the score of other data), so no more than vary are kept, whatever was asked for.
    """

    mean: Tensor
    std: Tensor
    components: Tensor

    @classmethod
    def fit(cls, mean: Tensor, covariance: Tensor, dim: int | float = VARIANCE) -> Neco:
        """From mean [d] and covariance [d, d] (float64) of the training features.

        dim: number of directions, or the share of the standardised variance that they must carry (a float below 1).

        Raises:
            InputError: a dim outside 1 .. d or (0, 1); features that are not finite, or that do not vary.
        """
        _check_dim(dim, len(mean))
        std = _deviations(covariance.diagonal().clamp_min(0), covariance)
        values, vectors = torch.linalg.eigh(covariance / torch.outer(std, std))
        return cls(mean, std, vectors.flip(1)[:, : _directions(values.flip(0), dim, len(mean))].contiguous())

    @classmethod
    def of_rows(cls, mean: Tensor, centred: Tensor, dim: int | float = VARIANCE) -> Neco:
        """The same from n rows of d > n features, minus their mean [d]: an eigenproblem of n x n. Raises as `fit`."""
        _check_dim(dim, len(mean))
        std = _deviations(centred.square().mean(0), centred)
        Z = centred / (std * math.sqrt(len(centred)))
        values, vectors = torch.linalg.eigh(Z @ Z.T)
        kept = vectors.flip(1)[:, : _directions(values.flip(0), dim, len(mean))]
        # Z^T u has length sqrt(lambda); the triangular factor makes the directions of small lambda orthogonal too.
        return cls(mean, std, torch.linalg.qr(Z.T @ kept).Q)

    @property
    def dim(self) -> int:
        return self.components.shape[1]

    def score(self, features: Tensor) -> Tensor:
        """[n] float64 in [0, 1]: high for what resembles the training data; 0 for a feature vector at the mean."""
        h = (features.double() - self.mean) / self.std
        # A huge shift must not overflow in its square.
        h = h / h.abs().amax(1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
        return (h @ self.components).norm(dim=1) / h.norm(dim=1).clamp_min(torch.finfo(h.dtype).tiny)


def _check_dim(dim: int | float, d: int) -> None:
    whole = isinstance(dim, int) and not isinstance(dim, bool)
    if not (1 <= dim <= d if whole else isinstance(dim, float) and 0 < dim < 1):
        raise InputError("neco_dim", f"a whole number in 1 .. {d} or a share in (0, 1)", repr(dim))


def _deviations(variances: Tensor, data: Tensor) -> Tensor:
    """[d] standard deviations, 1 for a constant feature; InputError for data that are not finite, or all constant."""
    if not bool(data.isfinite().all()):
        raise InputError("features", "finite training features for NECO", "non-finite ones")
    if not bool(variances.any()):
        raise InputError("features", "training features that vary for NECO", "constant ones")
    return variances.sqrt().masked_fill(variances == 0, 1.0)


def _directions(values: Tensor, dim: int | float, d: int) -> int:
    """How many leading eigenvalues (descending) to keep: `dim`, or those that carry its share; none that is 0."""
    values = values.clamp_min(0)
    varying = int((values > d * torch.finfo(values.dtype).eps * values[0]).sum())
    if isinstance(dim, int):
        return min(dim, varying)
    total = values.cumsum(0) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return min(varying, int((total < dim).sum()) + 1)


@dataclass(frozen=True)
class Detection:
    """How well a score tells in-distribution (ID, high) from out-of-distribution (OOD, low) samples.

    Attributes:
        auroc: probability that an ID sample scores higher than an OOD sample, ties counting half. It is the same
            whichever class is called positive.
        fpr95_id_positive: share of OOD samples taken for ID at the threshold that lets 95 % of the ID samples pass
            (the convention of OpenOOD and of [U]'s source).
        fpr95_ood_positive: share of ID samples flagged at the threshold that flags 95 % of the OOD samples.
        id_samples, ood_samples: how many. reason: why the figures are NaN; empty otherwise.
    """

    auroc: float = math.nan
    fpr95_id_positive: float = math.nan
    fpr95_ood_positive: float = math.nan
    id_samples: int = 0
    ood_samples: int = 0
    reason: str = ""


def detection(id_scores: np.ndarray, ood_scores: np.ndarray) -> Detection:
    """The Detection of two sets of scores, higher meaning more in-distribution; by scikit-learn.

    The threshold is the strictest at which at least 95 % of the positives pass; nothing is interpolated. Other figures
    of one name: pytorch-ood's `OODMetrics` takes outlier scores (ours, negated) and has OOD as its positives, so its
    FPR95TPR is `fpr95_ood_positive`; its AUROC is ours. A curve thinned to its corners (scikit-learn's default,
    `drop_intermediate`) can leave out the first point at 95 %: then a later, larger rate is read.
    """
    metrics = require("sklearn.metrics", "AUROC and FPR95")
    sizes = {"id_samples": len(id_scores), "ood_samples": len(ood_scores)}
    if not len(id_scores) or not len(ood_scores):
        return Detection(**sizes, reason="no samples of one kind")
    scores = np.concatenate([id_scores, ood_scores])
    if broken := int((~np.isfinite(scores)).sum()):
        return Detection(**sizes, reason=f"{broken} of {len(scores)} scores are not finite")
    is_id = np.concatenate([np.ones(len(id_scores), int), np.zeros(len(ood_scores), int)])
    rates = []
    for positive, score in ((is_id, scores), (1 - is_id, -scores)):
        false, true, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
        rates.append(float(false[np.argmax(true >= 0.95)]))
    return Detection(float(metrics.roc_auc_score(is_id, scores)), *rates, **sizes)


class Scores(Observer):
    """Every score of every sample of a pass: the one thing that is kept per sample, 8 bytes each."""

    def __init__(self, neco: Neco | None, T: float = 1.0) -> None:
        self._neco, self._T = neco, T
        self._kept: dict[str, list[Tensor]] = {name: [] for name in SCORES}

    def end(self, features: Tensor | None, logits: Tensor) -> None:
        top = logits.double().amax(1)
        self._kept["max_logit"].append(top)
        self._kept["max_softmax"].append((logits.double() / self._T).softmax(1).amax(1))
        if self._neco is not None and features is not None:
            neco = self._neco.score(features)
            self._kept["neco"].append(neco)
            self._kept["neco_max_logit"].append(neco * top)

    def arrays(self, distributed: bool = False) -> dict[str, np.ndarray]:
        """score -> [n] float64, of all processes together."""
        arrays = {name: torch.cat(parts).cpu().numpy() for name, parts in self._kept.items() if parts}
        if not distributed:
            return arrays
        everyone: list[dict[str, np.ndarray]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(everyone, arrays)
        names = [name for name in SCORES if any(name in one for one in everyone)]
        return {name: np.concatenate([one[name] for one in everyone if name in one]) for name in names}


class FeatureMean(Observer):
    """Mean of the representations of every layer and of the classifier's input, over a whole set, labelled or not."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.n = 0

    def begin(self, batch: Batch) -> None:
        self.n += batch.rows

    def layer(self, name: str, X: Tensor) -> None:
        total = X.sum(0, dtype=torch.float64)
        self._sums[name] = self._sums[name] + total if name in self._sums else total

    def end(self, features: Tensor | None, logits: Tensor) -> None:
        if features is not None:
            self.layer("", features)

    def all_reduce(self) -> None:
        for name in self._sums:
            torch.distributed.all_reduce(self._sums[name])
        self.n = sum_of(self.n)

    def means(self) -> dict[str, Tensor]:
        """layer -> [d] float64; "" is the classifier's input."""
        return {name: total / self.n for name, total in self._sums.items()}


@dataclass(frozen=True)
class OutOfDistribution:
    """One out-of-distribution set against the training set.

    Attributes:
        orthodev: of the classifier's input ([U] eq. 4); orthodev_layers: layer -> the same of its representation.
        common_cosine: |cos| of the OOD mean with the mean of the class means. Eq. 4 does not centre, so what all have
            in common (after a ReLU no feature is negative) counts: where this and `Collapse.mean_share` are large,
            they are most of `orthodev`.
        scores: score -> Detection; `neco` multiplies by nothing, `neco_max_logit` by the largest logit (the variant for
            transformers in Ammar et al.), `max_logit` and `max_softmax` (of logits / T) are baselines.
        neco_dim: directions of the principal subspace.
        probes: layer -> accuracy of the probe trained on this set's own labels, {} where it has none.
        rho: OOD generalisation loss of these. ridge, ridge_rho: the same by ridge regression.
        samples: of the set that is scored. notes: why a figure is missing or NaN.
    """

    orthodev: float = math.nan
    orthodev_layers: dict[str, float] = field(default_factory=dict)
    common_cosine: float = math.nan
    scores: dict[str, Detection] = field(default_factory=dict)
    neco_dim: int = 0
    probes: dict[str, float] = field(default_factory=dict)
    rho: float = math.nan
    ridge: dict[str, float] = field(default_factory=dict)
    ridge_rho: float = math.nan
    samples: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        named = {name: dict(vars(found)) for name, found in self.scores.items()}
        return {**vars(self), "scores": named, "notes": list(self.notes)}


def sum_of(value: float) -> float:
    """Of all processes."""
    values: list[float] = [0.0] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return sum(values)
