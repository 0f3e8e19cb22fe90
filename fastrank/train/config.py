"""`TrainConfig`: everything that decides what a training run computes, validated once, stored with the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from fastrank.errors import InputError
from fastrank.tracking.budget import parse_budget
from fastrank.tracking.presets import KINDS
from fastrank.tracking.schedule import describe, parse_schedule

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "steps", "cosine")
AUGMENTATIONS = ("none", "cifar", "imagenet", "vit")
TRACKING = ("off", "light", "default", "full")
LOSSES = ("ce", "mse")
TEMPERATURE_SCHEDULES = ("constant", "linear", "cosine", "norm-matched")


@dataclass(frozen=True)
class TrainConfig:
    """One run. Raises InputError for a value outside its range.

    The loss is the cross-entropy ("ce") or the squared error of the softmax ("mse") of logits over T. T stays at
    `temperature` ("constant"), goes from there to `temperature_end` over all steps ("linear", "cosine"), or is such
    that the root mean square norm of a sample's first logits, over T, is `initial_norm` ("norm-matched", where
    `temperature` plays no part).

    epochs, warmup_epochs and milestones count epochs. The learning rate rises linearly over the warm-up and then stays
    ("constant"), is multiplied by `gamma` at each milestone ("steps"), or falls to zero along half a cosine ("cosine").
    momentum is SGD's; Adam and AdamW use (0.9, 0.999). image_size is in pixels, None for the data set's own;
    samples_per_class limits the training split, None for all (`glyphs`: 100). class_balance is the size of the training
    split's last class over that of its first; sizes between fall geometrically (Cui et al. 2019), 1 leaves them as they
    are. classifier_scale multiplies the classifier's initial weight, and with it the first logits, as 1 / T does.
    track, layers, every and budget go to `fastrank.watch`; `track` may also be several kinds of figures, joined by
    commas ("align,logits"), `every` several schedules ("log,epoch:391"). Which steps a budget has measured depends on
    the machine's times too.
    """

    model: str = "resnet18"
    data: str = "glyphs"
    temperature: float = 1.0
    temperature_schedule: str = "constant"
    temperature_end: float = 1.0
    initial_norm: float | None = None
    loss: str = "ce"
    label_smoothing: float = 0.0
    epochs: int = 10
    seed: int = 0
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    augment: str = "none"
    image_size: int | None = None
    samples_per_class: int | None = None
    class_balance: float = 1.0
    classifier_scale: float = 1.0
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    track: str = "default"
    layers: tuple[str, ...] = ("*",)
    every: int | str = 1
    budget: str | None = None

    def __post_init__(self) -> None:
        positive = "a finite number > 0"
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            _check(name, "a number > 0 (1e-6 .. 1e6)", value, 1e-6 <= value <= 1e6)
        matched, norm = self.temperature_schedule == "norm-matched", self.initial_norm
        wanted = f"{positive} with the schedule norm-matched, and none with another"
        _check("initial_norm", wanted, norm, 0 < norm < math.inf if matched and norm else norm is None and not matched)
        _check("label_smoothing", "a number in [0, 1)", self.label_smoothing, 0 <= self.label_smoothing < 1)
        _check("class_balance", "a number in (0, 1]", self.class_balance, 0 < self.class_balance <= 1)
        _check("classifier_scale", positive, self.classifier_scale, 0 < self.classifier_scale < math.inf)
        _check("lr", positive, self.lr, math.isfinite(self.lr) and self.lr > 0)
        _check("momentum", "a number in [0, 1)", self.momentum, 0 <= self.momentum < 1)
        _check("weight_decay", "a finite number >= 0", self.weight_decay, 0 <= self.weight_decay < math.inf)
        _check("gamma", "a number in (0, 1]", self.gamma, 0 < self.gamma <= 1)
        # Batch normalisation cannot train on one sample, and one row has no spectrum to speak of.
        _check("batch_size", "a whole number >= 2", self.batch_size, self.batch_size >= 2)
        _check("epochs", "a whole number >= 1", self.epochs, self.epochs >= 1)
        _check("every", "a whole number of steps, or a text such as log", self.every, isinstance(self.every, int | str))
        every = describe(parse_schedule(self.every))
        object.__setattr__(self, "every", every)  # "10" is 10, wherever settings are compared
        if self.budget is not None:
            parse_budget(self.budget)
            _check("budget", "none with --track off", repr(self.budget), self.track != "off")
        for name in ("image_size", "samples_per_class"):
            value = getattr(self, name)
            _check(name, "a whole number >= 1", value, value is None or value >= 1)
        _check("seed", "a whole number in 0 .. 2^63-1", self.seed, 0 <= self.seed < 2**63)
        _check(
            "warmup_epochs",
            f"a number in 0 .. {self.epochs} (epochs)",
            self.warmup_epochs,
            0 <= self.warmup_epochs <= self.epochs,
        )
        _check(
            "milestones",
            "rising epochs >= 1",
            self.milestones,
            all(a < b for a, b in zip((0, *self.milestones), self.milestones, strict=False)),
        )
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("augment", AUGMENTATIONS),
            ("loss", LOSSES),
            ("temperature_schedule", TEMPERATURE_SCHEDULES),
        ):
            _check(name, f"one of {', '.join(known)}", repr(getattr(self, name)), getattr(self, name) in known)
        if self.track not in TRACKING and set(self.track.split(",")) - KINDS:
            raise InputError("track", f"{', '.join(TRACKING)}, or some of {','.join(sorted(KINDS))}", repr(self.track))

    @property
    def name(self) -> str:
        """Of the run's directory: data, model, temperature and its schedule, seed."""
        data = self.data.rstrip("/").rpartition("/")[2] if self.data.startswith("folder:") else self.data
        schedule, T = self.temperature_schedule, f"T{self.temperature:g}"
        if schedule == "norm-matched":
            T = f"norm{self.initial_norm:g}"
        elif schedule != "constant":
            T += f"-{schedule}{self.temperature_end:g}"
        return f"{_plain(data)}-{_plain(self.model)}-{T}-s{self.seed}"

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Of optimizer step number `step`, counted from 0."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "steps":
            return self.lr * self.gamma ** sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
        if self.schedule == "cosine":
            rest = self.epochs * steps_per_epoch - warmup
            return self.lr * (1 + math.cos(math.pi * (step - warmup) / rest)) / 2
        return self.lr

    def difference(self, other: dict[str, Any]) -> str | None:
        """The first field whose value differs from that in `other`, a stored config; None where they agree.

        A field that `other` lacks, as one stored by an older version does, had its default.
        """
        return next((f.name for f in fields(self) if other.get(f.name, f.default) != getattr(self, f.name)), None)


def _check(argument: str, expected: str, got: object, holds: bool) -> None:
    if not holds:
        raise InputError(argument, expected, got)


def _plain(text: str) -> str:
    """As part of a file name on any system."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in text)
