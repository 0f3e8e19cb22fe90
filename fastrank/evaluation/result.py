"""`Evaluation`: every figure of a model on its data sets, and how to keep it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastrank.errors import InputError
from fastrank.evaluation.collapse import Collapse
from fastrank.evaluation.ood import Detection, OutOfDistribution
from fastrank.evaluation.solution_rank import SetRank, SolutionRank
from fastrank.extras import require
from fastrank.record.schema import jsonable

FORMAT = 1


@dataclass(frozen=True)
class Probes:
    """Accuracies of linear probes of every layer on samples that they were not trained on.

    Attributes:
        adam, ridge: layer -> accuracy, in the order of the layers: trained by the paper's protocol, and in closed form
            from a Gram matrix. Two methods, not two estimates of one number.
        kappa, ridge_kappa: effective depth of each ([U] sec. 2.1) at `threshold`.
        excess: layer -> bound on the share of its training objective that the probe of `adam` has still to lose
            (`Probe.excess`): near 0 it is finished, near 1 its accuracy hangs on its random start.
        steps: of the optimiser of `adam`, all epochs together.
        trained_on: samples that the probes of `adam` saw (all, or a seeded sample of what fits the memory given);
            ridge_trained_on: of those of `ridge`; measured_on: of the accuracies. held_out: these are a part of the
            training set, as no test set was given.
        protocol: settings of both. notes: why an accuracy is NaN or to be doubted.
    """

    adam: dict[str, float] = field(default_factory=dict)
    ridge: dict[str, float] = field(default_factory=dict)
    kappa: float = math.nan
    ridge_kappa: float = math.nan
    threshold: float = 0.99
    steps: int = 0
    trained_on: int = 0
    ridge_trained_on: int = 0
    measured_on: int = 0
    held_out: bool = False
    protocol: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    excess: dict[str, float] = field(default_factory=dict)

    @property
    def accuracies(self) -> dict[str, float]:
        """Those of `adam`, or of `ridge` where only it was asked for."""
        return self.adam or self.ridge


@dataclass(frozen=True)
class Evaluation:
    """What `fastrank.evaluate` found.

    Attributes:
        solution_rank: ranks, norms and accuracy of the logits of the training set.
        collapse: neural collapse of the classifier's input on the training set.
        layers: layer -> {"nc1_trace", "nc1_cdnv", "nc2_equinorm", ...} of its representation.
        probes: linear probes of every layer.
        ood: name -> figures of an out-of-distribution set.
        test_accuracy, test_samples: of the test set; NaN, 0 without one.
        settings: everything that the figures depend on beside model and data.
    """

    solution_rank: SolutionRank
    collapse: Collapse
    layers: dict[str, dict[str, float]]
    probes: Probes
    ood: dict[str, OutOfDistribution]
    test_accuracy: float
    test_samples: int
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts and lists of numbers and text, as a run's record stores them."""
        return jsonable(
            {
                "solution_rank": self.solution_rank.to_dict(),
                "collapse": asdict(self.collapse),
                "layers": self.layers,
                "probes": asdict(self.probes),
                "ood": {name: found.to_dict() for name, found in self.ood.items()},
                "test_accuracy": self.test_accuracy,
                "test_samples": self.test_samples,
                "settings": self.settings,
            }
        )

    @classmethod
    def from_dict(cls, figures: dict[str, Any]) -> Evaluation:
        """The inverse of `to_dict`."""
        try:
            rank = dict(figures["solution_rank"])
            before = _set_rank({f.name: rank[f.name] for f in fields(SetRank)})
            solution = SolutionRank(
                before, _set_rank(rank["after_softmax"]), rank["T"], rank["accuracy"], rank["class_gap"],
                rank["class_gap_bound"],
            )  # fmt: skip
            return cls(
                solution, _with_notes(Collapse, figures["collapse"]), figures["layers"],
                _with_notes(Probes, figures["probes"]),
                {name: _ood(found) for name, found in figures["ood"].items()},
                figures["test_accuracy"], figures["test_samples"], figures["settings"],
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("figures", "what Evaluation.to_dict gave", f"{type(error).__name__}: {error}") from None

    def to_frame(self) -> Any:
        """A tidy pandas frame, one row a figure: set ("train", "test", or an OOD set's name), layer, metric, value."""
        pandas = require("pandas", "a frame of the evaluation")
        return pandas.DataFrame(list(self._rows()), columns=["set", "layer", "metric", "value"])

    def save(self, path: str | os.PathLike) -> Path:
        """Writes `to_dict` as JSON; `Evaluation.load` reads it. NaN is written as such (Python's JSON)."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"format": FORMAT, **self.to_dict()}, indent=1) + "\n")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Evaluation:
        try:
            figures = json.loads(Path(path).read_text())
        except ValueError as error:
            raise InputError("path", "a file that Evaluation.save wrote", f"{path} ({error})") from None
        if not isinstance(figures, dict) or figures.get("format") != FORMAT:
            raise InputError("path", f"an evaluation of format {FORMAT}", path)
        return cls.from_dict(figures)

    def __repr__(self) -> str:
        r = self.solution_rank
        shown = [
            f"solution_rank={r.rank} [{r.lo}, {r.hi}] of {r.before.samples} samples", f"kappa={self.probes.kappa:.3g}",
            f"nc1_pinv={self.collapse.nc1_pinv:.3g}",
        ]  # fmt: skip
        return f"Evaluation({', '.join(shown)}, ood={list(self.ood)})"

    def _rows(self) -> Iterator[tuple[str, str, str, float]]:
        r = self.solution_rank
        for metric in ("rank", "lo", "hi", "norm", "norm_over_T", "accuracy", "class_gap", "class_gap_bound"):
            yield "train", "logits", metric, float(getattr(r, metric))
        for metric in ("rank", "lo", "hi"):
            yield "train", "logits", f"after_softmax_{metric}", float(getattr(r.after, metric))
        yield "test", "logits", "accuracy", self.test_accuracy
        for metric, value in self.collapse.figures().items():
            yield "train", "features", metric, float(value)
        for layer, figures in self.layers.items():
            for metric, value in figures.items():
                yield "train", layer, metric, value
        for metric in ("kappa", "ridge_kappa"):
            yield "test", "", metric, getattr(self.probes, metric)
        for how in ("adam", "ridge"):
            for layer, value in getattr(self.probes, how).items():
                yield "test", layer, f"probe_{how}", value
        for layer, value in self.probes.excess.items():
            yield "train", layer, "probe_adam_excess", value
        for name, found in self.ood.items():
            yield name, "features", "orthodev", found.orthodev
            yield name, "features", "common_cosine", found.common_cosine
            for layer, value in found.orthodev_layers.items():
                yield name, layer, "orthodev", value
            for score, one in found.scores.items():
                for metric in ("auroc", "fpr95_id_positive", "fpr95_ood_positive"):
                    yield name, "", f"{score}_{metric}", getattr(one, metric)
            for metric in ("rho", "ridge_rho"):
                yield name, "", metric, getattr(found, metric)
            for how, of in (("adam", found.probes), ("ridge", found.ridge)):
                for layer, value in of.items():
                    yield name, layer, f"probe_{how}", value


def _set_rank(figures: dict[str, Any]) -> SetRank:
    return SetRank(**{**figures, "sigma": tuple(figures["sigma"])})


def _with_notes(kind: type, figures: dict[str, Any]) -> Any:
    return kind(**{**figures, "notes": tuple(figures["notes"])})


def _ood(figures: dict[str, Any]) -> OutOfDistribution:
    scores = {name: Detection(**one) for name, one in figures["scores"].items()}
    return _with_notes(OutOfDistribution, {**figures, "scores": scores})
