"""The Gram ops as `Op`s of the conformity suite: data behind odd layouts, and `depth`'s bound for each output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from conformity import Op, odd_strides
from fastrank.kernels.gram import depth, gram_accumulate_, gram_dual, reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STRIDES = ("contiguous", "transposed", "padded", "sliced")
SHAPES = [(n, d) for n in (0, 1, 3, 128, 257) for d in (1, 2, 17, 64, 100, 513)]
EDGES = [(3, 17), (128, 100), (257, 17)]
#: Several splits, several slabs of several chunks, and edges of blocks: the ways in which the native path cuts.
CUTS = [(600, 40), (2600, 5), (5000, 70), (1500, 256), (700, 257), (4000, 300)]


@dataclass(frozen=True)
class Case:
    n: int
    d: int
    dtype: torch.dtype = torch.float32
    mode: str = "exact"
    strides: str = "contiguous"
    shifted: bool = True
    integer: bool = False
    images: int = 0  # rows come as a channel view [images, d, n / images]


def data(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(case.n * 1000 + case.d)
    if case.integer:
        X = torch.randint(-8, 9, (case.n, case.d), generator=generator).double()
    else:
        X = torch.randn(case.n, case.d, generator=generator, dtype=torch.float64) + 0.5
    X = X.to(case.dtype)
    if case.images:
        X = X.view(case.images, -1, case.d)
        if case.strides == "channels_last":
            return X.transpose(1, 2)
        return X.transpose(1, 2).contiguous()
    return odd_strides(X, case.strides)


def shift_of(case: Case) -> torch.Tensor | None:
    if not case.shifted:
        return None
    shift = torch.linspace(-2, 2, case.d, dtype=torch.float64)
    return shift.round() if case.integer else shift


def as_rows(X: torch.Tensor) -> torch.Tensor:
    return X.transpose(1, 2).reshape(-1, X.shape[1]) if X.ndim == 3 else X


def accumulated(function, X, shift, *args):
    d = X.shape[1]
    G, total = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    G, total = G.to(X.device), total.to(X.device)
    function(G, total, X, shift, *args)
    return G, total


def accumulate_band(case: Case, truth):
    device = truth[0].device
    Y = as_rows(data(case)).to(device).double()
    Y = (Y - shift_of(case).to(device) if case.shifted else Y).abs()
    roundings = depth(case.n, case.d, case.dtype, case.mode, truth[0].device.type)
    c, tiny = roundings.factor(), roundings.tiny * case.n
    return c * (Y.T @ Y) + tiny, c * Y.sum(0) + tiny


def dual_band(case: Case, truth):
    Y = data(case).to(truth[0].device).double().abs()
    roundings = depth(case.d, case.n, case.dtype, case.mode, truth[0].device.type)
    return (roundings.factor() * (Y @ Y.T) + roundings.tiny * case.d,)


def accumulate_op(case: Case) -> Op:
    return Op(
        "gram_accumulate_",
        ("reference", "native"),
        run=lambda impl, X, shift: accumulated(gram_accumulate_, X, shift, case.mode, impl),
        reference=lambda X, shift: accumulated(reference.gram_accumulate_, X, shift),
        band=accumulate_band,
        build=lambda case: (data(case), shift_of(case)),
    )


def dual_op(case: Case) -> Op:
    return Op(
        "gram_dual",
        ("reference", "native"),
        run=lambda impl, X: (gram_dual(X, case.mode, impl),),
        reference=lambda X: (reference.gram_dual(X),),
        band=dual_band,
        build=lambda case: (data(case),),
    )
