"""Test matrices, sketches and warm steps: bits, statistics, and every figure against float64 within a derived bound."""

import itertools
import math

import pytest
import torch
from fastrank.kernels import backend
from fastrank.kernels.rsvd import (
    KINDS,
    MAX_COLUMNS,
    ZETA,
    config,
    cosines_many,
    distances_many,
    orthonormal_many,
    products_many,
    reference,
    sketch,
    subspace_step_many,
    test_matrix,
)
from fastrank.kernels.rsvd.steps import orthonormaliser
from torch.library import opcheck

test_matrix.__test__ = False  # it only is called so

native = pytest.mark.skipif(not backend.native_status().available, reason=backend.native_status().reason or "-")
IMPLS = [
    "reference",
    pytest.param("native", marks=native),
]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

#: Published with Random123 (Salmon et al. 2011): counter, key, result of philox4x32-10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.fixture(autouse=True)
def one_thread():
    """The matrices are small. Threads have a test of their own below."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- test matrices ---


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_philox(counter, key, expected):
    found = reference.philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in found) == expected
    if backend.core() is not None:
        assert backend.core().philox4x32(list(counter), *key) == expected


@native
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_test_matrices(kind):
    for rows, columns in [(1, 1), (5, 3), (7, 8), (40, 17), (300, 27), (9, 131), (0, 4), (4, 0)]:
        for seed, stream in [(0, 0), (-5, 3), (2**64 - 1, 2**32 - 1)]:
            for dtype in DTYPES:
                found, expected = (
                    test_matrix(rows, columns, seed, stream, kind, dtype, impl=impl) for impl in ("native", "reference")
                )
                assert found.shape == (rows, columns) and found.dtype == dtype
                assert torch.equal(bits(found), bits(expected))


@native
def test_bits_of_many_normal_numbers_and_of_rows_beyond_32_bits():
    first, rows, columns = 2**32 - 5000, 10_000, 64
    found = torch.empty(rows, columns)
    backend.core().test_matrix_cpu(first, rows, columns, 11, 2, 0, found.data_ptr(), False, 1)
    assert torch.equal(bits(found), bits(reference.test_matrix(rows, columns, 11, 2, first=first)))


def test_a_number_depends_on_its_place_alone():
    whole = test_matrix(50, 40, 3)
    assert torch.equal(test_matrix(20, 8, 3), whole[:20, :8])
    assert not torch.equal(test_matrix(50, 40, 3, 1), whole)
    assert not torch.equal(test_matrix(50, 40, 4), whole)


def test_normal_numbers_are_normal():
    x = test_matrix(40_000, 16, 1).double()
    count = x.numel()
    # Standard errors of the moments of a normal sample; 4 of them.
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((x**power).mean() - moment) < 4 * math.sqrt(variance / count)
    # Kolmogorov-Smirnov: 1.63 is the 1 % point. Angles come in 2^24 steps, so ties are too few to matter.
    ordered = x.flatten().sort()[0]
    cdf = 0.5 * torch.erfc(-ordered / math.sqrt(2))
    step = torch.arange(count + 1, dtype=torch.float64) / count
    assert max((cdf - step[:-1]).max(), (step[1:] - cdf).max()) < 1.63 / math.sqrt(count)
    # Columns, neighbouring rows and streams are uncorrelated: 120 pairs, 5 standard errors.
    correlation = x.T @ x / len(x) - torch.diag((x**2).mean(0))
    assert correlation.abs().max() < 5 / math.sqrt(len(x))
    assert abs((x[1:] * x[:-1]).mean()) < 4 / math.sqrt(count)
    assert abs((x * test_matrix(40_000, 16, 1, 1).double()).mean()) < 4 / math.sqrt(count)
    # The largest radius there is: u = 2^-24.
    assert x.abs().max() <= math.sqrt(2 * 24 * math.log(2)) * (1 + 1e-6)


def test_normal_numbers_are_those_of_box_and_muller():
    generator = torch.Generator().manual_seed(0)
    length, angle = (torch.randint(0, 2**32, (1 << 18,), generator=generator) for _ in range(2))
    length[:4] = torch.tensor([0, 255, 2**32 - 256, 2**32 - 257])
    u, turn = ((length >> 8) + 1).double() * 2.0**-24, 2 * math.pi * (angle >> 8).double() * 2.0**-24
    radius = torch.sqrt(-2 * u.log())
    found = reference.normal_pair(length, angle)
    # Six roundings and the polynomials' own error (config.py) of the radius: 2^-21 of it is twice that.
    for mine, true in zip(found, (radius * turn.cos(), radius * turn.sin()), strict=True):
        assert torch.all((mine - true).abs() <= 2.0**-21 * radius)


def test_signs():
    x = test_matrix(20_000, 30, 5, kind="rademacher")
    assert torch.equal(x.abs(), torch.ones_like(x))
    assert abs(x.mean()) < 4 / math.sqrt(x.numel())
    for columns in (1, 5, 8, 27, 100):
        x = test_matrix(4000, columns, 5, kind="sparse_sign")
        blocks = min(ZETA, columns)
        edges = [b * columns // blocks for b in range(blocks + 1)]
        for start, end in itertools.pairwise(edges):
            part = x[:, start:end]
            assert torch.equal((part != 0).sum(1), torch.ones(4000, dtype=torch.long))
            assert torch.allclose(part.abs().sum(1), torch.full((4000,), blocks**-0.5))
            # Each place as often as the others: five standard errors of a binomial.
            share = 1 / (end - start)
            assert ((part != 0).float().mean(0) - share).abs().max() <= 5 * math.sqrt(share * (1 - share) / 4000)
        assert abs(x.sign().sum() / (4000 * blocks)) < 4 / math.sqrt(4000 * blocks)


# --- sketches ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("impl", IMPLS)
def test_sketches_are_products(impl, kind):
    for n, d, q in [(1, 1, 1), (5, 9, 4), (100, 3000, 27), (33, 77, 40), (70, 1025, 128), (0, 5, 2), (5, 0, 2)]:
        omega = reference.test_matrix(d, q, 7, 1, kind, torch.float64)
        for dtype in DTYPES:
            A = random(n, d, dtype)
            for strided in (A, A.T.contiguous().T, torch.cat([A, A], 1)[:, :d]):
                found = sketch(strided, q, 7, 1, kind, impl)
                assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                terms = A.double().abs() @ omega.abs()
                assert torch.all((found - A.double() @ omega).abs() <= gamma(d, found.dtype) * terms)


# --- steps ---


def shapes():
    yield from [(1, 1, 1), (3, 2, 2), (5, 9, 4), (31, 33, 16), (32, 32, 27), (33, 257, 17), (64, 300, 27)]
    yield from [(257, 40, 33), (8, 520, 3), (70, 129, 128), (2, 50, 20)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_steps_conform(impl, dtype):
    sizes = list(shapes())
    A = [decaying(n, d, dtype) for n, d, _ in sizes]
    if impl == "native" and dtype in (torch.float32, torch.bfloat16):  # more than one range of rows
        sizes.append((2200, 600, 27))
        A.append(random(2200, 600, dtype))
    V = orthonormal_many([test_matrix(d, q, 1, dtype=computed(dtype)) for _, d, q in sizes])
    for _ in range(2):  # from random blocks, then from Ritz vectors
        found = subspace_step_many(A, V, 15, impl)
        for a, v, step in zip(A, V, found, strict=True):
            assert_right(a, v, step)
        V = [step.V for step in found]


@native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_steps_conform_at_all_tails(dtype):
    """Columns around whole vectors and tiles, odd rows and depths; what lies behind the rows of A has no part in it."""
    counts = (1, 2, 3, 5, 15, 16, 17, 27, 28, 33, 63, 64)
    sides = (1, 40), (7, 65), (9, 130), (33, 129), (41, 515)
    sizes = [(n, d, q) for n, d in sides for q in counts if q <= d]
    A = [torch.full((n, d + 3), torch.nan, dtype=dtype)[:, :d].copy_(random(n, d, dtype)) for n, d, _ in sizes]
    X = [test_matrix(d, q, 1, dtype=computed(dtype)) for _, d, q in sizes]
    V = orthonormal_many(X)
    slack = (100 if dtype == torch.float64 else 8) * torch.finfo(X[0].dtype).eps
    for x, v in zip(X, V, strict=True):
        x, v = x.double(), v.double()
        assert (v.T @ v - torch.eye(v.shape[1])).abs().max() <= slack
        # X is V R but for roundings of V in a few passes, of u / 2 each, and V^T V the identity but for the slack.
        assert (x - v @ (v.T @ x)).norm() <= 2 * v.shape[1] * slack * x.norm()
    for k in (0, 1, max(counts)):
        for a, v, step in zip(A, V, subspace_step_many(A, V, k), strict=True):
            assert len(step.residual) == min(k, v.shape[1])
            assert_right(a, v, step)


def assert_right(A, V, step):
    """Every figure of a step against its definition in float64.

    Y = fl(A V) errs by at most g |A| |V| and Z = fl(A^T Y) by g |A|^T |Y|, g = gamma() of a sum. With T from Y's exact
    Gram matrix, Q = Y T is orthonormal, and B^T = Z T errs by at most e = g ||A||_F || |Y| |T| ||_F. So do S and
    A^T u - s v; that of Q itself, which makes Ritz values of another block, is bounded the same way by |A| |V| |T|.
    """
    n, d = A.shape
    q, dtype = V.shape[1], V.dtype
    k, u = len(step.residual), torch.finfo(dtype).eps
    assert step.U.shape == (n, k) and step.S.shape == (q,) and step.V.shape == (d, q) and step.entering.shape == (q,)
    assert all(x.dtype == dtype for x in step)
    A, V, U, S, W, residual = (x.double() for x in (A, V, step.U, step.S, step.V, step.residual))
    # Rounded to nearest, u / 2 each; what the step itself lets pass is 2 u, or 64 u of float64.
    slack = (8 if dtype == torch.float32 else 100) * u
    assert (W.T @ W - torch.eye(q)).abs().max() <= slack
    positive = (S[:k] > 0).double()
    slack += 1e-7 * (dtype == torch.float32) + 1e-11
    assert torch.all((U.T @ U - torch.diag(positive)).abs() <= slack)
    assert torch.all(S[:-1] >= S[1:]) and torch.all(S >= 0)
    g, size = gamma(max(n, d), dtype), A.norm()
    Y = A @ V
    T = orthonormaliser(Y.T @ Y)
    e = g * size * ((Y.abs() @ T.abs()).norm() + (A.abs() @ V.abs() @ T.abs()).norm()) + 4 * u * size
    expected = torch.linalg.svdvals(A.T @ (Y @ T))
    assert torch.all((S - expected[:q]).abs() <= e + noise(A, dtype))
    left = A.T @ U - W[:, :k] * S[:k]
    assert torch.all(left.norm(dim=0) * positive <= e + noise(A, dtype))
    assert torch.all((residual - (A @ W[:, :k] - U * S[:k]).norm(dim=0)).abs() <= (g + 4 * u) * size * math.sqrt(q))
    true = torch.linalg.svdvals(A)
    true = torch.cat([true, true.new_zeros(max(d - n, 0))])  # A v = 0 has solutions where d > n
    for s, r in zip(S[:k], residual, strict=True):
        assert (true - s).abs().min() <= r + e + noise(A, dtype)
    assert abs(step.norm - size) <= (4 * u + A.numel() * 2.0**-53) * size


def noise(A, dtype):
    """Columns of A V below this are rounding and count as 0 (config.NOISE)."""
    return math.sqrt(A.shape[1]) * config.NOISE[dtype] * A.norm()


def gamma(terms, dtype):
    """A sum of products in blocks (csrc/rsvd/rsvd.h): at most 256 in a row, then the blocks."""
    u = torch.finfo(dtype).eps / 2
    roundings = min(terms, 256) + terms / 32 + 2
    return roundings * u / (1 - roundings * u)


@pytest.mark.parametrize("impl", IMPLS)
def test_entering_residuals(impl):
    A = decaying(60, 90, torch.float32)
    (V,) = orthonormal_many([test_matrix(90, 10, 2)])
    for _ in range(2):
        (step,) = subspace_step_many([A], [V], 5, impl)
        Y = A.double() @ V.double()
        theta2, X = torch.linalg.eigh(Y.T @ Y)
        theta, X = theta2.flip(0).sqrt(), X.flip(1)
        expected = (A.double().T @ Y @ X - V.double() @ X * theta**2).norm(dim=0) / theta
        error = 2 * gamma(90, torch.float32) * A.double().norm() * Y.norm() / theta
        assert torch.all((step.entering - expected).abs() <= error)
        (without,) = subspace_step_many([A], [V], 5, impl, entering=False)
        assert without.entering.shape == (0,) and torch.equal(without.V, step.V) and torch.equal(without.U, step.U)
        V = step.V


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_block_is_orthonormal_whatever_the_matrix(impl, dtype):
    low = random(40, 3, dtype) @ random(3, 60, dtype)
    huge = 1e30 if dtype == torch.float32 else 1e200
    members = {
        "zero": torch.zeros(20, 30, dtype=dtype),
        "rank 3": low,
        "one entry": torch.eye(20, 30, dtype=dtype) * (torch.arange(20) == 7)[:, None],
        "identity": torch.eye(30, dtype=dtype),
        "huge": random(20, 30, dtype) * huge,
        "tiny": random(20, 30, dtype) / huge,
        "subnormal": random(20, 30, dtype) * torch.finfo(dtype).tiny,
        "steep": decaying(40, 40, dtype, power=12.0),
        "no rows": torch.zeros(0, 30, dtype=dtype),
    }
    V = orthonormal_many([test_matrix(a.shape[1], 20, 3, dtype=dtype) for a in members.values()])
    for _ in range(3):
        found = subspace_step_many(list(members.values()), V, 15, impl)
        for (name, A), step in zip(members.items(), found, strict=True):
            W = step.V.double()
            slack = (8 if dtype == torch.float32 else 100) * torch.finfo(dtype).eps
            assert (W.T @ W - torch.eye(20)).abs().max() <= slack, name
            assert all(torch.isfinite(x).all() for x in step), name
            if A.numel():
                true = torch.linalg.svdvals(A.double())
                found_top, top = step.S[:15].double(), true[:15]
                allowed = step.residual.double() + 64 * torch.finfo(dtype).eps * true[0]
                if name != "subnormal":  # they have few digits of their own
                    assert torch.all((found_top[:, None] - true).abs().amin(1) <= allowed), name
                # Of float64 the products that make a block orthonormal have half of the digits: below 1e-8 of the
                # largest a value may stand between two true ones.
                if name != "subnormal" and dtype == torch.float32:
                    assert torch.all(found_top <= top + allowed), name
        V = [step.V for step in found]
    by_name = dict(zip(members, found, strict=True))
    assert (by_name["zero"].S == 0).all() and (by_name["zero"].U == 0).all()
    assert (by_name["rank 3"].S[3:] <= 1e-6 * by_name["rank 3"].S[0]).all()
    assert torch.allclose(by_name["identity"].S, torch.ones(20, dtype=dtype))


@pytest.mark.parametrize("impl", IMPLS)
def test_scaling_by_powers_of_two_changes_nothing(impl):
    A = decaying(50, 70, torch.float32)
    (V,) = orthonormal_many([test_matrix(70, 20, 3)])
    plain, *scaled = subspace_step_many([A, A * 2.0**90, A * 2.0**-90], [V] * 3, 15, impl)
    for step, factor in zip(scaled, (2.0**90, 2.0**-90), strict=True):
        assert torch.equal(step.V, plain.V) and torch.equal(step.U, plain.U)
        for name in ("S", "residual", "entering", "norm"):
            assert torch.equal(getattr(step, name), getattr(plain, name) * factor), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_not_finite_stays_with_its_matrix(impl, bad):
    A = [decaying(30, 40, torch.float32) for _ in range(3)]
    V = orthonormal_many([test_matrix(40, 20, 3)] * 3)
    alone = subspace_step_many(A[:1], V[:1], 5, impl)[0]
    for place in [(0, 0), (29, 39), (13, 7)]:
        A[1] = A[0].clone()
        A[1][place] = bad
        before, broken, after = subspace_step_many(A, V, 5, impl)
        for step in (before, after):
            assert all(torch.equal(x, y) for x, y in zip(step, alone, strict=True))
        assert torch.equal(broken.V, V[1])
        assert all(x.isnan().all() for x in (broken.U, broken.S, broken.residual, broken.entering, broken.norm))
        none = subspace_step_many(A, V, 0, impl)[1]
        assert none.S.isnan().all() and none.norm.isnan()


@native
def test_neither_threads_nor_company_change_a_bit():
    sizes = [(2200, 600, 27), (64, 300, 27), (5, 9, 4), (300, 40, 33), (100, 1000, 20), (33, 33, 33)]
    A = [decaying(n, d, torch.bfloat16 if n == 300 else torch.float32) for n, d, _ in sizes]
    A.append(decaying(50, 60, torch.float64))
    A.append(A[1] * 1e-25)
    drawn = [test_matrix(a.shape[1], min(20, *a.shape), 3, dtype=computed(a.dtype)) for a in A]
    V = orthonormal_many(drawn)
    alone = [subspace_step_many([a], [v], 7)[0] for a, v in zip(A, V, strict=True)]
    sketches = [sketch(a, 27, 1) for a in A]
    draws = test_matrix(1000, 27, 1)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        together = subspace_step_many(A, V, 7)
        backwards = subspace_step_many(A[::-1], V[::-1], 7)[::-1]
        for one, other, third in zip(alone, together, backwards, strict=True):
            assert all(torch.equal(bits(x), bits(y)) for x, y in zip(one, other, strict=True))
            assert all(torch.equal(bits(x), bits(y)) for x, y in zip(one, third, strict=True))
        assert all(torch.equal(x, y) for x, y in zip(orthonormal_many(drawn[::-1])[::-1], V, strict=True))
        assert all(torch.equal(sketch(a, 27, 1), y) for a, y in zip(A, sketches, strict=True))
        assert torch.equal(test_matrix(1000, 27, 1), draws)


@pytest.mark.parametrize("impl", IMPLS)
def test_layouts_and_the_number_of_pairs(impl):
    A = decaying(60, 90, torch.float32)
    (V,) = orthonormal_many([test_matrix(90, 20, 2)])
    (plain,) = subspace_step_many([A], [V], 15, impl)
    views = [A.T.contiguous().T, torch.cat([A, A], 1)[:, :90], A.repeat_interleave(2, 1)[:, ::2], A.repeat(2, 1)[:60]]
    for view in views:
        (step,) = subspace_step_many([view], [V.T.contiguous().T], 15, impl)
        for x, y in zip(step, plain, strict=True):
            assert torch.equal(x, y) if impl == "native" else torch.allclose(x, y, atol=1e-4)
    for k in (0, 1, 20, 50):
        (step,) = subspace_step_many([A], [V], k, impl)
        assert step.U.shape == (60, min(k, 20)) and step.residual.shape == (min(k, 20),)
        assert torch.equal(step.S, plain.S) and torch.equal(step.V, plain.V)
    assert subspace_step_many([], [], 3, impl) == [] and orthonormal_many([], impl) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bases_with_fresh_columns(dtype):
    """The bits of a test matrix put behind the block by hand; of a block in whatever memory it lies."""
    wide = [torch.linalg.qr(torch.randn(d, 27, dtype=dtype))[0] for d in (40, 300, 3000)]
    X, seeds, streams = [x[:, :23] for x in wide], [3, -5, 2**63], [1, 7, 2**32 - 1]
    found = orthonormal_many(X, fresh=4, seeds=seeds, streams=streams)
    by_hand = [
        torch.cat([x, test_matrix(len(x), 4, seed, stream, dtype=dtype)], 1)
        for x, seed, stream in zip(X, seeds, streams, strict=True)
    ]
    for one, other in zip(found, orthonormal_many(by_hand), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(orthonormal_many(X, "reference", fresh=4, seeds=seeds, streams=streams), found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert orthonormal_many([], fresh=4) == []
    with pytest.raises(ValueError, match="streams: expected 3, one of each X, got 1"):
        orthonormal_many(X, fresh=4, seeds=seeds, streams=[1])
    with pytest.raises(ValueError, match="X: expected at most 17 columns, got 23 at 0"):
        orthonormal_many(X, fresh=23, seeds=seeds, streams=streams)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_orthonormal_bases(impl, dtype):
    X = test_matrix(50, 10, 1, dtype=dtype)
    nearly = X.clone()
    nearly[:, 5] = X[:, 2] + 1e-4 * X[:, 5]
    dependent = X.clone()
    dependent[:, 3] = X[:, 0] - X[:, 2]
    broken = X.clone()
    broken[4, 1] = math.nan
    graded = X * 10.0 ** -torch.arange(10, dtype=dtype)
    square = test_matrix(10, 10, 4, dtype=dtype)
    blocks = [X, nearly, dependent, broken, graded, square, torch.zeros_like(X), X[:, :0], X[:1, :1]]
    for before, after in zip(blocks, orthonormal_many(blocks, impl), strict=True):
        assert after.shape == before.shape and after.dtype == dtype
        Q = after.double()
        slack = (8 if dtype == torch.float32 else 100) * torch.finfo(dtype).eps
        assert Q.numel() == 0 or (Q.T @ Q - torch.eye(Q.shape[1])).abs().max() <= slack
    for before in (X, graded, square):  # the first j columns span those of X
        (after,) = orthonormal_many([before], impl)
        R = after.double().T @ (before.double() / before.double().norm(dim=0))
        assert R.tril(-1).abs().max() <= 1e-3 * (1e-8 if dtype == torch.float64 else 1)
        assert torch.all(R.diagonal() > 0)
    (kept,) = orthonormal_many([dependent], impl)  # the others keep their directions
    for j in (0, 1, 2):
        assert torch.allclose(kept[:, j], orthonormal_many([X], impl)[0][:, j], atol=1e-5)


# --- what holds for all of them ---


@native
def test_constants_are_those_of_the_core():
    core = backend.core()
    assert core.rsvd_max_columns == MAX_COLUMNS and core.rsvd_fill_seed == config.FILL_SEED
    for dtype in (torch.float32, torch.float64):
        expected = config.DEPENDENT, config.NOISE[dtype], config.NEGLIGIBLE[dtype]
        assert core.rsvd_precision(dtype == torch.float64) == expected


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    V = orthonormal_many([test_matrix(30, 5, 1), torch.zeros(30, 5)])
    subspace_step_many([torch.zeros(4, 30), torch.ones(4, 30)], V, 3)
    sketch(torch.ones(4, 30), 5, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_operators_are_registered_as_they_behave():
    A, V = torch.randn(6, 9), torch.eye(9)[:, :4].contiguous()
    tests = ("test_schema", "test_faketensor")
    opcheck(torch.ops.fastrank.subspace_step_many, ([A, A], [V, V], 3), test_utils=tests)
    opcheck(torch.ops.fastrank.orthonormal_many, ([V],), test_utils=tests)
    opcheck(torch.ops.fastrank.cosines_many, ([A], [A[:2]]), test_utils=tests)
    opcheck(torch.ops.fastrank.distances_many, ([A], [A + 1]), test_utils=tests)
    opcheck(torch.ops.fastrank.products_many, ([A], [A.T.double()[:, :2]]), test_utils=tests)
    opcheck(torch.ops.fastrank.sketch, (A, 3, 0, 0, "gaussian"), test_utils=tests)
    arguments = (5, 3, 0, 0, "gaussian", torch.float32, torch.device("cpu"))
    opcheck(torch.ops.fastrank.test_matrix, arguments, test_utils=tests)


@pytest.mark.parametrize("impl", [None, "reference"])
def test_distances(impl):
    """Against float64, over the edges of vectors and of ranges, of any strides and types."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 1), (3, 127), (3, 128), (3, 129), (70, 300), (1500, 400), (5, 0), (0, 5)]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        X = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        Y = [x + (1e-2 * torch.randn(x.shape, generator=generator)).to(dtype) for x in X]
        X[4], Y[4] = X[4].T, torch.cat([Y[4], Y[4]], 1)[:, :300].T
        for x, y, (apart, norm) in zip(X, Y, distances_many(X, Y, impl), strict=True):
            u = max(torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2, 1e-14)  # the truth is float64 too
            # torch's norm adds up one by one, its sum in a tree.
            exact = [z.square().sum().sqrt() for z in (x.double() - y.double(), x.double())]
            assert abs(apart - exact[0]) <= 4 * u * exact[0] and abs(norm - exact[1]) <= 4 * u * exact[1]
        if impl is None:
            together = distances_many(X, Y)
            torch.set_num_threads(2)
            alone = torch.cat([distances_many([x], [y]) for x, y in zip(X, Y, strict=True)])
            torch.set_num_threads(1)
            assert torch.equal(alone, together)
    assert distances_many([], []).shape == (0, 2)
    nan = torch.full((2, 2), torch.nan)
    assert distances_many([nan], [nan]).isnan().all()


@pytest.mark.parametrize("impl", [None, "reference"])
def test_products_in_float64(impl):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 1, 1), (33, 70, 13), (2000, 300, 13), (300, 2000, 8), (64, 5, 27), (0, 5, 3), (5, 0, 3)]
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        A = [torch.randn(n, d, generator=generator).to(dtype) for n, d, _ in shapes]
        A[1], A[2] = A[1].T.contiguous().T, torch.cat([A[2], A[2]], 1)[:, :300]
        for transposed in (False, True):
            X = [
                torch.randn((n if transposed else d), q, generator=generator, dtype=torch.float64) for n, d, q in shapes
            ]
            found = products_many(A, X, transposed, impl)
            for a, x, y in zip(A, X, found, strict=True):
                a = a.double().T if transposed else a.double()
                assert y.shape == (len(a), x.shape[1])
                assert ((y - a @ x).abs() <= 2 * len(x) * 2.0**-53 * (a.abs() @ x.abs())).all()
            if impl is None:
                torch.set_num_threads(2)
                alone = [products_many([a], [x], transposed)[0] for a, x in zip(A, X, strict=True)]
                torch.set_num_threads(1)
                assert all(torch.equal(y, one) for y, one in zip(found, alone, strict=True))
    assert products_many([], []) == []


def test_cosines():
    """|W A^T| of each pair, at most 1; no rows, zeros, strides, float64."""
    W = [random(3, 40, torch.float32), random(2, 7, torch.float64), torch.zeros(2, 5), random(0, 5, torch.float32)]
    A = [random(40, 4, torch.float32).T, random(3, 7, torch.float64), torch.ones(3, 5), torch.ones(3, 5)]
    for w, a, found in zip(W, A, cosines_many(W, A), strict=True):
        assert found.dtype == w.dtype
        torch.testing.assert_close(found, (w.double() @ a.double().T).abs().clamp_max(1.0).to(w.dtype))
    assert cosines_many([], []) == []


@pytest.mark.parametrize(
    ("error", "argument", "call"),
    [
        (ValueError, "rows", lambda: test_matrix(-1, 3, 0)),
        (ValueError, "columns", lambda: test_matrix(3, 1.5, 0)),
        (ValueError, "seed", lambda: test_matrix(3, 3, 2**64)),
        (ValueError, "stream", lambda: test_matrix(3, 3, 0, 2**32)),
        (ValueError, "kind", lambda: test_matrix(3, 3, 0, kind="uniform")),
        (TypeError, "dtype", lambda: test_matrix(3, 3, 0, dtype=torch.int32)),
        (ValueError, "q", lambda: sketch(torch.ones(3, 3), 129, 0)),
        (TypeError, "A", lambda: sketch(torch.ones(3, 3, dtype=torch.int32), 2, 0)),
        (TypeError, "A", lambda: subspace_step_many(torch.ones(3, 3), [torch.eye(3)], 2)),
        (ValueError, "A", lambda: subspace_step_many([torch.ones(3)], [torch.eye(3)], 2)),
        (ValueError, "V", lambda: subspace_step_many([torch.ones(3, 3)], [], 2)),
        (ValueError, "V", lambda: subspace_step_many([torch.ones(3, 3)], [torch.eye(4)], 2)),
        (ValueError, "V", lambda: subspace_step_many([torch.ones(3, 3)], [torch.ones(3, 4)], 2)),
        (TypeError, "V", lambda: subspace_step_many([torch.ones(3, 3)], [torch.eye(3).double()], 2)),
        (ValueError, "k", lambda: subspace_step_many([torch.ones(3, 3)], [torch.eye(3)], -1)),
        (TypeError, "X", lambda: orthonormal_many([torch.eye(3).half()])),
        (ValueError, "X", lambda: orthonormal_many([torch.ones(3, 4)])),
        (TypeError, "W", lambda: cosines_many([torch.ones(3, 4).half()], [torch.ones(3, 4)])),
        (TypeError, "A", lambda: cosines_many([torch.ones(3, 4)], [torch.ones(3, 4).double()])),
        (ValueError, "A", lambda: cosines_many([torch.ones(3, 4)], [torch.ones(4, 3)])),
        (ValueError, "A", lambda: cosines_many([torch.ones(3, 4)], [])),
        (ValueError, "Y", lambda: distances_many([torch.ones(3, 4)], [torch.ones(4, 3)])),
        (ValueError, "Y", lambda: distances_many([torch.ones(3, 4)], [torch.ones(3, 4).double()])),
        (ValueError, "Y", lambda: distances_many([torch.ones(3, 4)], [])),
        (ValueError, "X", lambda: products_many([torch.ones(3, 4)], [torch.ones(3, 2).double()])),
        (TypeError, "X", lambda: products_many([torch.ones(3, 4)], [torch.ones(4, 2)])),
        (ValueError, "X", lambda: products_many([torch.ones(3, 4)], [])),
    ],
)
def test_bad_arguments_are_named(error, argument, call):
    with pytest.raises(error, match=rf"^{argument}: expected .*, got "):
        call()


def computed(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def bits(x):
    return x.contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.itemsize])


def random(n, d, dtype):
    generator = torch.Generator().manual_seed(100 * n + d)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)


def decaying(n, d, dtype, power=1.0):
    """Singular values of about i^-power."""
    m = min(n, d)
    U, V = (torch.linalg.qr(random(side, m, torch.float64))[0] for side in (n, d))
    return (U * torch.arange(1, m + 1, dtype=torch.float64) ** -power @ V.T).to(dtype)
