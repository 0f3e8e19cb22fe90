"""The randomized SVD ops as `torch.ops.fastrank.*`: schema, implementations per device, shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastrank.kernels import backend
from fastrank.kernels.rsvd import reference, steps
from fastrank.kernels.rsvd.config import KINDS, STEP_WIDTHS
from fastrank.kernels.rsvd.validate import DTYPES
from torch import Tensor

_library = torch.library.Library("fastrank", "FRAGMENT")
_library.define(
    "test_matrix(int rows, int columns, int seed, int stream, str kind, ScalarType dtype, Device device, "
    "str? impl=None) -> Tensor"
)
_library.define("sketch(Tensor A, int q, int seed, int stream, str kind, str? impl=None) -> Tensor")
_library.define(
    "subspace_step_many(Tensor[] A, Tensor[] V, int k, str? impl=None, bool entering=True) -> "
    "(Tensor[] U, Tensor[] S, Tensor[] V_next, Tensor[] residual, Tensor[] entering, Tensor[] norm)"
)
_library.define("orthonormal_many(Tensor[] X, str? impl=None, int fresh=0, int[] draws=[]) -> Tensor[]")
_library.define("cosines_many(Tensor[] W, Tensor[] A, str? impl=None) -> Tensor[]")
_library.define("distances_many(Tensor[] X, Tensor[] Y, str? impl=None) -> Tensor")

_MASK = 0xFFFFFFFFFFFFFFFF
Steps = tuple[list[Tensor], ...]  # the members of `Step`, each a list


def test_matrix(
    rows: int, columns: int, seed: int, stream: int, kind: str, dtype: torch.dtype, device: torch.device,
    impl: str | None = None,
) -> Tensor:  # fmt: skip
    chosen = backend.chosen("test_matrix", device.type, impl)
    if chosen == "reference":
        return reference.test_matrix(rows, columns, seed, stream, kind, dtype, device)
    if chosen == "triton":
        return _triton().test_matrix(rows, columns, seed, stream, kind, dtype, device)
    native = dtype if dtype == torch.float64 else torch.float32
    found = torch.empty(rows, columns, dtype=native, device="cpu")
    backend.core().test_matrix_cpu(
        0, rows, columns, seed & _MASK, stream, KINDS.index(kind), found.data_ptr(), native == torch.float64,
        backend.threads(),
    )  # fmt: skip
    return found.to(dtype)


def sketch(A: Tensor, q: int, seed: int, stream: int, kind: str, impl: str | None = None) -> Tensor:
    chosen = backend.chosen("sketch", A.device.type, impl)
    if chosen == "reference":
        return reference.sketch(A, q, seed, stream, kind)
    if chosen == "triton":
        return _triton().sketch(A, q, seed, stream, kind)
    Y = A.new_empty(len(A), q, dtype=_computed(A.dtype))
    if Y.numel():
        backend.core().sketch_cpu(
            *_matrix(A := _by_rows(A)), q, seed & _MASK, stream, KINDS.index(kind), Y.data_ptr(), backend.threads()
        )
    return Y


def step_many(A: list[Tensor], V: list[Tensor], k: int, impl: str | None = None, entering: bool = True) -> Steps:
    if not A:
        return ([],) * 6
    chosen = backend.chosen("subspace_step_many", A[0].device.type, impl)
    if chosen != "native":
        found = _steps(A, V, k) if chosen == "reference" else _triton_steps(A, V, k)
        return found if entering else (*found[:4], [x[:0].clone() for x in found[4]], found[5])
    A, V = [_by_rows(a) for a in A], [v.contiguous() for v in V]
    found = _outputs(A, V, k, entering)
    items = [
        (*_matrix(a), v.data_ptr(), v.shape[1], min(k, v.shape[1]), *(x.data_ptr() for x in out))
        for a, v, *out in zip(A, V, *found, strict=True)
    ]
    backend.core().subspace_step_many_cpu(items, backend.threads())
    return found


def _steps(A: list[Tensor], V: list[Tensor], k: int) -> Steps:
    return tuple(map(list, zip(*(steps.subspace_step(a, v, k) for a, v in zip(A, V, strict=True)), strict=True)))


def orthonormal_many(
    X: list[Tensor], impl: str | None = None, fresh: int = 0, draws: Sequence[int] = ()
) -> list[Tensor]:
    """draws: seed and stream of each, one after the other."""
    if not X:
        return []
    chosen = backend.chosen("orthonormal_many", X[0].device.type, impl)
    pairs = list(zip(draws[::2], draws[1::2], strict=True)) or [(0, 0)] * len(X)
    if chosen != "native" and fresh:
        X = _extended(X, fresh, pairs)
    if chosen == "reference":
        return [steps.orthonormal(x) for x in X]
    if chosen == "triton":
        from fastrank.kernels.rsvd import orthonormal_triton

        grouped = [i for i, x in enumerate(X) if x.shape[1] in range(1, STEP_WIDTHS[-1] + 1)]
        found = dict(zip(grouped, orthonormal_triton.orthonormal_many([X[i] for i in grouped]), strict=True))
        return [found[i] if i in found else steps.orthonormal(x) for i, x in enumerate(X)]
    X = [_by_rows(x) for x in X]
    found = [x.new_empty(len(x), x.shape[1] + fresh) for x in X]
    items = [
        (x.data_ptr(), x.dtype == torch.float64, x.stride(0), *out.shape, out.data_ptr(), fresh, seed & _MASK, stream)
        for x, out, (seed, stream) in zip(X, found, pairs, strict=True)
    ]
    backend.core().orthonormal_many_cpu(items, backend.threads())
    return found


def _extended(X: list[Tensor], fresh: int, draws: list[tuple[int, int]]) -> list[Tensor]:
    """Each with a test matrix behind it; the same one where all that it depends on is."""
    drawn: dict[tuple, Tensor] = {}
    extended = []
    for x, (seed, stream) in zip(X, draws, strict=True):
        key = len(x), seed, stream, x.dtype
        if key not in drawn:
            drawn[key] = test_matrix(len(x), fresh, seed, stream, "gaussian", x.dtype, x.device)
        extended.append(torch.cat([x, drawn[key]], 1))
    return extended


def cosines_many(W: list[Tensor], A: list[Tensor], impl: str | None = None) -> list[Tensor]:
    if W and backend.chosen("cosines_many", W[0].device.type, impl) == "triton":
        from fastrank.kernels.rsvd import cosines_triton

        return cosines_triton.cosines_many(W, A)
    return [reference.cosines(w, a) for w, a in zip(W, A, strict=True)]


def distances_many(X: list[Tensor], Y: list[Tensor], impl: str | None = None) -> Tensor:
    device = X[0].device if X else torch.device("cpu")
    found = torch.empty(len(X), 2, dtype=torch.float64, device=device)
    native = X and backend.chosen("distances_many", device.type, impl) == "native"
    items = []
    for x, y, out in zip(X, Y, found, strict=True):
        if native and x.dtype in (torch.float32, torch.float64):
            x, y = _by_rows(x), _by_rows(y)
            wide = x.dtype == torch.float64
            items.append((x, y, (x.data_ptr(), y.data_ptr(), wide, *x.shape, x.stride(0), y.stride(0), out.data_ptr())))
        else:
            out.copy_(torch.stack(reference.distance(x, y)))
    if items:
        backend.core().distances_cpu([item for *_, item in items], backend.threads())
    return found


def _triton_steps(A: list[Tensor], V: list[Tensor], k: int) -> Steps:
    """Grouped; blocks that are too wide for the kernels, and A without numbers, one by one through the reference."""
    from fastrank.kernels.rsvd import step_triton

    grouped = [
        i
        for i, (a, v) in enumerate(zip(A, V, strict=True))
        if a.numel() and v.shape[1] in range(1, STEP_WIDTHS[-1] + 1)
    ]
    found = dict(
        zip(grouped, step_triton.subspace_step_many([A[i] for i in grouped], [V[i] for i in grouped], k), strict=True)
    )
    every = (
        found[i] if i in found else steps.subspace_step(a, v, k) for i, (a, v) in enumerate(zip(A, V, strict=True))
    )
    return tuple(map(list, zip(*every, strict=True)))


def _triton():
    from fastrank.kernels.rsvd import triton

    return triton


def _outputs(A: list[Tensor], V: list[Tensor], k: int, entering: bool) -> Steps:
    """Empty ones, each with memory of its own: a state that is saved must not take the others with it."""
    widths = [v.shape[1] for v in V]
    tops = [min(k, q) for q in widths]
    U = [v.new_empty((len(a), top)) for a, v, top in zip(A, V, tops, strict=True)]
    S, residual, values, norm = (
        [v.new_empty(shape) for v, shape in zip(V, shapes, strict=True)]
        for shapes in (widths, tops, widths if entering else [0] * len(V), [()] * len(V))
    )
    return U, S, [torch.empty_like(v) for v in V], residual, values, norm


def _by_rows(A: Tensor) -> Tensor:
    """A itself where the numbers of a row lie side by side, else a copy for which that holds."""
    return A if A.stride(1) == 1 or A.shape[1] <= 1 else A.contiguous()


def _matrix(A: Tensor) -> tuple[int, ...]:
    return A.data_ptr(), DTYPES[A.dtype], *A.shape, A.stride(0)


def _computed(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


for _key in ("CPU", "CUDA", "CompositeExplicitAutograd"):  # the last: every other device, through the reference
    _library.impl("sketch", sketch, _key)
    _library.impl("subspace_step_many", step_many, _key)
    _library.impl("orthonormal_many", orthonormal_many, _key)
    _library.impl("cosines_many", cosines_many, _key)
    _library.impl("distances_many", distances_many, _key)
_library.impl("test_matrix", test_matrix, "CompositeExplicitAutograd")  # no tensor to choose by


@torch.library.register_fake("fastrank::test_matrix", lib=_library)
def _(rows, columns, seed, stream, kind, dtype, device, impl=None):
    return torch.empty(rows, columns, dtype=dtype, device=device)


@torch.library.register_fake("fastrank::sketch", lib=_library)
def _(A, q, seed, stream, kind, impl=None):
    return A.new_empty(len(A), q, dtype=_computed(A.dtype))


@torch.library.register_fake("fastrank::subspace_step_many", lib=_library)
def _(A, V, k, impl=None, entering=True):
    return _outputs(A, V, k, entering)


@torch.library.register_fake("fastrank::orthonormal_many", lib=_library)
def _(X, impl=None, fresh=0, draws=()):
    return [x.new_empty(x.shape[0], x.shape[1] + fresh) for x in X]


@torch.library.register_fake("fastrank::distances_many", lib=_library)
def _(X, Y, impl=None):
    return torch.empty(len(X), 2, dtype=torch.float64, device=X[0].device if X else "cpu")


@torch.library.register_fake("fastrank::cosines_many", lib=_library)
def _(W, A, impl=None):
    return [w.new_empty(len(w), len(a)) for w, a in zip(W, A, strict=True)]
