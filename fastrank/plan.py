"""What tracking will cost, before anything is run: `plan`, and `fastrank plan` on the command line.

The model is built on torch's meta device, without memory, and run forward once under the hooks that `watch` would set
(fastrank/capture.py): their matrices are the plan's, one for one. What `watch` does with each of them is then counted:

* launches of our kernels, with bytes and flops (kernels/*/cost.py), and torch's matrix products, under a roofline;
* torch's small operations, counted by running the very code on a tiny matrix; each takes a launch;
* factorisations of torch.linalg: flops only. No roofline says how long they take. On a GPU a share of the peak is
  assumed (`LIBRARY_SHARE`), on a CPU the rate is measured on the spot.

Every figure is a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastrank.capture import MAX_FEATURES, Capture, select_layers, trained_weight, weight_matrix
from fastrank.errors import InputError
from fastrank.kernels import cost
from fastrank.kernels.cost import Device, Launch
from fastrank.kernels.gram import cost as gram
from fastrank.metrics import OF_SPECTRUM
from fastrank.metrics.alignment import alignment
from fastrank.spectra import rank_counts, spectrum
from fastrank.subspace import OVERSAMPLE, top_svd
from fastrank.watcher import PRESETS, TOP, parse_metrics

DEVICES = ("cpu", *cost.DEVICES)
#: Share of its unit's peak that a factorisation of torch.linalg is taken to reach on a GPU: a guess from the nature of
#: the work (panels of matrix-vector products, hundreds of launches), to be replaced by a measurement.
LIBRARY_SHARE = 0.02
#: Share of the peak that training itself is taken to reach: GPU (16-bit tensor cores under autocast), CPU (of fp32
#: products as measured).
UTILISATION = {"gpu": 0.35, "cpu": 0.6}
#: A backward pass takes two products for each of the forward's: for the input and for the weight.
BACKWARD = 2


@dataclass(frozen=True)
class Call:
    """A factorisation of torch.linalg: its flops, by the textbook's count (Golub & Van Loan, Matrix Computations)."""

    name: str
    flops: int
    unit: str


@dataclass(frozen=True)
class Work:
    """What a tracked step does with one matrix [n, d].

    Attributes:
        kind: "act", "logits", "weight", "grad" or "align", as in the run database. layer: its name there.
        source: "act", "input", "weight", "grad" or "logits": where the matrix is from.
        launches: our kernels and torch's matrix products. ops: torch's small operations besides.
        calls: factorisations. kept: bytes from step to step. temporary: bytes while it is measured.
    """

    kind: str
    layer: str
    source: str
    n: int
    d: int
    dtype: torch.dtype
    launches: tuple[Launch, ...]
    ops: int
    calls: tuple[Call, ...]
    kept: int
    temporary: int


@dataclass(frozen=True)
class Cost:
    """Sums over matrices, per tracked step: counts, and milliseconds on the plan's device."""

    matrices: int
    launches: int
    bytes: int
    flops: int
    library_flops: int
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
    step_flops: int
    step_ms: float
    utilisation: float
    precision: str
    every: int
    settings: dict[str, Any]

    def cost(self, works: Iterable[Work] | None = None) -> Cost:
        """Of all matrices, or of some."""
        works = self.works if works is None else tuple(works)
        launches = [launch for work in works for launch in work.launches]
        calls = [call for work in works for call in work.calls]
        small = sum(work.ops for work in works)
        # The cut into blocks is that of the CUDA kernels.
        time = cost.roofline if self.device.name == "CPU" else cost.predict
        latency = self.device.launch * (small + (len(launches) if self.device.name == "CPU" else 0))
        return Cost(
            matrices=len(works),
            launches=len(launches) + small,
            bytes=sum(launch.bytes for launch in launches),
            flops=sum(cost.total(launches, "flops").values()),
            library_flops=sum(call.flops for call in calls),
            roofline_ms=1e3 * cost.roofline(launches, self.device),
            kernel_ms=1e3 * (time(launches, self.device) + latency),
            library_ms=1e3 * sum(call.flops / self.rates[call.name] for call in calls),
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
        """Bytes of the largest matrix's intermediate results; one matrix is measured at a time."""
        return max((work.temporary for work in self.works), default=0)


@dataclass(frozen=True)
class Cut:
    """One way to reach a budget: what `watch` would be asked for, and the share that is predicted then."""

    change: str
    dropped: tuple[str, ...]
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
        device: cpu, a100, h100, h200, b200 or a `fastrank.kernels.cost.Device`. "cpu" is measured, in half a second.
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
    works = []
    for matrix in matrices(model, example, kinds, layers, mode):
        if precision == "bf16" and matrix.source in ("act", "input", "logits"):
            matrix = matrix._replace(dtype=torch.bfloat16)
        works.append(_work(matrix, figures))
    step_flops = (1 + BACKWARD) * _forward_flops(model, example)
    unit = "bf16_tensor" if precision == "bf16" else "fp32"
    return Plan(
        target, tuple(works), _rates(target), step_flops, 1e3 * step_flops / (utilisation * target.flops[unit]),
        utilisation, precision, every, {"track": track, "layers": layers, "mode": mode},
    )  # fmt: skip


class Matrix(NamedTuple):
    """A matrix [n, d] that a tracked step measures, and the small operations that cut it out of its source."""

    kind: str
    layer: str
    source: str
    n: int
    d: int
    dtype: torch.dtype
    ops: int = 0


def matrices(
    model: nn.Module, example: Tensor, kinds: frozenset[str], layers: str | Iterable[str] = "*", mode: str = "flatten"
) -> list[Matrix]:
    """Every matrix that a tracked step measures, by the watcher's own hooks, in their order."""
    found: list[Matrix] = []

    def take(source: str, name: str, matrix: Callable[[], Tensor]) -> None:
        with _Operations() as counter:
            X = matrix()
        if source in kinds:
            found.append(Matrix(source, name, source, *X.shape, X.dtype, counter.count))
        if "align" in kinds and source != "act":
            found.append(Matrix("align", name, source, *X.shape, X.dtype, counter.count))

    selected = select_layers(model, layers)
    sources = {"act", "weight"} & kinds | ({"weight", "input"} if "align" in kinds else set())
    capture = Capture(selected, take, kinds=frozenset(sources), mode=mode)
    capture.attach()
    capture.armed = True
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
    if "grad" in kinds:
        for layer in selected:
            weight = trained_weight(layer.module) if layer.weight else None
            if weight is not None and weight.requires_grad:
                found.append(Matrix("grad", layer.name, "grad", *weight_matrix(weight).shape, weight.dtype))
    if "logits" in kinds and isinstance(logits, Tensor) and logits.ndim >= 2:
        rows, classes = logits.numel() // logits.shape[1], logits.shape[1]
        found += [Matrix("logits", name, "logits", rows, classes, logits.dtype) for name in ("logits", "softmax")]
    return found


def cuts(found: Plan, budget: float) -> list[Cut]:
    """Ways to bring the predicted share of a training step to `budget` (0.05 is 5 %), each on its own.

    Cadence alone (`every`); the preset "light" and the cadence that it needs; kinds of figures left out, the dearest
    first; layers left out, the dearest first.
    """
    if not budget > 0:
        raise InputError("budget", "a share > 0, such as 5%", budget)
    if found.share() <= budget:
        return []
    options = [_cadence(found, budget, found.works, "track less often", ())]
    light = [work for work in found.works if work.kind in PRESETS["light"][0]]
    if 0 < len(light) < len(found.works):
        options.append(_cadence(found, budget, light, 'metrics="light"', ()))
    for noun, key in (("metrics", lambda w: w.kind), ("layers", lambda w: w.layer)):
        groups = found.by(key)
        dear = sorted(groups, key=lambda name: -found.cost(groups[name]).ms)
        kept, dropped = dict(groups), []
        while len(kept) > 1 and found.share([w for works in kept.values() for w in works]) > budget:
            dropped.append(dear[len(dropped)])
            kept.pop(dropped[-1])
        works = [w for members in kept.values() for w in members]
        options.append(_cadence(found, budget, works, f"leave out {noun}", tuple(dropped)))
    return options


def _cadence(found: Plan, budget: float, works: Iterable[Work], change: str, dropped: tuple[str, ...]) -> Cut:
    works = list(works)
    every = max(found.every, math.ceil(found.share(works, every=1) / budget))
    return Cut(change, dropped, every, found.share(works, every=every))


def _device(device: str | Device) -> Device:
    if isinstance(device, Device):
        return device
    if device not in DEVICES:
        raise InputError("device", f"one of {', '.join(DEVICES)}", repr(device))
    return cost.host() if device == "cpu" else cost.DEVICES[device]


def _forward_flops(model: nn.Module, example: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops()


# ---- what the watcher does with one matrix ----


def _work(matrix: Matrix, figures: tuple[str, ...]) -> Work:
    kind, layer, source, n, d, dtype, ops = matrix
    # What is not a view is a copy: a subset of features, rows or patches; logits as float32; the softmax.
    copied = source == "input" or (source == "act" and d == MAX_FEATURES) or kind == "logits"
    if kind == "align":
        launches, calls, kept, temporary = _subspace(n, d, dtype)
        ops += _ops("top_svd", n < d) + (_ops("alignment") if source == "input" else 0)
    else:
        launches, calls, temporary = _spectrum(n, d, torch.float32 if kind == "logits" else dtype)
        ops, kept = ops + _ops("spectrum", n < d) + _ops("figures", figures=figures), 0
    if copied:
        moved = n * d * dtype.itemsize
        launches, temporary = (Launch("torch.index", moved, moved), *launches), temporary + moved
    return Work(kind, layer, source, n, d, dtype, launches, ops, calls, kept, temporary)


def _spectrum(n: int, d: int, dtype: torch.dtype) -> tuple[tuple[Launch, ...], tuple[Call, ...], int]:
    """As `spectra._gram_spectrum`: the smaller Gram matrix in mode "exact", then its eigenvalues."""
    k = min(n, d)
    square = 8 * k * k
    if n < d:
        launches, rows = gram.dual(n, d, dtype), d
    else:
        mirrored = (Launch("torch.tril", square, square),) * 2 + (Launch("torch.add", 2 * square, square),)
        launches, rows = gram.accumulate(n, d, dtype, shift=False), n
        launches = (Launch("torch.zeros", 0, square), *launches, *mirrored)
    launches = (*launches, Launch("torch.isfinite", square, k * k))
    calls = (Call("eigvalsh", 4 * k**3 // 3, "fp64"),)
    # The matrix, its lower and its transposed upper part, or the solver's copy.
    return launches, calls, 3 * square + gram.Cut(rows, k).workspace


def _subspace(n: int, d: int, dtype: torch.dtype) -> tuple[tuple[Launch, ...], tuple[Call, ...], int, int]:
    """As `subspace._iterate` with one pass, which is a warm call without a jump."""
    q, k, size = min(TOP + OVERSAMPLE, n, d), min(TOP, n, d), 4

    def product(m: int, inner: int, columns: int) -> Launch:
        moved = size * (m * inner + inner * columns)
        return Launch("torch.mm", moved, size * m * columns, {"fp32": 2 * m * inner * columns})

    launches = (product(n, d, q), product(d, n, q), product(n, q, q), product(d, q, q), product(n, d, k))
    if dtype.itemsize != size:
        launches = (Launch("torch.float", n * d * dtype.itemsize, n * d * size), *launches)
    qr = [Call("qr", 2 * (2 * m * q * q - 2 * q**3 // 3), "fp32") for m in (n, d)]
    kept = size * (n + d) * q
    return launches, (*qr, Call("svd", 22 * q**3, "fp32")), kept, kept + size * n * (q + k)


@cache
def _ops(what: str, wide: bool = False, figures: tuple[str, ...] = ()) -> int:
    """Small operations of torch in one call of the watcher's own code, by running it on a tiny matrix on the CPU."""
    X = torch.eye(6, 9) if wide else torch.eye(9, 6)
    state = top_svd(X, 3)
    s = spectrum(X)
    calls = {
        "spectrum": lambda: spectrum(X),
        "figures": lambda: (rank_counts(s), [OF_SPECTRUM[name](s) for name in figures]),
        "top_svd": lambda: top_svd(X, 3, state),
        "alignment": lambda: alignment(state, state, 3),
    }
    with _Operations() as counter:
        calls[what]()
    # The one that a tall matrix's mirrored sum takes is among its launches.
    return counter.count - (what == "spectrum" and not wide)


class _Operations(TorchDispatchMode):
    """Counts what reaches a backend and computes, but for views, products, factorisations and our own kernels."""

    ELSEWHERE = ("mm", "linalg", "gram_", "empty", "zeros", "new_zeros", "tril", "isfinite", "index")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2]
        if not func.is_view and not name.startswith(self.ELSEWHERE):
            self.count += 1
        return func(*args, **(kwargs or {}))


# ---- factorisations ----


@cache
def _measured_rates() -> dict[str, float]:
    """Flops a second of each factorisation here, on one thread as the watcher runs them, by one size of each."""
    from fastrank.precision import one_thread

    A = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A, B = A + A.T, A[:, :27].float().repeat(4, 1)
    runs = {
        "eigvalsh": (lambda: torch.linalg.eigvalsh(A), 4 * 256**3 / 3),
        "qr": (lambda: torch.linalg.qr(B), 2 * (2 * 1024 * 27**2 - 2 * 27**3 / 3)),
        "svd": (lambda: torch.linalg.svd(B[:27]), 22 * 27**3),
    }
    with one_thread():
        return {name: flops / cost._best(run, 0.05) for name, (run, flops) in runs.items()}


def _rates(device: Device) -> dict[str, float]:
    if device.name == "CPU":
        return _measured_rates()
    units = {"eigvalsh": "fp64", "qr": "fp32", "svd": "fp32"}
    return {name: LIBRARY_SHARE * device.flops[unit] for name, unit in units.items()}
