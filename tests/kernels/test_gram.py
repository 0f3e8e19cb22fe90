"""gram_accumulate_ and gram_dual: every implementation against the float64 reference, within the stated bound."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conformity import check
from fastrank.kernels import backend, buffers
from fastrank.kernels.gram import (
    DIGITS_BLOCK,
    FAST_BLOCK,
    Convolution,
    depth,
    digits,
    gram_accumulate_,
    gram_dual,
    gram_dual_many,
    gram_patches_,
    register,
)
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
from matrix_families import FAMILIES
from torch.library import opcheck

native = pytest.mark.skipif(not backend.native_status().available, reason=backend.native_status().reason or "-")


@pytest.fixture(autouse=True)
def one_thread():
    """The matrices are small: torch's pool costs more than it saves. Threads have a test of their own below."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


IMPLS = accumulate_op(Case(1, 1)).live_impls()


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_conforms(impl, dtype, mode):
    for index, (n, d) in enumerate(SHAPES):
        # Every layout at the shapes that have edges in both directions, one of them in turn at the others.
        for strides in STRIDES if (n, d) in EDGES else STRIDES[index % 4 :][:1]:
            case = Case(n, d, dtype, mode, strides, shifted=strides in ("contiguous", "sliced"))
            check(accumulate_op(case), impl, case)
            check(dual_op(case), impl, case)
    for n, d in CUTS if dtype == torch.float32 else []:
        case = Case(n, d, dtype, mode)
        check(accumulate_op(case), impl, case)
        turned = Case(d, n, dtype, mode)
        check(dual_op(turned), impl, turned)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("impl", IMPLS)
def test_channel_views_conform(impl, mode):
    for images, pixels, d in [(1, 1, 1), (5, 49, 17), (3, 100, 64), (40, 7, 33), (2, 1700, 300), (0, 9, 3)]:
        for dtype in (torch.float32, torch.bfloat16):
            for strides in ("contiguous", "channels_last"):
                case = Case(images * pixels, d, dtype, mode, strides, images=images)
                if images:
                    check(accumulate_op(case), impl, case)
    X = torch.randn(4, 6, 9, 8)[:, ::2, 1:, ::2].flatten(2).transpose(0, 1).transpose(0, 1)
    G, total = accumulated(gram_accumulate_, X, None, mode, impl)
    rows = as_rows(X).double()
    torch.testing.assert_close(G, (rows.T @ rows).tril(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total, rows.sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("impl", IMPLS)
def test_integers_are_exact(impl, mode):
    for n, d in [(3, 2), (257, 17), (2600, 100), (700, 257)]:
        for dtype in DTYPES:
            case = Case(n, d, dtype, mode, integer=True)
            X, shift = data(case), shift_of(case)
            Y = X.double() - shift
            G, total = accumulated(gram_accumulate_, X, shift, mode, impl)
            assert torch.equal(G, (Y.T @ Y).tril())
            assert torch.equal(total, Y.sum(0))
            K = gram_dual(X.T, mode, impl)
            assert torch.equal(K, X.double().T @ X.double())


@pytest.mark.parametrize("impl", IMPLS)
def test_adds_to_what_is_there_and_leaves_the_upper_triangle(impl):
    for n, d in [(5, 3), (300, 70), (2600, 70), (300, 300)]:
        X = data(Case(n, d, integer=True))
        wide = torch.full((d, d + 2), float("nan"), dtype=torch.float64)  # a row stride of its own
        G = wide[:, :d]
        G.copy_(torch.ones(d, d).tril() + torch.full((d, d), 7.0).triu(1))
        total = torch.full((d,), 5.0, dtype=torch.float64)
        gram_accumulate_(G, total, X, impl=impl)
        assert torch.equal(G.triu(1), torch.full((d, d), 7.0, dtype=torch.float64).triu(1))
        assert torch.equal(G.tril(), (X.double().T @ X.double() + 1).tril())
        assert torch.equal(total, X.double().sum(0) + 5)
        assert wide[:, d:].isnan().all()


@native
@pytest.mark.parametrize("mode", ("exact", "fast"))
@pytest.mark.parametrize(("n", "d"), [(40, 300), (130, 600), (200, 1500), (400, 700), (600, 2500)])
def test_the_dual_owes_nothing_to_what_its_memory_held(n, d, mode, monkeypatch):
    """One and several splits and slabs: C is written by the first and added to by the others."""
    X = data(Case(n, d))
    full = lambda shape, like, dtype: torch.full(shape, math.nan, dtype=dtype)  # noqa: E731
    monkeypatch.setattr(buffers, "empty", full)
    K, expected = gram_dual(X, mode), torch.zeros(n, n, dtype=torch.float64)
    gram_accumulate_(expected, torch.zeros(n, dtype=torch.float64), X.T, mode=mode)
    assert torch.equal(K.tril(), expected) and torch.equal(K, K.T)


@native
def test_threads_do_not_change_a_bit():
    shapes = [(300, 20), (600, 60), (5000, 60), (20_000, 60), (1000, 300), (5000, 300)]
    X = [data(Case(n, d)) for n, d in shapes]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            [
                t
                for x in X
                for mode in ("exact", "fast")
                for t in (*accumulated(gram_accumulate_, x, shift_of(Case(*x.shape)), mode), gram_dual(x.T, mode))
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("d", [20, 300])
def test_non_finite_values_stay_in_their_rows_and_columns(impl, mode, d):
    clean = data(Case(700, d))
    X = clean.clone()
    X[3, 4], X[500, d - 1] = float("nan"), float("inf")
    G, total = accumulated(gram_accumulate_, X, None, mode, impl)
    expected, expected_total = accumulated(gram_accumulate_, clean, None, mode, impl)
    hit = torch.zeros(d, dtype=torch.bool)
    hit[[4, d - 1]] = True
    touched = (hit[:, None] | hit[None]).tril()
    assert torch.equal(G[~touched], expected[~touched])
    assert G[4, :5].isnan().all() and G[d - 1, 4].isnan() and G[d - 1, d - 1] == float("inf")
    assert not G[touched].isfinite().any()
    assert torch.equal(total[~hit], expected_total[~hit]) and total[4].isnan() and total[d - 1] == float("inf")
    K, expected = gram_dual(X, mode, impl), gram_dual(clean, mode, impl)
    assert K[3].isnan().all() and K[:, 3].isnan().all() and K[500, 500] == float("inf")
    keep = torch.ones(700, dtype=torch.bool)
    keep[[3, 500]] = False
    assert torch.equal(K[keep][:, keep], expected[keep][:, keep])


@native
def test_a_square_of_bfloat16_is_not_rounded_to_bfloat16():
    x = torch.tensor([[1 + 2.0**-7]], dtype=torch.bfloat16)
    for mode in ("exact", "fast"):
        assert gram_dual(x, mode).item() == (1 + 2.0**-7) ** 2
    half = torch.tensor([[1 + 2.0**-10, 60_000.0, 2.0**-24]], dtype=torch.float16)
    assert gram_dual(half).item() == float((half.double() ** 2).sum())


@native
def test_fast_is_exact_between_blocks():
    """A block of large values followed by many of small ones: float32 sums across blocks would lose the small ones."""
    X = torch.full((100 * FAST_BLOCK, 1), 2.0**-12)
    X[0] = 64.0
    truth = (X.double() ** 2).sum()
    G, _ = accumulated(gram_accumulate_, X, None, "fast")
    c = depth(len(X), 1, X.dtype, "fast").factor()
    assert abs(G - truth) <= c * 64.0**2 * (1 + FAST_BLOCK * 2.0**-36)
    assert abs(G - 64.0**2) > 0.9 * (truth - 64.0**2) > 0


@native
def test_depth_speaks_of_the_kernels_own_blocks():
    core = backend.core()
    assert core.gram_fast_chunk == FAST_BLOCK
    assert core.gram_digits_chunk == DIGITS_BLOCK
    exact, plain = (depth(100_000, 64, torch.float32, "exact", impl=impl) for impl in ("native", "reference"))
    assert exact.before + exact.adds < 1000 < plain.before + plain.adds
    assert depth(0, 64, torch.float32, "fast").factor() == 0
    assert depth(500, 64, torch.float64, "fast") == depth(500, 64, torch.float64, "exact")
    fast = depth(500, 64, torch.float32, "fast")
    assert fast.fp32 == FAST_BLOCK + 3 and fast.factor() > 1e3 * exact.factor()


def test_opcheck():
    X = torch.randn(5, 3)
    G, total, shift = torch.zeros(3, 3).double(), torch.zeros(3).double(), torch.ones(3).double()
    ops = torch.ops.fastrank
    opcheck(ops.gram_accumulate_.default, (G, total, X))
    opcheck(ops.gram_accumulate_.default, (G, total, X[None].transpose(1, 2), shift, "fast", "reference"))
    opcheck(ops.gram_dual.default, (X, "fast"))


def test_compiles_without_a_graph_break():
    def step(X):
        G, total = X.new_zeros(4, 4, dtype=torch.float64), X.new_zeros(4, dtype=torch.float64)
        gram_accumulate_(G, total, 2 * X)
        rounded = X.new_zeros(2, dtype=torch.float64)
        return G, gram_dual(X + 1), *gram_dual_many([X + 2, 3 * X.T], "fast", rounded=rounded), rounded

    X = torch.randn(6, 4)
    for got, want in zip(torch.compile(step, fullgraph=True, backend="aot_eager")(X), step(X), strict=True):
        assert torch.equal(got, want)


def test_other_dtypes_and_shapes_are_refused_by_name():
    X = torch.zeros(5, 3)
    G, total = torch.zeros(3, 3).double(), torch.zeros(3).double()
    for bad, message in [
        ((G, total, X.long()), "X: expected float64, float32, bfloat16 or float16, got torch.int64"),
        ((G, total, X[0]), r"X: expected \[n, d\] or \[B, d, S\], got shape \(3,\)"),
        ((G.float(), total, X), "G: expected float64, got torch.float32"),
        ((G[:2], total, X), r"G: expected shape \(3, 3\)"),
        ((G.T, total, X), "G: expected contiguous rows"),
        ((G[:1].expand(3, 3), total, X), "G: expected rows that do not overlap"),
        ((G, total[:2], X), r"total: expected shape \(3,\)"),
        ((G, torch.zeros(6).double()[::2], X), "total: expected a contiguous vector"),
        ((G, total, X, total.float()), "shift: expected float64"),
        ((G, total, X, total.to("meta")), "shift: expected it on X's device, cpu, got meta"),
        ((G, total, X, None, "tf32"), "mode: expected 'exact' or 'fast', got 'tf32'"),
        ((G, total, X, None, "exact", "cublas"), "impl: expected one of"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            gram_accumulate_(*bad)
    with pytest.raises(RuntimeError, match="this op has only native"):
        gram_dual(X, impl="triton")
    with pytest.raises(ValueError, match=r"X: expected a matrix \[n, d\]"):
        gram_dual(X[None])
    assert not G.any() and not total.any()


# ---- many at once ----


def problems():
    """Shapes of a network's layers, dtypes and layouts mixed; the largest is more than half of the work."""
    cases = [
        Case(n, d, DTYPES[index % 4], strides=STRIDES[index % 4], shifted=bool(index % 2))
        for index, (n, d) in enumerate(
            [(3, 5), (0, 4), (500, 17), (64, 300), (1, 1), (2000, 260), (257, 64), (90, 100)]
        )
    ]
    return [*cases, Case(5 * 49, 17, images=5)]


def as_matrices():
    """Those problems, and turned, so that either side is summed over."""
    X = [as_rows(data(case)) for case in problems()]
    return [*X, *(x.T for x in X)]


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("impl", IMPLS)
def test_many_give_the_bits_of_each_alone(impl, mode):
    X = as_matrices()
    alone = [gram_dual(x, mode, impl) for x in X]
    for threads in (1, 3) if impl == "native" else (1,):  # torch's own products depend on them
        torch.set_num_threads(threads)
        for company in (X, X[::-1], X[:5]):
            found = gram_dual_many(company, mode, impl)
            for x, mine in zip(company, found, strict=True):
                (expected,) = (K for other, K in zip(X, alone, strict=True) if other is x)
                assert torch.equal(mine, expected)
            held = [K.data_ptr() for K in found if K.numel()]
            assert len(set(held)) == len(held)
    assert gram_dual_many([], mode, impl) == []


@native
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_many_give_the_bits_of_the_state_of_each(mode):
    X = as_matrices()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for x, K in zip(X, gram_dual_many(X, mode), strict=True):
            assert torch.equal(K.tril(), accumulated(gram_accumulate_, x.T, None, mode)[0])


def test_many_are_registered_for_tracing():
    X = [torch.randn(5, 3), torch.randn(2, 4), torch.randn(0, 2), torch.randn(3, 5, dtype=torch.bfloat16).T]
    for arguments in ((X,), (X, "fast", "reference"), (X, "fast", None, True), ([],)):
        opcheck(torch.ops.fastrank.gram_dual_many.default, arguments)


def test_what_rounding_changed_is_added_where_the_operator_is_seen_too(monkeypatch):
    duals = register.duals

    def rounding(X, precision, impl, rounded):
        if rounded is not None:
            rounded += 0.25
        return duals(X, precision, impl, rounded)

    monkeypatch.setattr(register, "duals", rounding)
    X, rounded = [torch.randn(5, 3), torch.randn(2, 4)], torch.ones(2, dtype=torch.float64)
    gram_dual_many(X, "fast", rounded=rounded)
    assert rounded.tolist() == [1.25, 1.25]
    with torch.autograd.profiler.profile():
        gram_dual_many(X, "fast", rounded=rounded)
        gram_dual_many(X, "fast")
    assert rounded.tolist() == [1.5, 1.5]


def test_mistakes_in_many_are_named():
    x, rounded = torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64)
    for arguments, error, message in [
        ((x,), TypeError, "X: expected a list of tensors, got Tensor"),
        (([x, None],), TypeError, r"X: expected a torch tensor, got NoneType \(at 1\)"),
        (([x], "tf32"), ValueError, "mode: expected"),
        (([], "tf32"), ValueError, "mode: expected"),
        (([x, x, x.int()],), TypeError, r"X: expected float64, .* got torch.int32 \(at 2\)"),
        (([x[0]],), ValueError, r"X: expected a matrix \[n, d\], got shape \(3,\) \(at 0\)"),
        (([x, x.to_sparse()],), TypeError, r"X: expected a dense tensor, .* \(at 1\)"),
        (([x, x.to("meta")],), ValueError, "X: expected tensors on one device, cpu, got meta at 1"),
        (([x], "exact", "cublas"), ValueError, "impl: expected one of"),
        (([x] * 3, "fast", None, rounded), ValueError, r"rounded: expected shape \(3,\) to fit X, got \(2,\)"),
        (([x] * 2, "fast", None, rounded.float()), TypeError, "rounded: expected float64"),
        (([x], "fast", None, rounded[::2][:1].expand(2)), ValueError, "rounded: expected"),
    ]:
        with pytest.raises(error, match=message):
            gram_dual_many(*arguments)


# ---- what has gone wrong for others ----


def in_long_double(X):
    """(X^T X, |X|^T |X|, sums): products and sums with 64 bits of mantissa, 2,048 times finer than float64."""
    Y = X.double().numpy().astype(np.longdouble)
    return Y.T @ Y, np.abs(Y).T @ np.abs(Y), Y.sum(0)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than double here")
@pytest.mark.parametrize("family", FAMILIES)
def test_families_stay_within_the_bound_of_a_finer_truth(family):
    for n, d, dtype in [
        (300, 20, torch.float32),
        (33, 33, torch.float64),
        (40, 90, torch.float32),
        (150, 17, torch.bfloat16),
    ]:
        X = FAMILIES[family](n, d, 3).to(dtype)
        truth, scale, sums = in_long_double(X)
        for mode in ("exact", "fast"):
            roundings = depth(n, d, dtype, mode)
            c, tiny = roundings.factor(), roundings.tiny * n
            for impl in IMPLS:
                G, total = accumulated(gram_accumulate_, X, None, mode, impl)
                bound = (depth(n, d, dtype, mode, impl=impl).factor() if impl == "reference" else c) * scale + tiny
                assert (np.abs(G.numpy() - np.tril(truth)) <= np.tril(bound)).all(), (mode, impl)
                assert (np.abs(total.numpy() - sums) <= c * np.abs(X.double().numpy()).sum(0) + tiny).all()
            K = gram_dual(X.T, mode).numpy()
            assert (np.abs(K - truth) <= depth(n, d, dtype, mode).factor() * scale + tiny).all()


@native
def test_offsets_beyond_two_to_the_31_elements():
    """By striding over untouched memory: the system gives pages only where something is written."""
    far = 2**31 + 5
    try:
        memory = torch.empty(far + 4096, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("the system does not promise 4 GiB")
    small = torch.arange(2 * 12 * 5 * 5, dtype=torch.float32).remainder(7).sub(3).to(torch.bfloat16)
    rows = memory.as_strided((2, 300), (far, 1)).copy_(small[:600].view(2, 300))
    assert torch.equal(accumulated(gram_accumulate_, rows, None)[0], (rows.double().T @ rows.double()).tril())
    assert torch.equal(gram_dual(rows.T), rows.double().T @ rows.double())
    channels = memory.as_strided((3, 2, 25), (25, far, 1)).copy_(small[:150].view(3, 2, 25))
    Y = channels.double().transpose(1, 2).reshape(-1, 2)
    assert torch.equal(accumulated(gram_accumulate_, channels, None)[0], (Y.T @ Y).tril())
    for kernel in (3, (2, 3)):
        convolution = Convolution.of(kernel, padding=1) if kernel == 3 else Convolution.of(kernel, 2)
        images = memory.as_strided((2, 12, 5, 5), (far, 25, 5, 1)).copy_(small.view(2, 12, 5, 5))
        d = convolution.features(12)
        got, wanted = ([torch.zeros(d, d).double(), torch.zeros(d).double()] for _ in range(2))
        gram_patches_(*got, images, convolution)
        gram_patches_(*wanted, images.clone(memory_format=torch.contiguous_format), convolution, impl="reference")
        assert all(map(torch.equal, got, wanted))


@native
def test_memory_does_not_grow_with_the_rows():
    """128 MB of rows and 64 MB of channels, in less than 16 MiB; a copy in float64 would be 256."""
    code = """
import resource, torch
from fastrank.kernels.gram import gram_accumulate_, gram_dual_many
torch.set_num_threads(2)
rows, channels = torch.ones(2_000_000, 16), torch.ones(4, 16, 250_000)
G, total = torch.zeros(16, 16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
gram_accumulate_(G, total, rows[:5000])
gram_dual_many([rows[:5000].T])
turned = rows.T.contiguous().T
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for X in (rows, turned, channels):
    gram_accumulate_(G, total, X, total.clone())
gram_dual_many([rows.T, turned.T, rows[:9].T])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 16 << 10  # KiB


@native
def test_autograd_sees_what_is_written():
    G, total, weight = torch.zeros(3, 3).double(), torch.zeros(3).double(), torch.randn(3, 3).double().requires_grad_()
    rounded = torch.zeros(1).double()
    for written, write in (
        (G, lambda: gram_accumulate_(G, total, torch.randn(5, 3))),
        (G, lambda: gram_patches_(G, total, torch.randn(1, 3, 4, 4), Convolution.of(1))),
        (rounded, lambda: gram_accumulate_(G, total, torch.randn(5, 3), mode="fast", rounded=rounded)),
        (rounded, lambda: gram_dual_many([torch.randn(5, 3)], "fast", rounded=rounded)),
    ):
        loss = (written * weight).sum()
        write()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    with torch.inference_mode():
        inner = torch.zeros(3, 3).double()
        gram_accumulate_(inner, torch.zeros(3).double(), torch.ones(5, 3))
    assert (inner.tril() == torch.full((3, 3), 5.0).double().tril()).all()
    with pytest.raises(ValueError, match="G: expected a tensor that is not differentiated"):
        gram_accumulate_(G.requires_grad_(), total, torch.randn(5, 3))


# ---- numbers rounded to 24 bits ----

rounds = pytest.mark.skipif(not digits(), reason="this processor has no integer tiles")


def in_24_bits(X, shift=None):
    """X - shift as mode "fast" may round it, and the square of what that changed."""
    exact = X.double() if shift is None else X.double() - shift
    rounded = []
    for rows in exact.float().double().split(DIGITS_BLOCK):
        _, exponent = torch.frexp(rows.abs().amax(0))
        unit = torch.exp2((exponent - 23).clamp_min(-127).double())
        rounded.append((rows / unit).round().clamp_max(2**23 - 1) * unit)
    rounded = torch.cat(rounded)
    return rounded, (rounded - exact).square().sum()


def rounded_gram(X, shift=None):
    d = X.shape[1]
    G, total, rounded = (torch.zeros(shape, dtype=torch.float64) for shape in ((d, d), d, 1))
    gram_accumulate_(G, total, X, shift, "fast", rounded=rounded)
    return G, total, rounded


@rounds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n, d", [(1, 1), (63, 15), (64, 16), (65, 17), (512, 33), (1025, 96), (5000, 20), (700, 257)])
def test_rounded_numbers_have_exact_products(n, d, dtype):
    generator = torch.Generator().manual_seed(n + d)
    scales = torch.logspace(-4, 4, d) if dtype != torch.float16 else torch.logspace(-1, 1, d)
    X = (torch.randn(n, d, generator=generator) * scales).to(dtype)
    for laid_out in (X, X.T.contiguous().T, torch.cat([X, X], 1)[:, :d]):
        G, total, rounded = rounded_gram(laid_out)
        Y, square = in_24_bits(X)
        norms = Y.norm(dim=0)
        assert ((G - (Y.T @ Y).tril()).abs() <= n * 2.0**-52 * norms[:, None] * norms).all()
        assert ((total - Y.sum(0)).abs() <= n * 2.0**-52 * Y.abs().sum(0)).all()
        assert square * (1 - 1e-12) <= rounded <= square * 1.001
    turned, taken = X.T.contiguous(), torch.zeros(1, dtype=torch.float64)
    (K,) = gram_dual_many([turned], "fast", rounded=taken)
    assert torch.equal(K.tril(), G) and torch.equal(K, K.T) and torch.equal(taken, rounded)


@rounds
def test_rounded_differences_from_a_shift():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(1500, 50, generator=generator) + 100
    # Two shifts: of float64 numbers, and of numbers that float32 has too, whose differences are taken in float32.
    fine = torch.rand(50, generator=generator).double() + 99.5
    for shift in (fine, fine.float().double(), fine.round()):
        G, total, rounded = rounded_gram(X, shift)
        Y, square = in_24_bits(X, shift)
        assert (G - (Y.T @ Y).tril()).norm() <= 1e-13 * G.trace()
        assert ((total - Y.sum(0)).abs() <= 1e-13 * Y.abs().sum(0)).all()
        # The subtraction's own rounding counts as half an ulp of each number, whether there is any or not.
        assert square <= rounded <= 1.001 * (square.sqrt() + 2.0**-24 * Y.norm()) ** 2


@rounds
def test_rounding_takes_all_of_the_range():
    """The largest numbers below a power of two, subnormals and the largest float32, zeros, a column without digits."""
    below = torch.nextafter(torch.ones(()), torch.zeros(()))
    columns = [
        below * torch.ones(600), -torch.ones(600), torch.full((600,), 1e-44), torch.zeros(600),
        torch.full((600,), torch.finfo(torch.float32).max), 3e38 * torch.linspace(-1, 1, 600),
        torch.full((600,), 2e-35),
    ]  # fmt: skip
    X = torch.stack(columns, 1)
    G, total, rounded = rounded_gram(X)
    Y, square = in_24_bits(X)
    assert torch.equal(G, (Y.T @ Y).tril()) or (G - (Y.T @ Y).tril()).abs().max() <= 1e-13 * G.diagonal().max()
    assert ((G.diagonal() - Y.square().sum(0)).abs() <= 1e-13 * Y.square().sum(0)).all()
    assert square * (1 - 1e-12) <= rounded and G[3].eq(0).all() and total[3] == 0


@rounds
def test_rounding_stays_where_it_is():
    X = torch.randn(1100, 40, generator=torch.Generator().manual_seed(0))
    clean, _, before = rounded_gram(X)
    X[3, 5], X[1090, 7] = torch.nan, torch.inf
    G, total, rounded = rounded_gram(X)
    bad = torch.zeros(40, dtype=torch.bool)
    bad[[5, 7]] = True
    assert total.isnan().equal(bad) and rounded.isfinite() and rounded < before
    touched = (bad[:, None] | bad).tril()
    assert G.isnan().equal(touched) and torch.equal(G[~touched], clean[~touched])


@rounds
def test_rounding_is_the_same_for_any_threads_and_company():
    X = [torch.randn(n, d, generator=torch.Generator().manual_seed(n)) for n, d in ((3000, 64), (600, 300), (20, 5))]
    alone = [rounded_gram(x) for x in X]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rounded = torch.zeros(3, dtype=torch.float64)
        found = gram_dual_many([x.T for x in X], "fast", rounded=rounded)
        for x, one, K, taken in zip(X, alone, found, rounded, strict=True):
            assert torch.equal(K.tril(), one[0]) and torch.equal(K, K.T) and taken == one[2]
            assert all(map(torch.equal, rounded_gram(x), one))


def test_nothing_is_rounded_unless_asked():
    X = torch.randn(900, 30, generator=torch.Generator().manual_seed(0))
    G, total, rounded = (torch.zeros(shape, dtype=torch.float64) for shape in ((30, 30), 30, 1))
    gram_accumulate_(G, total, X, mode="exact", rounded=rounded)
    exact = X.double().T @ X.double()
    assert rounded == 0 and (G - exact.tril()).abs().max() <= 1e-12 * exact.diagonal().max()
    gram_accumulate_(G, total, X.double(), mode="fast", rounded=rounded)
    assert rounded == 0
    with pytest.raises(ValueError, match=r"rounded: expected shape \(1,\) to fit X, got \(2,\)"):
        gram_accumulate_(G, total, X, mode="fast", rounded=torch.zeros(2, dtype=torch.float64))
