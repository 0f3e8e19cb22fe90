"""`fastrank.evaluate`: from a model and its data sets to every figure, one pass over each set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastrank.capture import MAX_FEATURES
from fastrank.errors import InputError
from fastrank.evaluation.one_pass import Batch, Forwards, Observer, Shapes, labelled, peek
from fastrank.evaluation.ood import VARIANCE, FeatureMean, Neco, OutOfDistribution, Scores, detection, orthodev, sum_of
from fastrank.evaluation.penultimate import KEPT, FeatureStates, collapse_of, layer_figures
from fastrank.evaluation.probes import STEPS, Probe, ProbeAccuracy, ProbeProtocol, continued, kappa, rho
from fastrank.evaluation.representations import Representations
from fastrank.evaluation.result import Evaluation, Probes
from fastrank.evaluation.solution_rank import LogitsState

METHODS = ("adam", "ridge")
#: Features of a layer that its ridge probe reads: the Gram matrix costs n d^2, and all layers have one.
RIDGE_FEATURES = 1024


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    test: Iterable[Any] | None = None,
    ood: Any = None,
    T: float | Tensor = 1.0,
    layers: str | Sequence[str] = "*",
    classifier: str | None = None,
    probes: Sequence[str] | None = METHODS,
    protocol: ProbeProtocol | None = None,
    threshold: float = 0.99,
    ridge_penalty: float = 1e-3,
    ridge_features: int = RIDGE_FEATURES,
    neco_dim: int | float = VARIANCE,
    max_features: int = MAX_FEATURES,
    probe_memory: float = 2e9,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    distributed: bool = False,
) -> Evaluation:
    """Solution rank, neural collapse, linear probes and out-of-distribution figures of a classifier, in one pass a set.

    Memory does not grow with the number of samples, except for four scores of each sample that detection compares.
    Probes are trained on as many samples as fit `probe_memory` (a seeded, uniform sample where they do not all fit);
    the figures say how many. The model, its mode and the global random state are left as they were.

    Args:
        model: gives logits [n, C] (or an object with `.logits`).
        loader: the training set, batches (inputs, labels) with labels in 0 .. C-1; or mappings with "pixel_values" and
            "labels" (`fastrank.evaluation.one_pass.INPUTS` and `LABELS` have the names that are known).
        test: held-out data of the same classes, for probes, NC4 and detection. None: one training sample in five is
            kept from the probes to measure them, and detection compares with a sample of the training set.
        ood: an out-of-distribution set, or {name: set}: a loader, or a tuple (train, test) of loaders, whose probes are
            trained on the first and measured on the second. Labels are its own; without labels it has no probes.
        T: softmax temperature that the model was trained with; a 0-d tensor, such as a loss's T, is read at once.
        layers: globs as of `fastrank.watch`; "*" is every output of a nonlinearity ([U] A.5).
        classifier: name of the last linear module; None finds it.
        probes: "adam" ([U] Table 5), "ridge", both, or None for none.
        protocol: settings of "adam". None: [U]'s, with `seed`, whose epochs go on to 650 steps on small sets where that
            is affordable (`fastrank.evaluation.probes.continued`); ProbeProtocol(seed=seed) is [U]'s to the letter.
        threshold: kappa's share of the last layer's accuracy.
        ridge_penalty, ridge_features: per-sample penalty; columns of a layer that its ridge probe reads.
        neco_dim: directions of NECO's principal subspace, or the share of the variance that they carry.
        max_features: columns of a flattened representation, seeded runs of 16 beyond.
        probe_memory: bytes for the samples that probes are trained on.
        limit: samples of each set at most ([U] takes 100,000 of ImageNet-1k).
        distributed: the loaders of every process are its share of each set; all processes get the figures of all.

    Returns:
        Evaluation: .solution_rank .collapse .layers .probes .ood, `to_dict()`, `to_frame()`, `save(path)`.
    Raises:
        InputError: a loader without samples or labels, labels outside 0 .. C-1, a model that gives no logits [n, C], an
            unknown option.
    """
    methods = tuple([probes] if isinstance(probes, str) else probes or ())
    if unknown := [name for name in methods if name not in METHODS]:
        raise InputError("probes", f"some of {', '.join(METHODS)}, or None", repr(unknown[0]))
    if isinstance(T, Tensor) and T.ndim == 0:
        T = float(T)
    if not 0 < threshold <= 1:
        raise InputError("threshold", "a share in (0, 1]", threshold)
    if limit is not None and limit < 1:
        raise InputError("limit", "a whole number >= 1, or None", limit)
    if distributed and not (dist.is_available() and dist.is_initialized()):
        raise InputError("distributed", "an initialised torch.distributed", "none", "call init_process_group first")
    options = _Options(
        methods, protocol, threshold, ridge_penalty, ridge_features, probe_memory, seed,
        limit, distributed,
    )  # fmt: skip
    device = None if device is None else torch.device(device)
    forwards = Forwards(model, layers, classifier, device, seed, max_features)
    known = _size(loader)
    x, loader = peek(loader)
    shapes = forwards.shapes(x)
    sets = ood if isinstance(ood, Mapping) else {} if ood is None else {"ood": ood}

    logits = LogitsState(shapes.classes, T, forwards.device)
    kept = 0 if test is not None else min(KEPT, KEPT if known is None else known)
    features = FeatureStates(shapes, kept, seed, forwards.device)
    training = _representations(forwards, shapes, shapes.classes, options, hold_out=test is None, known=known)
    forwards.run(labelled(loader), (logits, features, training), limit)
    if distributed:
        for state in (logits, features, training):
            state.all_reduce()

    fitted = _Fitted.of(training, options)
    neco, neco_note = _neco(features, neco_dim) if sets else (None, "")
    right, scores, test_samples = Right(), Scores(neco, T), 0
    if test is not None:
        answers, judged = fitted.counters(forwards.device), features.agreement(kept=False)
        observers = (*answers.values(), judged, right, *([scores] if sets else ()))
        test_samples = forwards.run(test, observers, limit)
    else:
        answers, judged = fitted.held_out(training, forwards.device), features.agreement(kept=True)
        features.show(scores)
    found = _probes(fitted, answers, options, held_out=test is None)
    weight = None if shapes.features is None else forwards.weight
    collapsed = collapse_of(features, weight, shapes, judged, distributed)
    by_layer = {name: layer_figures(moments) for name, moments in training.moments.items()}
    reference = _Reference(
        {"": features.moments.means()} if shapes.features else {}, neco, neco_note, scores.arrays(distributed), T
    )
    reference.means.update((name, moments.means()) for name, moments in training.moments.items())
    del fitted, answers, training
    others = {str(name): _out_of_distribution(one, forwards, shapes, reference, options) for name, one in sets.items()}
    settings = {
        "T": float(T), "layers": layers, "classifier": forwards.classifier, "seed": seed, "neco_dim": neco_dim,
        "max_features": max_features, "limit": limit, "probe_memory": probe_memory,
        "features": shapes.layers,
    }  # fmt: skip
    test_samples = int(sum_of(test_samples)) if distributed else test_samples
    return Evaluation(
        logits.result(), collapsed, by_layer, found, others, right.share(distributed), test_samples, settings
    )


@dataclass(frozen=True)
class _Options:
    methods: tuple[str, ...]
    protocol: ProbeProtocol | None
    threshold: float
    ridge_penalty: float
    ridge_features: int
    probe_memory: float
    seed: int
    limit: int | None
    distributed: bool


class Right(Observer):
    """The model's own accuracy on labelled samples."""

    def __init__(self) -> None:
        self._right, self._seen, self._labels = 0, 0, None

    def begin(self, batch: Batch) -> None:
        self._labels = batch.labels

    def end(self, features: Tensor | None, logits: Tensor) -> None:
        if self._labels is not None:
            self._right = self._right + (logits.argmax(1) == self._labels).sum()
            self._seen += len(logits)

    def share(self, distributed: bool) -> float:
        right, seen = (sum_of(int(x)) if distributed else int(x) for x in (self._right, self._seen))
        return right / seen if seen else math.nan


@dataclass(frozen=True)
class _Fitted:
    """Probes by method and layer, with what they were trained on."""

    probes: dict[str, dict[str, Probe]]
    columns: dict[str, dict[str, Tensor | None]]
    trained_on: dict[str, int]
    protocol: ProbeProtocol

    @classmethod
    def of(cls, states: Representations, options: _Options) -> _Fitted:
        probes, trained_on = {}, {}
        if "ridge" in options.methods:
            probes["ridge"], trained_on["ridge"] = states.ridge_probes(options.ridge_penalty)
        rows = states.split(options.distributed)
        protocol = options.protocol or continued(rows, states.weights, options.seed)
        if "adam" in options.methods:
            probes["adam"] = states.adam_probes(protocol, options.distributed)
            trained_on["adam"] = rows
        columns = {"adam": dict.fromkeys(states.columns), "ridge": states.columns}
        return cls(probes, columns, trained_on, protocol)

    def counters(self, device: torch.device) -> dict[str, ProbeAccuracy]:
        return {how: ProbeAccuracy(probes, self.columns[how], device) for how, probes in self.probes.items()}

    def held_out(self, states: Representations, device: torch.device) -> dict[str, ProbeAccuracy]:
        """Counters that have seen the samples kept away from the probes."""
        counters = self.counters(device)
        for counter in counters.values():
            states.show_held_out(counter)
        return counters


@dataclass(frozen=True)
class _Reference:
    """What out-of-distribution sets are compared with: class means by layer ("" the classifier's input), scores."""

    means: dict[str, Tensor]
    neco: Neco | None
    neco_note: str
    scores: dict[str, Any]
    T: float


def _representations(
    forwards: Forwards, shapes: Shapes, classes: int | None, options: _Options, hold_out: bool, known: int | None,
    moments: bool = True,
) -> Representations:  # fmt: skip
    """States that keep as many samples as fit the memory, and no more than there are."""
    widths = shapes.layers
    size = 4 * sum(widths.values())
    capacity = 0
    if "adam" in options.methods or (hold_out and options.methods):
        fits = int(options.probe_memory // size)
        if not fits:
            expected = f"at least {size} bytes, one sample of all layers"
            raise InputError("probe_memory", expected, f"{options.probe_memory:g}")
        capacity = min(one for one in (fits, known, options.limit) if one is not None)
    ridge_features = options.ridge_features if "ridge" in options.methods else 0
    return Representations(
        widths, classes, capacity, ridge_features, hold_out and bool(options.methods), options.seed, forwards.device,
        moments,
    )  # fmt: skip


def _size(loader: Any) -> int | None:
    """Number of samples, where the loader says it."""
    data = getattr(loader, "dataset", None)
    return len(data) if hasattr(data, "__len__") else None


def _probes(fitted: _Fitted, answers: dict[str, ProbeAccuracy], options: _Options, held_out: bool) -> Probes:
    accuracies, notes = _accuracies(answers, options)
    adam, ridge = accuracies.get("adam", {}), accuracies.get("ridge", {})
    steps = fitted.protocol.steps(fitted.trained_on["adam"]) if adam else 0
    excess = {name: probe.excess for name, probe in fitted.probes.get("adam", {}).items()}
    if adam and steps < STEPS:
        most = max((value for value in excess.values() if not math.isnan(value)), default=math.nan)
        notes += (
            f"adam: {steps} steps in all, where [U] takes {STEPS} on CIFAR; the probes may be unfinished, with up to "
            f"{100 * most:.2g} % of their training loss to lose, and kappa and rho of chance; "
            f"protocol=ProbeProtocol(least_steps={STEPS}) goes on, ridge probes are exact",
        )
    settings = {"ridge_penalty": options.ridge_penalty, "ridge_features": options.ridge_features}
    return Probes(
        adam, ridge, kappa([*adam.values()], options.threshold), kappa([*ridge.values()], options.threshold),
        options.threshold, steps, fitted.trained_on.get("adam", 0), fitted.trained_on.get("ridge", 0),
        max((counter.seen for counter in answers.values()), default=0), held_out and bool(answers),
        {**asdict(fitted.protocol), **settings}, notes, excess,
    )  # fmt: skip


def _accuracies(
    answers: dict[str, ProbeAccuracy], options: _Options
) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    """(method -> layer -> accuracy, why some are NaN)"""
    accuracies, notes = {}, []
    for how, counter in answers.items():
        if options.distributed:
            counter.all_reduce()
        accuracies[how], reasons = counter.accuracies()
        notes += [f"{how} {name}: {reason}" for name, reason in reasons.items()]
    return accuracies, tuple(notes)


def _neco(features: FeatureStates, dim: int | float) -> tuple[Neco | None, str]:
    if features.d is None:
        return None, "no NECO: the logits are not the output of a linear module that was found"
    scatter, few = features.scatter, features.scatter.rows()
    data = scatter.matrix() / scatter.n if few is None else few.centred
    if not bool(data.isfinite().all()):
        return None, "no NECO: non-finite training features"
    if not bool((data.diagonal() if few is None else data).any()):
        return None, "no NECO: the training features do not vary"
    found = (Neco.fit if few is None else Neco.of_rows)(scatter.mean, data, dim)
    if isinstance(dim, int) and found.dim < dim:
        return found, f"NECO: the training features vary in {found.dim} directions, not in {dim}"
    return found, ""


def _out_of_distribution(
    data: Any, forwards: Forwards, shapes: Shapes, reference: _Reference, options: _Options
) -> OutOfDistribution:
    """data: a loader, or (train, test) loaders."""
    train, test = data if isinstance(data, tuple) and len(data) == 2 else (None, data)
    mean, scores = FeatureMean(), Scores(reference.neco, reference.T)
    states = _representations(
        forwards,
        shapes,
        None,
        options,
        hold_out=train is None,
        known=_size(test if train is None else train),
        moments=False,
    )
    observers: tuple[Observer, ...] = (mean, scores)
    fitted = None
    if train is not None:
        forwards.run(labelled(train), (states,), options.limit)
        fitted = _trained(states, options)
        answers = fitted.counters(forwards.device)
        observers += tuple(answers.values())
    elif options.methods:
        observers += (states,)
    forwards.run(test, observers, options.limit)
    if train is None and options.methods and states.labelled:
        fitted = _trained(states, options)
        answers = fitted.held_out(states, forwards.device)
    if options.distributed:
        mean.all_reduce()
    accuracies, notes = _accuracies(answers, options) if fitted else ({}, ())
    adam, ridge = accuracies.get("adam", {}), accuracies.get("ridge", {})
    for how, of in (("rho", adam), ("ridge_rho", ridge)):
        if of and max(of.values()) == 0:
            notes += (f"{how}: no layer's probe was ever right",)
    means = mean.means()
    deviations = {name: float(orthodev(reference.means[name], means[name])) for name in reference.means}
    common = math.nan
    if "" in reference.means:
        common = float(orthodev(reference.means[""].mean(0, keepdim=True), means[""]))
    if nowhere := [name or "the classifier's input" for name, value in deviations.items() if math.isnan(value)]:
        notes += (f"orthodev of {', '.join(nowhere)}: a mean that is zero or not finite has no direction",)
    found = scores.arrays(options.distributed)
    detections = {name: detection(reference.scores[name], found[name]) for name in found if name in reference.scores}
    notes += tuple(f"{name}: {one.reason}" for name, one in detections.items() if one.reason)
    notes += (reference.neco_note,) if reference.neco_note else ()
    notes += () if fitted or not options.methods else ("no probes: the set has no labels",)
    return OutOfDistribution(
        deviations.pop("", math.nan), deviations, common, detections, reference.neco.dim if reference.neco else 0,
        adam, rho([*adam.values()]), ridge, rho([*ridge.values()]), mean.n, notes,
    )  # fmt: skip


def _trained(states: Representations, options: _Options) -> _Fitted:
    if options.distributed:
        states.all_reduce()
    return _Fitted.of(states, options)
