"""What a tracked step does, counted: our kernels, torch's operations, factorisations.

It follows `fastrank.spectra`, `fastrank.subspace` and what `fastrank.tracking.followed` uses as they stand, for a GPU
or a CPU. `work_on` is about one matrix by itself: bytes, flops and memory, which add up. `measured_together` is about
the launches of many, which do not: the watcher measures all layers in one call for each kind of figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastrank.capture import INPUT_ROWS, MAX_FEATURES
from fastrank.carried import carried_spectra
from fastrank.factored import PROBES, factored_spectra, pays
from fastrank.followed_cost import carried, from_factors, from_sketch, is_carried, renewal
from fastrank.kernels import cost
from fastrank.kernels.cost import Device, Launch
from fastrank.kernels.gram import Convolution, patch_rows
from fastrank.kernels.gram import cost as gram
from fastrank.kernels.rsvd import cost as rsvd
from fastrank.kernels.rsvd import cost_step, orthonormal_many, products_many, subspace_step_many
from fastrank.kernels.rsvd.config import WIDE_ROWS
from fastrank.kernels.small_eigh import MOST_VALUES, eigh_many, eigvalsh_many
from fastrank.kernels.small_eigh import cost as small_eigh
from fastrank.metrics.alignment import alignment
from fastrank.sketched import sketch_width, sketched_spectrum
from fastrank.small_grams import small_gram
from fastrank.spectra import spectrum
from fastrank.subspace import FRESH, OVERSAMPLE, top_svd
from fastrank.tracking.figures import Figures
from fastrank.tracking.measurements import HELD_BYTES
from fastrank.tracking.presets import BASIC, TOP

#: Share of its unit's peak that a factorisation of torch.linalg is taken to reach on a GPU: a guess from the nature of
#: the work (panels of matrix-vector products, hundreds of launches), to be replaced by a measurement.
LIBRARY_SHARE = 0.02


class Matrix(NamedTuple):
    """A matrix [n, d] that a tracked step measures, and the small operations that cut it out of its source.

    rows: of a gradient, those of the two factors that it is the product of, where there are such. alone: of a weight,
    whether no alignment follows its subspace. how: "exact", anew at every step; "carried", "factors" or "sketch", see
    `fastrank.tracking.followed`.
    """

    kind: str
    layer: str
    source: str
    n: int
    d: int
    dtype: torch.dtype
    ops: int = 0
    rows: int | None = None
    alone: bool = False
    how: str = "exact"


def followed(matrix: Matrix, on_cpu: bool) -> Matrix:
    """How the watcher gets at a large weight's or gradient's spectrum, as far as shapes tell."""
    n, d, rows = matrix.n, matrix.d, matrix.rows
    if matrix.kind == "weight" and is_carried(n, d):
        return matrix._replace(how="carried")
    if matrix.kind != "grad" or not on_cpu or rows is None or matrix.dtype == torch.float64:
        return matrix
    if rows <= INPUT_ROWS and pays(rows, n, d):
        return matrix._replace(how="factors")
    return matrix._replace(how="sketch") if sketch_width(n, d, min(rows, n, d)) is not None else matrix


@dataclass(frozen=True)
class Call:
    """A factorisation that is timed as a whole: its flops, by the textbook's count (Golub & Van Loan, Matrix
    Computations). Of torch.linalg on a GPU, our own on a CPU."""

    name: str
    flops: int
    unit: str


@dataclass(frozen=True)
class Work:
    """What a tracked step does with one matrix [n, d].

    Attributes:
        kind: "act", "logits", "weight", "grad" or "align", as in the run database. layer: its name there.
        source: "act", "input", "weight", "grad" or "logits": where the matrix is from.
        launches: our kernels and torch's matrix products. ops: torch's small operations that cut it out of its source.
        calls: factorisations. kept: bytes from step to step. temporary: bytes while it is measured.
        how: as of `Matrix`. seldom, seldom_calls: what a step of every `period` at most does on top.
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
    how: str = "exact"
    seldom: tuple[Launch, ...] = ()
    seldom_calls: tuple[Call, ...] = ()
    period: int = 1


def work_on(matrix: Matrix, on_cpu: bool = False) -> Work:
    if matrix.how != "exact":
        return _followed_work(matrix, on_cpu)
    kind, layer, source, n, d, dtype, ops = matrix[:7]
    copied = _is_copied(kind, source, d)
    if kind == "align":
        launches, calls, kept, temporary = _subspace(n, d, dtype, on_cpu)
        if source == "input" and not on_cpu:
            launches += rsvd.cosines([(min(TOP, n, d), min(TOP, n, d), d)])
    else:
        launches, calls, temporary = _spectrum(n, d, torch.float32 if kind == "logits" else dtype, on_cpu)
        kept = 0
    if copied:
        launches, temporary = (_copy(source, n, d, dtype), *launches), temporary + n * d * dtype.itemsize
    return Work(kind, layer, source, n, d, dtype, launches, ops, calls, kept, temporary)


def _followed_work(matrix: Matrix, on_cpu: bool) -> Work:
    kind, layer, source, n, d, dtype, ops, rows, alone, how = matrix
    seldom, seldom_calls, period, kept = (), (), 1, 0
    exact, exact_calls, temporary = _spectrum(n, d, dtype, on_cpu)
    if how == "carried":
        launches, calls = carried(n, d, dtype)
        kept = n * d * dtype.itemsize
        seldom, seldom_calls, period = (*exact, Launch("torch.clone", kept, kept)), exact_calls, renewal(n, d)
    elif how == "factors":
        (launches, calls), temporary = from_factors(n, d, rows), 8 * (4 * rows * rows)
    else:
        width = sketch_width(n, d, min(rows, n, d))
        (launches, calls), temporary = from_sketch(n, d, width), (8 + 4) * n * d + 2 * 8 * width * width
    calls = tuple(Call(name, flops, "fp64") for name, flops in calls)
    if alone and how == "carried":
        products, problems, block, during = _subspace(n, d, dtype, on_cpu)
        launches, calls = (*launches, *products), (*calls, *problems)
        kept, temporary = kept + block, max(temporary, during)
    return Work(
        kind, layer, source, n, d, dtype, launches, ops, calls, kept, temporary, how, seldom, seldom_calls, period
    )


def measured_together(
    works: Sequence[Work], figures: tuple[str, ...], on_cpu: bool = False
) -> tuple[tuple[Launch, ...], int]:
    """Launches of the step that measures these matrices, and torch's small operations.

    One call for each kind: its Gram matrices (those of activations in the layers' hooks, see `_calls`), all their
    eigenvalues, all subspace steps of weights and of inputs, all cosines; spectra of one length share their figures.
    """
    launches, ops = [], sum(work.ops for work in works)
    for work in works:
        if _is_copied(work.kind, work.source, work.d):
            launches.append(_copy(work.source, work.n, work.d, work.dtype))
    for kind in dict.fromkeys(work.kind for work in works):
        members = [work for work in works if work.kind == kind]
        if kind != "align":
            anew = [w for w in members if w.how == "exact"]
            launches += _spectra_together(anew, on_cpu)
            ops += _count("spectrum", [w.n < w.d for w in anew])
            for how in ("carried", "factors", "sketch"):
                others = [w for w in members if w.how == how]
                launches += [launch for w in others for launch in w.launches]
                ops += _count(how, [False] * len(others))
            if not on_cpu:  # where the reference reads carried matrices in blocks of rows, in eight operations each
                ops += sum(8 * -(-w.n // WIDE_ROWS) for w in members if w.how == "carried")
            for length in {min(w.n, w.d) for w in members}:
                ops += _count("figures", [False] * sum(min(w.n, w.d) == length for w in members), figures)
            continue
        for source in ("weight", "input"):
            these = [w for w in members if w.source == source]
            launches += _subspaces_together(these, on_cpu)
            ops += _count("top_svd", [w.n < w.d for w in these])
        pairs = [w for w in members if w.source == "input"]
        ops += _count("alignment", [False] * len(pairs))
        if not on_cpu:
            tops = [(min(TOP, w.n, w.d), min(TOP, w.n, w.d), w.d) for w in pairs]
            launches += rsvd.cosines(tops)
    return tuple(launches), ops


def _is_copied(kind: str, source: str, d: int) -> bool:
    """What is not a view is a copy: a subset of features, rows or patches; logits as float32; the softmax."""
    return source == "input" or (source == "act" and d == MAX_FEATURES) or kind == "logits"


def _copy(source: str, n: int, d: int, dtype: torch.dtype) -> Launch:
    moved = n * d * dtype.itemsize
    return Launch("input_rows" if source == "input" else "torch.index", moved, moved)


def _orthonormal(d: int, q: int, dtype: torch.dtype) -> Launch:
    """On a CPU: a block [d, q] is read and written, and its Gram matrix and the product with a triangle are made."""
    moved = d * q * dtype.itemsize
    return Launch("orthonormal", moved, moved, {"fp64": 3 * d * q * q})


def _calls(works: Sequence[Work]) -> list[list[Work]]:
    """The works of one kind, by the call that multiplies them: of activations samples are held for a call of many,
    the others have one each."""
    if not works or works[0].kind != "act":
        return [list(works)]
    calls = [[work] for work in works if not _is_copied(work.kind, work.source, work.d)]
    held = HELD_BYTES
    for work in works:
        if _is_copied(work.kind, work.source, work.d):
            if held >= HELD_BYTES:
                calls.append([])
                held = 0
            calls[-1].append(work)
            held += work.n * work.d * work.dtype.itemsize
    return calls


def _spectra_together(works: Sequence[Work], on_cpu: bool) -> list[Launch]:
    shapes = [(w.n, w.d) for w in works]
    launches = []
    for group in _calls(works):
        launches += [Launch("torch.zeros", 0, 8 * min(w.n, w.d) ** 2) for w in group]
        dtypes = [torch.float32 if w.kind == "logits" else w.dtype for w in group]
        launches += gram.group(
            gram.Product(max(w.n, w.d), min(w.n, w.d), dtype, shift=False, total=False, symmetric=True)
            for w, dtype in zip(group, dtypes, strict=True)
        )
    if not on_cpu:
        sizes = [min(shape) for shape in shapes]
        launches += small_eigh.eigvalsh([k for k in sizes if k <= MOST_VALUES])
        launches += [Launch("torch.isfinite", 8 * k * k, k * k) for k in sizes if k > MOST_VALUES]
    return launches


def _subspaces_together(works: Sequence[Work], on_cpu: bool) -> list[Launch]:
    launches = []
    for dtype in dict.fromkeys(w.dtype for w in works):
        shapes = [(w.n, w.d) for w in works if w.dtype == dtype and min(w.n, w.d)]
        width, k = (max((min(most, n, d) for n, d in shapes), default=0) for most in (TOP + OVERSAMPLE, TOP))
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        if not shapes:
            continue
        if on_cpu:
            launches += cost_step.steps(shapes, width, k, dtype)
            launches += [_orthonormal(d, min(width, n, d), computed) for n, d in shapes]
            continue
        # Blocks of one height share their fresh directions.
        launches += [rsvd.test_matrix(d, min(FRESH, width), computed) for d in {d for _, d in shapes}]
        launches += rsvd.orthonormal([(d, min(width, n, d)) for n, d in shapes], computed)
        launches += rsvd.steps(shapes, width, k, dtype)
    return launches


def _spectrum(n: int, d: int, dtype: torch.dtype, on_cpu: bool) -> tuple[tuple[Launch, ...], tuple[Call, ...], int]:
    """As `spectra.spectrum`: the smaller Gram matrix in mode "exact", then its eigenvalues."""
    k, rows = min(n, d), max(n, d)
    square = 8 * k * k
    launches, calls = gram.dual(k, rows, dtype), ()
    if not on_cpu and k <= MOST_VALUES:
        launches = (*launches, *small_eigh.eigvalsh([k]))
    else:
        launches = launches if on_cpu else (*launches, Launch("torch.isfinite", square, k * k))
        calls = (Call("eigvalsh", 4 * k**3 // 3, "fp64"),)
    # The matrix and the solver's copy.
    return launches, calls, 2 * square + gram.Cut(rows, k).workspace


def _subspace(
    n: int, d: int, dtype: torch.dtype, on_cpu: bool
) -> tuple[tuple[Launch, ...], tuple[Call, ...], int, int]:  # fmt: skip
    """A warm call without a jump: fresh directions, an orthonormal block, one step of block subspace iteration."""
    q, k = min(TOP + OVERSAMPLE, n, d), min(TOP, n, d)
    size = 8 if dtype == torch.float64 else 4
    kept = size * (n * k + d * q)
    if on_cpu:
        # Both small eigenproblems of a step.
        calls = (Call("eigh", sum(x.flops["fp64"] for x in small_eigh.eigh([q, q])), "fp64"),) if q else ()
        block = _orthonormal(d, q, torch.float64 if size == 8 else torch.float32)
        return (block, cost_step.step(n, d, q, k, dtype)), calls, kept, kept + size * n * (q + k)
    if not q:
        return (), (), 0, 0
    computed = torch.float64 if size == 8 else torch.float32
    launches = (rsvd.test_matrix(d, min(FRESH, q), computed), *rsvd.orthonormal([(d, q)], computed))
    launches += rsvd.steps([(n, d)], q, k, dtype)
    return launches, (), kept, kept + rsvd.workspace(n, d, q, dtype)


def _count(what: str, wide: Sequence[bool], figures: tuple[str, ...] = ()) -> int:
    """Small operations of torch in one call for so many matrices, from how many a call for one and for two has."""
    if not wide:
        return 0
    once = _ops(what, wide[0], 1, figures)
    return once + sum(_ops(what, w, 2, figures) - _ops(what, w, 1, figures) for w in wide[1:])


@cache
def _ops(what: str, wide: bool, matrices: int, figures: tuple[str, ...]) -> int:
    """Small operations of torch in one call of the watcher's own code, by running it on tiny matrices on the CPU."""
    X = [torch.eye(6, 9) if wide else torch.eye(9, 6)] * matrices
    states = top_svd(X, 3)
    s = {str(i): one for i, one in enumerate(spectrum(X))}
    anchored = carried_spectra([(x, state, None) for x, state in zip(X, states, strict=True)], 0)
    A, G = torch.eye(40)[:, :3] @ torch.eye(50)[:3], (torch.eye(40)[:3], torch.eye(50)[:3])
    calls = {
        "carried": lambda: carried_spectra(
            [(x, state, c.anchor) for x, state, c in zip(X, states, anchored, strict=True)], 1
        ),
        "factors": lambda: factored_spectra([(A, *G)] * matrices, 0, 0),
        "sketch": lambda: [sketched_spectrum(A, 16, 0, 0) for _ in range(matrices)],
        "spectrum": lambda: spectrum(X),
        "figures": lambda: Figures().add_spectra(s, figures, TOP),
        "top_svd": lambda: top_svd(X, 3, states),
        "alignment": lambda: alignment(states, states, 3),
    }
    with Operations() as counter:
        calls[what]()
    return counter.count


class Operations(TorchDispatchMode):
    """Counts what reaches a backend and computes, but for views, products, factorisations and our own kernels."""

    COUNTED_APART = (
        "mm", "linalg", "eigvalsh_", "gram_", "test_matrix", "orthonormal_", "subspace_step_", "cosines_", "empty",
        "zeros", "new_zeros", "tril", "isfinite", "index",
    )  # fmt: skip

    def __init__(self, apart: tuple[str, ...] = COUNTED_APART) -> None:
        super().__init__()
        self.apart = apart
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2]
        if not func.is_view and not name.startswith(self.apart):
            self.count += 1
        return func(*args, **(kwargs or {}))


@cache
def _measured_rates() -> dict[str, float]:
    """Flops a second of each factorisation here, on one thread as the watcher runs them, by one size of each."""
    A = torch.randn(256, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A, B = A + A.T, A[:, :27].T @ A[:, :27]
    runs = {
        "eigvalsh": (lambda: eigvalsh_many([A]), 4 * 256**3 / 3),
        "eigh": (lambda: eigh_many([B]), small_eigh.eigh([27])[0].flops["fp64"]),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: flops / cost.best(run, 0.05) for name, (run, flops) in runs.items()}
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Pace:
    """What a device takes beyond bytes and flops.

    small: seconds of one of torch's small operations, as the watcher calls them. reached: {name of a launch: share of
    its roofline that it runs at}; all others run at theirs.
    """

    small: float
    reached: dict[str, float]

    def seconds(self, launches: Sequence[Launch], device: Device) -> float:
        return sum(cost.roofline([launch], device) / self.reached.get(launch.kernel, 1.0) for launch in launches)


def pace(device: Device) -> Pace:
    """Of a CPU what is measured here, of a GPU its launches."""
    if device.name != "CPU":
        return Pace(device.launch, {})
    small, measured = _measured_pace(torch.get_num_threads())
    reached = {launch.kernel: min(1.0, cost.roofline([launch], device) / seconds) for launch, seconds in measured}
    return Pace(small, reached)


@cache
def _measured_pace(threads: int) -> tuple[float, list[tuple[Launch, float]]]:
    """Seconds of a small operation, from the figures of eight spectra; launches and what each takes, of four matrices
    [256, 2048] in one call, the inputs of a wide layer; of an activation [128, 2048]; and of the patches that a
    convolution sees."""
    spectra = {str(i): one for i, one in enumerate(spectrum([torch.eye(9, 6)] * 8))}
    figures = partial(Figures().add_spectra, spectra, BASIC, TOP)
    with Operations() as counter:
        figures()
    count, n, d, q, columns = 4, 256, 2048, TOP + OVERSAMPLE, 1 + PROBES
    draws = torch.Generator().manual_seed(0)
    A = [torch.randn(n, d, generator=draws) for _ in range(count)]
    blocks = orthonormal_many([torch.randn(d, q, generator=draws) for _ in A])
    probes = [torch.randn(d, columns, dtype=torch.float64, generator=draws) for _ in A]
    # Its eigenproblems are counted apart.
    _, problems, _, _ = _subspace(n, d, torch.float32, True)
    apart = sum(call.flops / _measured_rates()[call.name] for call in problems)
    step = cost.best(lambda: subspace_step_many(A, blocks, TOP, entering=False), 0.1) / count - apart
    products = cost.best(lambda: products_many(A, probes), 0.05) / count
    orthonormal = cost.best(lambda: orthonormal_many(blocks), 0.05) / count
    activations = cycle([torch.randn(128, d, generator=draws) for _ in range(16)])
    product = cost.best(lambda: small_gram(next(activations), rounded=True), 0.05)
    (tiles,) = (launch for launch in gram.dual(128, d) if launch.kernel == "gram_tiles")
    # Other rows each time, as a cache would have the same ones.
    images, patches = torch.zeros(64, 64, 32, 32), Convolution.of(3, 1, 1, 1, 1)
    rows = torch.randint(patches.rows(images.shape), (16, n), generator=draws).sort().values
    turns = cycle(rows)
    picked = cost.best(lambda: patch_rows(images, patches, next(turns)), 0.05)
    return cost.best(figures, 0.05) / counter.count, [
        (cost_step.step(n, d, q, TOP, torch.float32), max(step, 1e-9)),
        (Launch("torch.probes", 4 * n * d, 0, {"fp64": 2 * columns * n * d}), products),
        (_orthonormal(d, q, torch.float32), orthonormal),
        (tiles, product),
        (_copy("input", n, 64 * 9, torch.float32), picked),
    ]


def rates(device: Device) -> dict[str, float]:
    if device.name == "CPU":
        return _measured_rates()
    return {"eigvalsh": LIBRARY_SHARE * device.flops["fp64"]}
