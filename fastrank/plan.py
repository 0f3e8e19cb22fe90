"""What tracking will cost, before anything is run: `plan`, and `fastrank plan` on the command line.

The model is built on torch's meta device, without memory, and run forward once under the hooks that `watch` would set
(fastrank/capture.py): their matrices are the plan's, one for one. What `watch` does with each of them is then counted:

* launches of our kernels, with bytes and flops (kernels/*/cost.py), and torch's matrix products, under a roofline;
* torch's small operations, counted by running the very code on a tiny matrix; each takes a launch, on a CPU what such
  an operation takes here;
* eigenproblems that no kernel of ours takes on a GPU, and all of them on a CPU: flops only. No roofline says how long
  they take. On a GPU a share of the peak is assumed (`tracking_cost.LIBRARY_SHARE`), on a CPU the rate is measured on
  the spot, as is the share of their roofline that the kernels of most layers run at
  (`tracking_cost.pace`).

A step is an average one: large weights are carried (`fastrank.tracking.followed`), and their exact spectra count as
often as they may be renewed, which small steps never ask for; gradients come from their factors or a sketch where
their shapes allow it. The first measured step computes every spectrum and is not it. Every figure is a prediction.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastrank.capture import MAX_FEATURES, Capture, factor_rows
from fastrank.errors import InputError
from fastrank.hooks import find_logits, first_tensor
from fastrank.kernels import cost
from fastrank.kernels.cost import Device
from fastrank.layers import Layer, select_layers
from fastrank.tracking.measurements import HELD_BYTES
from fastrank.tracking.presets import BASIC, PRESETS, parse_metrics
from fastrank.tracking.step_arguments import class_rows
from fastrank.tracking_cost import Matrix, Operations, Pace, Work, followed, measured_together, pace, rates, work_on

DEVICES = ("cpu", *cost.DEVICES)
#: Share of the peak that training itself is taken to reach: GPU (16-bit tensor cores under autocast), CPU (of fp32
#: products as measured).
UTILISATION = {"gpu": 0.35, "cpu": 0.6}
#: A backward pass takes two products, and about two operations, for each of the forward's: for input and weight.
BACKWARD = 2


@dataclass(frozen=True)
class Cost:
    """Of some matrices, per average tracked step: counts, and milliseconds on the plan's device.

    Launches, and with them milliseconds, are those of a step that measures these matrices together: two groups cost
    less in one step than one by one.
    """

    matrices: int
    launches: int
    bytes: float
    flops: float
    library_flops: float
    roofline_ms: float
    kernel_ms: float
    library_ms: float

    @property
    def ms(self) -> float:
        return self.kernel_ms + self.library_ms


@dataclass(frozen=True)
class Plan:
    """The work of a tracked step, and what a training step takes on `device`; see `plan`."""

    device: Device
    works: tuple[Work, ...]
    rates: dict[str, float]
    pace: Pace
    step_flops: int
    step_ms: float
    utilisation: float
    precision: str
    every: int
    settings: dict[str, Any]
    figures: tuple[str, ...]

    def cost(self, works: Iterable[Work] | None = None) -> Cost:
        """Of all matrices, or of some."""
        works = self.works if works is None else tuple(works)
        launches = [(launch, 1) for work in works for launch in work.launches]
        launches += [(launch, work.period) for work in works for launch in work.seldom]
        calls = [(call, 1) for work in works for call in work.calls]
        calls += [(call, work.period) for work in works for call in work.seldom_calls]
        on_cpu = self.device.name == "CPU"
        together, small = measured_together(works, self.figures, on_cpu)
        # The cut into blocks is that of the CUDA kernels.
        time = self.pace.seconds if on_cpu else cost.predict
        latency = self.pace.small * small + (self.device.launch * len(together) if on_cpu else 0)
        seldom = sum(time(work.seldom, self.device) / work.period for work in works if work.seldom)
        return Cost(
            matrices=len(works),
            launches=len(together) + small,
            bytes=sum(launch.bytes / period for launch, period in launches),
            flops=sum(sum(launch.flops.values()) / period for launch, period in launches),
            library_flops=sum(call.flops / period for call, period in calls),
            roofline_ms=1e3 * sum(cost.roofline([launch], self.device) / period for launch, period in launches),
            kernel_ms=1e3 * (time(together, self.device) + latency + seldom),
            library_ms=1e3 * sum(call.flops / period / self.rates[call.name] for call, period in calls),
        )

    def share(self, works: Iterable[Work] | None = None, every: int | None = None) -> float:
        """Tracking over training, averaged over steps on and off the schedule."""
        return self.cost(works).ms / (every or self.every) / self.step_ms

    def by(self, key: Callable[[Work], str]) -> dict[str, list[Work]]:
        """The matrices in groups, in the model's order."""
        groups: dict[str, list[Work]] = {}
        for work in self.works:
            groups.setdefault(key(work), []).append(work)
        return groups

    @property
    def kept(self) -> int:
        """Bytes of state between steps."""
        return sum(work.kept for work in self.works)

    @property
    def temporary(self) -> int:
        """Bytes at most during a step: what the hooks hold (Gram matrices of activations and some of their samples,
        sampled inputs), and the results of the largest call; activations count one at a time, other kinds at once."""
        acts = [w for w in self.works if w.source == "act"]
        held = sum(8 * min(w.n, w.d) ** 2 for w in acts)
        held += min(HELD_BYTES, sum(w.n * w.d * w.dtype.itemsize for w in acts if w.d == MAX_FEATURES))
        held += sum(w.n * w.d * w.dtype.itemsize for w in self.works if w.source == "input")
        calls = {
            kind: (max if kind == "act" else sum)(work.temporary for work in works)
            for kind, works in self.by(lambda work: work.kind).items()
        }
        return held + max(calls.values(), default=0)


@dataclass(frozen=True)
class Cut:
    """One way to reach a budget: what `watch` would be asked for, and the share that is predicted then.

    `change` is "every", "light", "metrics" or "layers"; `kept` the metrics or layers that are left.
    """

    change: str
    kept: tuple[str, ...]
    every: int
    share: float


def plan(
    model: nn.Module,
    example: Tensor,
    *,
    device: str | Device = "h100",
    track: str | Iterable[str] = "default",
    layers: str | Iterable[str] = "*",
    every: int = 1,
    mode: str = "flatten",
    precision: str | None = None,
    utilisation: float | None = None,
) -> Plan:
    """The cost of `fastrank.watch(model, layers, every, track, mode=mode)` on inputs like `example`.

    Args:
        model: a module; on the meta device it needs no memory (`with torch.device("meta"): ...`).
        example: one batch of inputs, on the model's device; its values are not read.
        device: cpu, a100, h100, h200, b200 or a `fastrank.kernels.cost.Device`. "cpu" is measured, in a second.
        precision: "fp32", or "bf16" for training under autocast (activations arrive in 16 bits); bf16 on a GPU and
            fp32 on a CPU if left out.
        utilisation: share of the device's peak at which the training step itself is taken to run.

    Raises:
        InputError: an unknown device, metric or precision, a glob that matches nothing, a model that cannot run
            on the meta device.
    """
    target = _device(device)
    on_cpu = target.name == "CPU"
    precision = precision or ("fp32" if on_cpu else "bf16")
    if precision not in ("fp32", "bf16"):
        raise InputError("precision", "fp32 or bf16", repr(precision))
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError("every", "a whole number of steps >= 1", repr(every))
    utilisation = UTILISATION["cpu" if on_cpu else "gpu"] if utilisation is None else utilisation
    if not 0 < utilisation <= 1:
        raise InputError("utilisation", "a share of the peak in (0, 1]", utilisation)
    kinds, figures = parse_metrics(track)
    if "bound" in kinds:
        raise InputError("track", "kinds that are planned: all but bound", repr(track))
    works = []
    for matrix in matrices(model, example, kinds, layers, mode):
        if precision == "bf16" and matrix.source in ("act", "input", "logits"):
            matrix = matrix._replace(dtype=torch.bfloat16)
        # A preset that wants every figure of a spectrum has each computed anew.
        works.append(work_on(followed(matrix, on_cpu) if figures == BASIC else matrix, on_cpu))
    step_flops, step_ops = ((1 + BACKWARD) * count for count in _forward(model, example))
    peak = utilisation * target.flops["bf16_tensor" if precision == "bf16" else "fp32"]
    # A small step is as long as its launches take.
    step_ms = 1e3 * max(step_flops / peak, step_ops * target.launch)
    settings = {"track": track, "layers": layers, "mode": mode}
    return Plan(
        target, tuple(works), rates(target), pace(target), step_flops, step_ms, utilisation, precision, every, settings,
        figures,
    )  # fmt: skip


def matrices(
    model: nn.Module, example: Tensor, kinds: frozenset[str], layers: str | Iterable[str] = "*", mode: str = "flatten"
) -> list[Matrix]:
    """Every matrix that a tracked step measures, by the watcher's own hooks, in their order."""
    found: list[Matrix] = []

    def take(source: str, name: str, matrix: Callable[[], Tensor]) -> None:
        with Operations() as counter:
            X = matrix()
        source = "act" if source == "sample" else source
        if source in kinds:
            alone = source == "weight" and "align" not in kinds
            found.append(Matrix(source, name, source, *X.shape, X.dtype, counter.count, alone=alone))
        if "align" in kinds and source != "act":
            found.append(Matrix("align", name, source, *X.shape, X.dtype, counter.count))

    selected = select_layers(model, layers)
    sources = {"act", "weight"} & kinds | ({"weight", "input"} if "align" in kinds else set())
    capture = Capture(selected, take, kinds=frozenset(sources), mode=mode)
    rows: dict[str, int | None] = {}

    def shape(layer: Layer) -> Callable:
        def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
            # The factors are those of a layer's only run.
            x = first_tensor((args, kwargs))
            rows[layer.name] = None if layer.name in rows or x is None else factor_rows(module, x)

        return note

    capture.attach()
    capture.switch.armed = True
    noting = [
        layer.module.register_forward_pre_hook(shape(layer), with_kwargs=True) for layer in selected if layer.weight
    ]
    training = model.training
    try:
        model.train()
        with torch.no_grad():
            logits = model(example)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            "model", "a model that runs on torch's meta device", f"{type(model).__name__} ({reason})"
        ) from error
    finally:
        model.train(training)
        capture.detach()
        for handle in noting:
            handle.remove()
    for layer in selected:
        weight = layer.trained() if layer.has_matrix else None
        if weight is None:
            continue
        sides = layer.matrix(weight).shape
        if layer.parameter and "weight" in kinds:
            found.append(Matrix("weight", layer.name, "weight", *sides, weight.dtype, alone=True))
        if "grad" in kinds and weight.requires_grad:
            found.append(Matrix("grad", layer.name, "grad", *sides, weight.dtype, rows=rows.get(layer.name)))
    # The watcher measures logits whatever the kinds are.
    logits, _ = class_rows(find_logits(logits), None)
    if logits is not None:
        found += [Matrix("logits", name, "logits", *logits.shape, logits.dtype) for name in ("logits", "softmax")]
    return found


def cuts(found: Plan, budget: float) -> list[Cut]:
    """Ways to bring the predicted share of a training step to `budget` (0.05 is 5 %), each on its own.

    Cadence alone (`every`); the preset "light" and the cadence that it needs; kinds of figures left out, the dearest
    first; layers left out, the dearest first. What comes to the same as one before is not repeated.
    """
    if not budget > 0:
        raise InputError("budget", "a share > 0, such as 5%", budget)
    if found.share() <= budget:
        return []
    options = [_cadence(found, budget, found.works, "every", ())]
    light = [work for work in found.works if work.kind in PRESETS["light"][0]]
    if 0 < len(light) < len(found.works):
        options.append(_cadence(found, budget, light, "light", ()))
    for change, key in (("metrics", lambda w: w.kind), ("layers", lambda w: w.layer)):
        # Logits are always measured.
        always = [work for work in found.works if work.kind == "logits"]
        kept = {name: works for name, works in found.by(key).items() if works[0].kind != "logits"}
        dear = sorted(kept, key=lambda name: -found.cost(kept[name]).ms)

        def without(dropped: int, kept=kept, dear=dear, always=always) -> list[Work]:
            return [*always, *(w for name, works in kept.items() if name not in dear[:dropped] for w in works)]

        # Each that is dropped makes it less; one is left in any case.
        fewest = bisect_left(range(len(dear) - 1), True, key=lambda dropped: found.share(without(dropped)) <= budget)
        works, names = without(fewest), tuple(name for name in kept if name not in dear[:fewest])
        if {id(work) for work in works} not in ({id(work) for work in light}, {id(work) for work in found.works}):
            options.append(_cadence(found, budget, works, change, names))
    return options


def _cadence(found: Plan, budget: float, works: Iterable[Work], change: str, kept: tuple[str, ...]) -> Cut:
    works = list(works)
    # A budget that divides the share, but for rounding, does divide it.
    every = max(found.every, math.ceil(found.share(works, every=1) / budget * (1 - 1e-12)))
    return Cut(change, kept, every, found.share(works, every=every))


def _device(device: str | Device) -> Device:
    if isinstance(device, Device):
        return device
    if device not in DEVICES:
        raise InputError("device", f"one of {', '.join(DEVICES)}", repr(device))
    return cost.host() if device == "cpu" else cost.DEVICES[device]


def _forward(model: nn.Module, example: Tensor) -> tuple[int, int]:
    """Flops of the products of one forward pass, and how many operations it is."""
    with torch.no_grad(), Operations(apart=()) as operations, FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops(), operations.count
