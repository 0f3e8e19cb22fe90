"""`torch.ops.fastrank.{eigvalsh,inertia,eigh}_many`: schema, implementations per device, shapes for tracing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fastrank.kernels import backend
from fastrank.kernels.small_eigh import reference
from fastrank.kernels.small_eigh.config import MOST_VALUES
from torch import Tensor

_library = torch.library.Library("fastrank", "FRAGMENT")
_library.define("eigvalsh_many(Tensor[] G, str? impl=None) -> (Tensor[], Tensor)")
_library.define("inertia_many(Tensor[] G, Tensor shift, str? impl=None) -> (Tensor, Tensor)")
# All values, then all vectors.
_library.define("eigh_many(Tensor[] G, str? impl=None) -> Tensor[]")


def _eigvalsh_many(G: list[Tensor], impl: str | None = None) -> tuple[list[Tensor], Tensor]:
    if not G:
        return [], torch.empty(0, dtype=torch.float64, device="cpu")
    chosen = backend.chosen("eigvalsh_many", G[0].device.type, impl)
    if chosen == "triton":
        return _small_ones(G, _triton().eigvalsh_many, reference.eigvalsh)
    if chosen != "native":
        values, errors = zip(*map(reference.eigvalsh, G), strict=True)
        return list(values), torch.stack(errors)
    G = [_rows(g) for g in G]
    values = [g.new_empty(len(g)) for g in G]
    error = torch.empty(len(G), dtype=torch.float64, device="cpu")
    items = [(g.data_ptr(), g.stride(0), len(g), v.data_ptr()) for g, v in zip(G, values, strict=True)]
    backend.core().eigvalsh_many_cpu(items, error.data_ptr(), backend.threads())
    return values, error


def _inertia_many(G: list[Tensor], shift: Tensor, impl: str | None = None) -> tuple[Tensor, Tensor]:
    if not G:
        return torch.empty(0, dtype=torch.int64, device="cpu"), torch.empty(0, dtype=torch.float64, device="cpu")
    chosen = backend.chosen("inertia_many", G[0].device.type, impl)
    if chosen == "triton":
        counts, slack = _small_ones(G, _triton().inertia_many, reference.inertia, shift)
        return (torch.stack(counts) if isinstance(counts, list) else counts), slack
    if chosen != "native":
        counts, slacks = zip(*map(reference.inertia, G, shift), strict=True)
        return torch.stack(counts), torch.stack(slacks)
    G, shift = [_rows(g) for g in G], shift.contiguous()
    count = torch.empty(len(G), dtype=torch.int64, device="cpu")
    slack = torch.empty(len(G), dtype=torch.float64, device="cpu")
    items = [(g.data_ptr(), g.stride(0), len(g)) for g in G]
    arguments = shift.data_ptr(), count.data_ptr(), slack.data_ptr()
    backend.core().inertia_many_cpu(items, *arguments, backend.threads())
    return count, slack


def _eigh_many(G: list[Tensor], impl: str | None = None) -> list[Tensor]:
    if not G:
        return []
    chosen = backend.chosen("eigh_many", G[0].device.type, impl)
    if chosen == "triton":
        values, vectors = _triton().eigh_many(G)
        return [*values, *vectors]
    if chosen != "native":
        values, vectors = zip(*map(reference.eigh, G), strict=True)
        return [*values, *vectors]
    G = [_rows(g) for g in G]
    values, vectors = [g.new_empty(len(g)) for g in G], [g.new_empty(g.shape) for g in G]
    items = [
        (g.data_ptr(), g.stride(0), len(g), v.data_ptr(), q.data_ptr())
        for g, v, q in zip(G, values, vectors, strict=True)
    ]
    backend.core().eigh_many_cpu(items, backend.threads())
    return [*values, *vectors]


def _small_ones(
    G: list[Tensor], grouped: Callable[..., tuple], alone: Callable[..., tuple[Tensor, Tensor]], *more: Tensor
) -> tuple:  # fmt: skip
    """What the kernels give for the matrices up to their largest order, in one call, and torch for each larger one;
    `more`: a number for each matrix."""
    small = [i for i, g in enumerate(G) if len(g) <= MOST_VALUES]
    if len(small) == len(G):
        return grouped(G, *more)
    found = {i: alone(g, *(x[i] for x in more)) for i, g in enumerate(G) if len(g) > MOST_VALUES}
    if small:
        own = (torch.stack([x[i] for i in small]) for x in more)
        found |= dict(zip(small, zip(*grouped([G[i] for i in small], *own), strict=True), strict=True))
    first, second = zip(*(found[i] for i in range(len(G))), strict=True)
    return list(first), torch.stack(second)


def _triton():
    from fastrank.kernels.small_eigh import triton

    return triton


def _rows(g: Tensor) -> Tensor:
    """The matrix with contiguous rows, of which the kernels read the lower triangle."""
    return g if (g.stride(1) == 1 and g.stride(0) >= len(g)) or len(g) < 2 else g.contiguous()


for _key in ("CPU", "CUDA", "CompositeExplicitAutograd"):  # the last: every other device, through the reference
    _library.impl("eigvalsh_many", _eigvalsh_many, _key)
    _library.impl("inertia_many", _inertia_many, _key)
    _library.impl("eigh_many", _eigh_many, _key)


@torch.library.register_fake("fastrank::eigvalsh_many", lib=_library)
def _(G, impl=None):
    return [g.new_empty(len(g)) for g in G], torch.empty(len(G), dtype=torch.float64, device=_device(G))


@torch.library.register_fake("fastrank::inertia_many", lib=_library)
def _(G, shift, impl=None):
    return shift.new_empty(len(G), dtype=torch.int64), shift.new_empty(len(G))


@torch.library.register_fake("fastrank::eigh_many", lib=_library)
def _(G, impl=None):
    return [*(g.new_empty(len(g)) for g in G), *(g.new_empty(g.shape) for g in G)]


def _device(G: list[Tensor]) -> torch.device | None:
    return G[0].device if G else None
