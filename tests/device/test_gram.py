"""The Gram ops on a device, within the bound that `depth` states for its kernels."""

import itertools

import pytest
import torch
from conformity import check
from device_calls import DEVICE, MISSING
from fastrank.kernels import backend
from fastrank.kernels.gram import gram_accumulate_, gram_dual
from gram_conformity import (
    CUTS,
    DTYPES,
    EDGES,
    SHAPES,
    STRIDES,
    Case,
    accumulate_op,
    accumulated,
    as_rows,
    data,
    dual_op,
    shift_of,
)

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

#: Without CUDA in the native core the reference runs on the device; gpu-check builds it first.
IMPL = "native" if DEVICE == "cpu" or (backend.core() and backend.core().cuda) else "reference"


def test_the_kernels_are_there():
    assert IMPL == "native", "the native core was built without CUDA: FASTRANK_CUDA=ON pip install -e ."


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conforms(dtype, mode):
    for index, (n, d) in enumerate([*SHAPES, *(CUTS if dtype == torch.float32 else CUTS[:1])]):
        for strides in STRIDES if (n, d) in EDGES else STRIDES[index % 4 :][:1]:
            case, turned = Case(n, d, dtype, mode, strides, shifted=bool(index % 2)), Case(d, n, dtype, mode, strides)
            check(accumulate_op(case), IMPL, case, DEVICE)
            check(dual_op(turned), IMPL, turned, DEVICE)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_channel_views_conform(mode):
    for images, pixels, d in [(1, 1, 1), (5, 49, 17), (3, 100, 64), (40, 7, 33), (2, 1700, 300), (0, 9, 3)]:
        for dtype, strides in itertools.product(DTYPES, ("contiguous", "channels_last")):
            case = Case(images * pixels, d, dtype, mode, strides, images=images)
            if images:
                check(accumulate_op(case), IMPL, case, DEVICE)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_integers_are_exact_and_added_to_what_is_there(mode):
    for n, d in [(3, 2), (257, 17), (2600, 100), (700, 257)]:
        case = Case(n, d, torch.float32, mode, integer=True)
        X, shift = data(case).to(DEVICE), shift_of(case).to(DEVICE)
        Y = as_rows(X).double() - shift
        G = torch.ones(d, d, dtype=torch.float64, device=DEVICE)
        total = torch.full((d,), 5.0, dtype=torch.float64, device=DEVICE)
        gram_accumulate_(G, total, X, shift, mode, IMPL)
        assert torch.equal(G.tril(), (Y.T @ Y + 1).tril())
        assert torch.equal(G.triu(1), torch.ones_like(G).triu(1))
        assert torch.equal(total, Y.sum(0) + 5)
        assert torch.equal(gram_dual(X.T, mode, IMPL), X.double().T @ X.double())


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_repeated_calls_agree_to_the_bit(mode):
    for n, d in [(5000, 60), (1000, 300), (20_000, 60)]:
        X = data(Case(n, d)).to(DEVICE)
        first, second = (accumulated(gram_accumulate_, X, None, mode) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert torch.equal(gram_dual(X.T, mode), gram_dual(X.T, mode))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_non_finite_values_stay_in_their_rows_and_columns(mode):
    clean = data(Case(700, 300))
    X = clean.clone()
    X[3, 4], X[500, 299] = float("nan"), float("inf")
    G, total = (t.cpu() for t in accumulated(gram_accumulate_, X.to(DEVICE), None, mode))
    expected, expected_total = (t.cpu() for t in accumulated(gram_accumulate_, clean.to(DEVICE), None, mode))
    hit = torch.zeros(300, dtype=torch.bool)
    hit[[4, 299]] = True
    touched = (hit[:, None] | hit[None]).tril()
    assert torch.equal(G[~touched], expected[~touched]) and not G[touched].isfinite().any()
    assert torch.equal(total[~hit], expected_total[~hit]) and not total[hit].isfinite().any()
