"""The Gram ops on a device, within the bound that `depth` states for its kernels."""

import itertools

import gram_patches_conformity as of_patches
import pytest
import torch
from conformity import check
from device_calls import DEVICE, MISSING
from fastrank.kernels import backend
from fastrank.kernels.gram import gram_accumulate_, gram_dual, gram_dual_many, gram_patches_
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
def test_patches_conform(mode):
    for index, (size, convolution) in enumerate(of_patches.SHARED + of_patches.APART):
        layout = ("contiguous", "channels_last", "sliced")[index % 3]
        for dtype in DTYPES if index % 4 == 0 else DTYPES[1:3]:
            x = of_patches.images(size, dtype, layout)
            for shift in (None, of_patches.shift_of(size, convolution)):
                check(of_patches.op(size, convolution, mode), IMPL, (x, shift), DEVICE)
        x = of_patches.images(size, DTYPES[index % 4], layout, integer=True).to(DEVICE)
        shift = of_patches.shift_of(size, convolution, integer=True).to(DEVICE)
        P = of_patches.patches(x, convolution, shift)
        G, total = of_patches.accumulated(gram_patches_, x, convolution, shift, mode, IMPL)
        assert torch.equal(G, (P.T @ P).tril()) and torch.equal(total, P.sum(0)), (size, convolution)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_many_have_the_bits_of_each_alone(mode):
    cases = [Case(n, d, DTYPES[i % 4]) for i, (n, d) in enumerate([(3, 5), (0, 4), (500, 17), (64, 300), (2000, 1030)])]
    X = [data(case).to(DEVICE) for case in cases]
    X += [x.T for x in X]
    found = gram_dual_many(X, mode, IMPL)
    for x, K in zip(X, found, strict=True):
        assert torch.equal(K, gram_dual(x, mode, IMPL)) and torch.equal(K, K.T)
        assert IMPL != "native" or torch.equal(K.tril(), accumulated(gram_accumulate_, x.T, None, mode, IMPL)[0])
    for x, K in zip(X[:3], gram_dual_many(X[:3], mode, IMPL), strict=True):
        assert torch.equal(K, gram_dual(x, mode, IMPL))
    assert len({K.data_ptr() for K in found if K.numel()}) == sum(K.numel() > 0 for K in found)


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


#: Products that need different kernels: exact and fast, 16 bits with and without a shift, wide tiles, splits.
GROUP = [
    (32, 8000, torch.float32, "exact", False),
    (600, 3, torch.float32, "fast", True),
    (100, 70, torch.bfloat16, "fast", False),
    (100, 70, torch.float16, "fast", True),
    (300, 1030, torch.float32, "exact", True),
    (5000, 64, torch.bfloat16, "exact", False),
]


@pytest.mark.skipif(DEVICE == "cpu" or IMPL != "native", reason="groups are the native core's, on CUDA")
def test_a_group_has_the_bits_of_its_products_and_flags_what_is_not_finite():
    core, stream = backend.core(), torch.cuda.current_stream().cuda_stream
    numbers = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
    kept, rows, alone = [], [], []
    for index, (n, d, dtype, mode, shifted) in enumerate(GROUP):
        X = data(Case(n, d, dtype)).to(DEVICE)
        shift = shift_of(Case(n, d)).to(DEVICE) if shifted else None
        alone.append(accumulated(gram_accumulate_, X, shift, mode))
        if index == 2:
            X = X.clone()
            X[3, 4] = float("nan")
        G = torch.zeros(d, d, dtype=torch.float64, device=DEVICE)
        total, flag = G.new_zeros(d), torch.zeros(1, dtype=torch.int32, device=DEVICE)
        kept.append((X, shift, G, total, flag))
        matrix = X.data_ptr(), numbers[dtype], n, d, n, 0, X.stride(0), X.stride(1)
        address = 0 if shift is None else shift.data_ptr()
        rows.append((*matrix, address, G.data_ptr(), d, total.data_ptr(), mode == "fast", flag.data_ptr(), True))
    products = torch.tensor(rows, dtype=torch.int64)
    assert products.shape == (len(GROUP), core.gram_group_fields)
    group = products.data_ptr(), len(GROUP)
    workspace = torch.empty(core.gram_group_cuda_workspace(*group), dtype=torch.float64, device=DEVICE)
    table = torch.empty(core.gram_group_cuda_size(len(GROUP)), dtype=torch.uint8).pin_memory()
    core.gram_group_cuda_fill(*group, workspace.data_ptr(), table.data_ptr())
    on_device = table.to(DEVICE)
    core.gram_group_cuda_launch(table.data_ptr(), on_device.data_ptr(), stream)
    for index, ((_, _, G, total, flag), (expected, expected_total)) in enumerate(zip(kept, alone, strict=True)):
        assert flag.item() == (index == 2)
        if index != 2:
            assert torch.equal(G, expected + expected.tril(-1).T) and torch.equal(total, expected_total)
