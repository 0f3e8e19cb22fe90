"""One training run: data, model, tempered loss, tracking, record, checkpoints, final figures."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastrank import RunWriter, TemperatureSchedule, TemperedCE, TemperedMSE, load_run, logits_norm, watch
from fastrank.errors import InputError
from fastrank.layers import select_layers
from fastrank.record.schema import DATABASE
from fastrank.temperature import Curve, constant, cosine, linear
from fastrank.tracking.schedule import parse_schedule
from fastrank.train.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from fastrank.train.config import TRACKING, TrainConfig
from fastrank.train.data import Data, load_data
from fastrank.train.final_figures import evaluate_run
from fastrank.train.models import build_model, check_model, scale_classifier
from fastrank.train.progress import Progress
from fastrank.train.splits import steps_per_epoch

#: Batches that the norm of the first logits is taken over: a root mean square settles fast.
NORM_BATCHES = 8


@dataclass(frozen=True)
class Result:
    """A finished run: its directory, and the dataset-level figures that are stored with it."""

    config: TrainConfig
    path: Path
    evaluation: dict[str, Any]


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run is saved at the step that the message names."""


def train_all(
    configs: Sequence[TrainConfig], out: Path, *, resume: bool = False, device: str = "auto", workers: int = 0
) -> list[Result]:
    """Train one run after the other in `out`, each in the directory of its name; every input is checked first."""
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise InputError("temperature", "values that differ", ", ".join(names))
    torch_device = choose_device(device)
    if workers < 0:
        raise InputError("workers", "a whole number >= 0", workers)
    for config in configs:
        check_model(config.model)
        if not resume and (out / config.name / DATABASE).exists():
            raise InputError(
                "out",
                "a directory without this run",
                out / config.name,
                "--resume continues it, another --out keeps both",
            )
    return [train(config, out / config.name, resume, torch_device, workers) for config in configs]


def train(
    config: TrainConfig,
    path: Path,
    resume: bool,
    device: torch.device,
    workers: int = 0,
    facts: Mapping[str, Any] | None = None,
    also: Callable[[nn.Module, Data, float], Mapping[str, Any]] | None = None,
    each: Callable[[nn.Module, Data, float], Mapping[str, float]] | None = None,
) -> Result:
    """Train one run into the directory `path`, or go on from its last checkpoint (from nothing, where it has none).

    A resumed run computes what an uninterrupted one computes, bit for bit on the same machine: the order of the data
    is a function of (seed, epoch), and the checkpoint holds everything else. Recorded steps beyond it are replaced.
    `facts` are stored with the run's configuration. What `also(model, data, T)` finds at the end joins the final
    figures; what `each(model, data, T)` finds before every `config.every`-th step is recorded with it as "train/...".

    Raises:
        InputError: a mistake in `config` or `path`, another configuration than the one to resume, a loss that is not
            finite.
        Interrupted: SIGINT or SIGTERM came; the state after the last whole step is saved.
    """
    resume = resume and (path / DATABASE).exists()
    state = _resumed_state(config, path) if resume else None
    if resume and (run := load_run(path)).status == "finished":
        return Result(config, path, run.evaluation)
    torch.manual_seed(config.seed)
    data = load_data(config)
    per_epoch = steps_per_epoch(data.train, config.batch_size)
    model = build_model(config.model, data.classes, data.channels, data.image_size, config.model_kwargs).to(device)
    if config.classifier_scale != 1:
        scale_classifier(model, config.classifier_scale)
    if config.track != "off":
        select_layers(model, config.layers)  # a wrong glob is said before the directory is made
    optimizer = _optimizer(config, model)
    criterion = _criterion(config).to(device)
    with ExitStack() as stack:
        writer = stack.enter_context(
            RunWriter(
                path, {**asdict(config), "device": str(device), "workers": workers, **(facts or {})}, resume=resume
            )
        )
        first = state.get("first_norm", math.nan) if state is not None else _first_norm(model, data, config, device)
        schedule = TemperatureSchedule(criterion, _temperature(config, first, config.epochs * per_epoch))
        watcher = stack.enter_context(_watcher(config, model, writer, criterion.T))
        measured = parse_schedule(config.every)
        step = 0
        if state is not None:
            step = state["step"]
            schedule.load_state_dict({"step": step})
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            watcher.load_state_dict(state["watcher"])
            set_rng_state(state["rng"])
        writer.truncate(step - 1)
        stop = stack.enter_context(_stop_signals())
        bar = stack.enter_context(Progress(config.name, config.epochs * per_epoch, per_epoch, step))
        for epoch in range(step // per_epoch, config.epochs):
            for images, labels in data.train.train_batches(epoch, config.batch_size, step % per_epoch, workers):
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                lr = config.learning_rate(step, per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                logits = model(images)
                loss = criterion(logits, labels)
                figures = each(model, data, schedule.value) if each and step % config.every == 0 else {}
                # Reading the loss waits for the device: only where it is shown, or before it can enter a checkpoint.
                last = stop.is_set() or (step + 1) % per_epoch == 0
                if shown := last or measured(step):
                    _require_finite(loss, step, epoch, path)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watcher.step(logits, labels, loss=loss.detach(), lr=lr, epoch=epoch, T=schedule.value, **figures)
                schedule.step()
                step += 1
                bar.step(float(loss.detach()) if shown else None, watcher.latest)
                if last:
                    save_checkpoint(path, {
                        "config": asdict(config), "step": step, "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(), "watcher": watcher.state_dict(), "rng": rng_state(),
                        "first_norm": first,
                    })  # fmt: skip
                if last and stop.is_set():
                    raise Interrupted(f"interrupted after step {step - 1}, saved in {path}; --resume continues")
        evaluation = evaluate_run(model, data, schedule.value, device, workers)
        run = load_run(path)
        evaluation |= {"temperature": schedule.value, "first_logits_norm": first}
        evaluation |= {"overhead": run.overhead, "tracking_setup": run.setup_seconds}
        if also is not None:
            evaluation |= also(model, data, schedule.value)
        writer.set_evaluation(evaluation)
    if stop.is_set():
        raise Interrupted(f"interrupted; the run in {path} is complete")
    return Result(config, path, evaluation)


class _Untracked:
    """Stands in for a Watcher with `--track off`: loss, accuracy and time of each step, and no hooks."""

    def __init__(self, log: RunWriter, every: int | str) -> None:
        self.latest: dict[str, float] = {}
        self._log, self._scheduled, self._step, self._clock = log, parse_schedule(every), 0, time.perf_counter()

    def __enter__(self) -> _Untracked:
        self._clock = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def step(self, logits: Tensor, target: Tensor, **scalars: float | Tensor) -> None:
        if self._scheduled(self._step):
            self.latest = {f"train/{name}": float(value) for name, value in scalars.items()}
            self.latest["train/accuracy"] = float((logits.argmax(1) == target).double().mean())
            self.latest["cost/step_ms"] = 1e3 * (time.perf_counter() - self._clock)
            self._log.log_step(self._step, self.latest)
        self._step += 1
        self._clock = time.perf_counter()

    def state_dict(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._step = state["step"]


def _watcher(config: TrainConfig, model: nn.Module, writer: RunWriter, T: Tensor) -> Any:
    if config.track == "off":
        return _Untracked(writer, config.every)
    metrics = config.track if config.track in TRACKING else config.track.split(",")
    return watch(model, config.layers, config.every, metrics, log=writer, seed=config.seed, T=T, budget=config.budget)


def _criterion(config: TrainConfig) -> nn.Module:
    loss = TemperedCE if config.loss == "ce" else TemperedMSE
    return loss(T=torch.tensor(float(config.temperature)), label_smoothing=config.label_smoothing)


def _first_norm(model: nn.Module, data: Data, config: TrainConfig, device: torch.device) -> float:
    """Root mean square norm of a sample's logits before the first step, over NORM_BATCHES of the training data."""
    batches = data.train.train_batches(0, config.batch_size)
    return logits_norm(model, ((images.to(device),) for images, _ in batches), NORM_BATCHES)


def _temperature(config: TrainConfig, first_norm: float, steps: int) -> Curve:
    if config.temperature_schedule == "norm-matched":
        return constant(first_norm / config.initial_norm)
    if config.temperature_schedule == "constant":
        return constant(config.temperature)
    curve = linear if config.temperature_schedule == "linear" else cosine
    # The last step's temperature is the last of the schedule.
    return curve(config.temperature, config.temperature_end, max(steps - 1, 1))


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, **settings)
    return (torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW)(model.parameters(), **settings)


def choose_device(name: str) -> torch.device:
    """The device of that name, "auto" for CUDA where there is one; InputError where this machine lacks it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            "device", "auto, cpu, cuda or cuda:N that this machine has", f"{name!r} ({str(error).splitlines()[0]})"
        ) from None
    return device


def _resumed_state(config: TrainConfig, path: Path) -> dict[str, Any] | None:
    """The checkpoint's state, None where the run stopped before its first; InputError where the settings differ."""
    state = load_checkpoint(path)
    if state is not None and (name := config.difference(state["config"])):
        stored = state["config"].get(name)
        raise InputError(
            name,
            f"{stored!r}, with which {path} began",
            repr(getattr(config, name)),
            "resume with the same settings, or use another --out",
        )
    return state


def _require_finite(loss: Tensor, step: int, epoch: int, path: Path) -> None:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise InputError(
            "loss",
            "a finite number",
            f"{value} at step {step} (epoch {epoch + 1})",
            f"try a smaller --lr or a longer --warmup-epochs; the steps before it are kept in {path}",
        )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM, so that the step under way ends; a second SIGINT interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may take signals
        yield stop
        return

    def handler(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
