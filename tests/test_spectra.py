"""Spectra and ranks against a float64 SVD: every bound holds, every interval contains the truth."""

import math

import numpy as np
import pytest
import torch

from fastrank import InputError, matrix_rank, spectrum, tempered_cross_entropy, top_svd
from fastrank.inertia import top_brackets
from fastrank.ranks import default_rtol, estimate_rank, rank_counts
from fastrank.small_grams import SmallGram, small_gram, small_grams
from fastrank.spectra import of_grams

EPS32 = torch.finfo(torch.float32).eps


def planted(n, d, sigma, dtype=torch.float32, seed=0):
    """A matrix [n, d] with singular values `sigma` up to the rounding of its storage, and its true ones."""
    g = torch.Generator().manual_seed(seed)
    k = len(sigma)
    U = torch.linalg.qr(torch.randn(n, k, generator=g, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64))[0]
    A = ((U * torch.as_tensor(sigma, dtype=torch.float64)) @ V.T).to(dtype)
    return A, torch.linalg.svdvals(A.double())


FAMILIES = {
    "exponential": lambda k: torch.logspace(0, -9, k, dtype=torch.float64),
    "polynomial": lambda k: torch.arange(1, k + 1, dtype=torch.float64) ** -1.5,
    "cliff": lambda k: torch.cat([torch.ones(k // 2), torch.full((k - k // 2,), 1e-7)]).double(),
    "s_shaped": lambda k: 1 / (1 + torch.exp(torch.linspace(-12, 12, k, dtype=torch.float64))),
    "near_tolerance": lambda k: torch.cat([torch.ones(1), 300 * EPS32 * (1 + torch.linspace(-1, 1, k - 1))]).double(),
    "repeated": lambda k: torch.ones(k, dtype=torch.float64),
    "huge": lambda k: 1e15 * torch.logspace(0, -6, k, dtype=torch.float64),
    "tiny": lambda k: 1e-12 * torch.logspace(0, -6, k, dtype=torch.float64),
}


@pytest.mark.parametrize("shape", [(64, 64), (128, 300), (300, 17), (5, 2000)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_singular_value_lies_within_its_bound(family, shape):
    A, truth = planted(*shape, FAMILIES[family](min(shape)))
    s = spectrum(A)
    # The truth itself comes from a float64 SVD, good to a few u * sigma_1.
    own = 16 * torch.finfo(torch.float64).eps * truth[0]
    assert torch.all((s.sigma - truth).abs() <= s.bound + own)
    # The Gram's last digits limit the smallest values only: the floor stays far below the default tolerance.
    assert s.floor < default_rtol(*shape, torch.float32) / 2


@pytest.mark.parametrize("shape", [(64, 64), (128, 300), (300, 17)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_interval_contains_the_true_count_and_agrees_with_torch(family, shape):
    A, truth = planted(*shape, FAMILIES[family](min(shape)))
    r = matrix_rank(A)
    tol = default_rtol(*shape, torch.float32) * truth[0]
    count = int((truth > tol).sum())
    assert r.lo <= count <= r.hi
    assert r.lo <= int(r) <= r.hi
    if not r.torch_ambiguous:
        assert int(r) == int(torch.linalg.matrix_rank(A)) == count
        assert r.exact


@pytest.mark.parametrize("delta", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("side", [-1, 1])
def test_tolerance_ladder(delta, side):
    """A singular value within a relative delta of the tolerance is counted right, or the interval says both."""
    sigma = torch.tensor([1.0, 0.5, 0.1, 1e-3 * (1 + side * delta)], dtype=torch.float64)
    A, truth = planted(100, 40, sigma)
    r = matrix_rank(A, rtol=1e-3)
    assert r.lo <= int((truth > 1e-3 * truth[0]).sum()) <= r.hi
    if delta >= 1e-4:
        assert r.exact


def test_rank_limited_matrices_have_that_rank_exactly():
    centred = torch.randn(200, 94, generator=torch.Generator().manual_seed(1))
    centred -= centred.mean(1, keepdim=True)
    assert int(matrix_rank(centred)) == 93
    assert int(matrix_rank(torch.eye(33))) == 33
    assert int(matrix_rank(torch.zeros(7, 9))) == 0
    assert int(matrix_rank(torch.ones(50, 20))) == 1


def test_float64_goes_through_the_svd_and_keeps_its_digits():
    A, truth = planted(60, 50, torch.logspace(0, -13, 50, dtype=torch.float64), torch.float64)
    s = spectrum(A)
    assert s.method == "svd64"
    assert int(matrix_rank(A)) == int(torch.linalg.matrix_rank(A))
    assert torch.all((s.sigma - truth).abs() <= s.bound)


def test_centred_and_uncentred_spectra():
    A = torch.randn(200, 30, generator=torch.Generator().manual_seed(2)) + 1e3
    truth = torch.linalg.svdvals(A.double() - A.double().mean(0))
    s = spectrum(A, centered=True)
    assert torch.all((s.sigma - truth).abs() <= s.bound + 1e-12 * truth[0])
    assert spectrum(A).sigma[0] > 1e3


def test_sixteen_bit_data_is_measured_as_stored_and_marked():
    A = planted(256, 512, torch.logspace(0, -5, 256, dtype=torch.float64))[0].bfloat16()
    r = matrix_rank(A)
    truth = torch.linalg.svdvals(A.double())
    assert r.lo <= int((truth > r.tol).sum()) <= r.hi
    assert r.dtype_limited
    assert not matrix_rank(torch.randn(20, 30)).dtype_limited


def test_a_spectrum_asked_below_its_floor_refuses_instead_of_answering():
    s = spectrum(planted(100, 40, torch.logspace(0, -3, 40, dtype=torch.float64))[0])
    with pytest.raises(InputError, match="floor"):
        matrix_rank(s, rtol=1e-9)
    assert int(matrix_rank(s, rtol=1e-2)) == int((s.sigma > 1e-2 * s.sigma[0]).sum())


def test_a_matrix_asked_below_the_gram_floor_escalates_to_the_svd():
    A, truth = planted(100, 40, torch.logspace(0, -9, 40, dtype=torch.float64), torch.float32)
    r = matrix_rank(A, rtol=1e-9)
    assert int(r) == int((truth > 1e-9 * truth[0]).sum())
    assert r.exact
    assert not estimate_rank(spectrum(A), rtol=1e-9).exact


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_values_are_named_and_confined_to_their_matrix(bad):
    good, broken = torch.randn(20, 30), torch.randn(20, 30)
    broken[3, 4] = bad
    first, second = matrix_rank([broken, good])
    assert math.isnan(first.rank) and "non-finite" in first.reason
    with pytest.raises(ValueError, match="non-finite"):
        int(first)
    assert int(second) == 20 and second.exact


def test_the_bracket_of_sigma_1_holds():
    # Where Lanczos' first vector is zero, the largest eigenvalue lies: no step of it sees that.
    start = torch.cos(torch.arange(1, 61, dtype=torch.float64) ** 2)
    root = torch.where(start < 0, -start, 0.0).sqrt()
    hidden = torch.outer(root, root) + torch.where(start < 0, 0.0, 1.0).diag()
    families = [planted(100, 60, values(60))[0] for values in FAMILIES.values()]
    flat = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    for A in (*families, flat, flat.relu(), torch.eye(5), torch.ones(4, 4), torch.zeros(3, 3)):
        gram = small_gram(A)
        hold(gram, torch.linalg.svdvals(A.double())[0])
    zero = torch.zeros((), dtype=torch.float64)
    hold(SmallGram(hidden, 60, 60, torch.float32, False, zero, zero), torch.linalg.eigvalsh(hidden)[-1].sqrt())


def test_errors_from_eigenvalues_are_those_from_the_trace_and_no_less():
    """Of many matrices the trace, which errors are a share of, is taken as the sum of the eigenvalues."""
    families = [planted(100, 60, values(60))[0] for values in FAMILIES.values()]
    matrices = [*families, torch.ones(7, 300), torch.zeros(3, 3), torch.full((4, 9), 1e-30), torch.full((5, 5), 1e18)]
    found = of_grams(small_grams(matrices))
    for gram, s in zip(small_grams(matrices), found, strict=True):
        (alone,) = of_grams([SmallGram(gram.G, gram.n, gram.d, gram.dtype, False, gram.error, gram.moved)])
        assert (s.bound >= alone.bound).all() and s.zero_bound >= alone.zero_bound
        assert torch.allclose(s.bound, alone.bound, rtol=1e-9, atol=0)
        assert torch.allclose(s.zero_bound, alone.zero_bound, rtol=1e-9, atol=0)


def hold(gram, sigma_1):
    ((low, high),) = top_brackets([gram])
    assert low * (1 - 1e-14) <= sigma_1 <= high * (1 + 1e-14) and high - low <= 0.02 * high


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices_have_rank_zero(shape):
    for method in ("auto", "spectrum", "inertia"):
        r = matrix_rank(torch.empty(shape), method=method)
        assert (int(r), r.lo, r.hi) == (0, 0, 0)


@pytest.mark.parametrize("method", ["auto", "spectrum", "inertia"])
def test_vectors_and_views_are_matrices_too(method):
    x = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    assert [int(r) for r in matrix_rank([x, x.T, x[:, :1], 0 * x], method=method)] == [1, 1, 1, 0]
    assert spectrum(x).sigma.item() == pytest.approx(float(x.double().norm()), rel=1e-14)
    A = torch.randn(40, 60, generator=torch.Generator().manual_seed(1))
    views = [A, A.T, A[::2, 1::3], A.T[3:], A[:1].expand(5, -1)]
    for view in views:
        assert matrix_rank(view, method=method) == matrix_rank(view.clone(), method=method)
    assert int(matrix_rank(views[-1], method=method)) == 1


def test_a_tolerance_of_its_own_size_has_no_error():
    """An absolute tolerance is not blurred by sigma_1's bound."""
    s = spectrum(torch.diag(torch.tensor([1e6, 3.0, 2.0, 1.0])))
    r = estimate_rank(s, 0.0, 2.5)
    assert (r.rank, r.lo, r.hi) == (2, 2, 2)


def test_numpy_arrays_are_matrices_too():
    A = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spectrum(A.numpy()).sigma, spectrum(A).sigma)
    assert int(matrix_rank([A.numpy(), A[:5]])[1]) == 5


def test_the_curve_holds_the_count_at_every_tolerance():
    s = spectrum(planted(80, 20, torch.logspace(0, -3, 20, dtype=torch.float64))[0])
    rtol, rank = s.rank_curve()
    for r, t in zip(rank.tolist(), rtol.tolist(), strict=True):
        assert int((s.sigma > t * s.sigma[0]).sum()) == r


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("A", lambda: matrix_rank(torch.randn(3))),
        ("A", lambda: spectrum(torch.ones(3, 3, dtype=torch.int64))),
        ("A", lambda: matrix_rank("abc")),
        ("A", lambda: matrix_rank(torch.eye(3).to_sparse())),
        ("A", lambda: spectrum(None)),
        ("A", lambda: matrix_rank(torch.ones(3, 3, dtype=torch.complex64))),
        (r"A\[1\]", lambda: matrix_rank([torch.eye(3), torch.randn(3)])),
        ("method", lambda: matrix_rank(torch.eye(3), method="svd")),
        ("rtol", lambda: matrix_rank(torch.eye(3), rtol=-1.0)),
        ("atol", lambda: matrix_rank(torch.eye(3), atol="a")),
        ("atol", lambda: matrix_rank(torch.eye(3), atol=math.nan)),
    ],
)
def test_bad_arguments_are_named(argument, call):
    with pytest.raises(InputError, match=rf"^{argument}: expected .*, got "):
        call()


def test_zeros_are_known_to_be_zeros():
    # Without an allowance for underflow that cannot be: every interval would reach from 0 to the whole side.
    for n, d in ((8, 40), (40, 8)):
        for dtype in (torch.float32, torch.float64):
            X = torch.zeros(n, d, dtype=dtype)
            assert [int(count) for count in rank_counts(spectrum(X))] == [0, 0, 0]
            assert [r.hi for r in (matrix_rank(X), matrix_rank(X, method="inertia"))] == [0, 0]


def test_a_direct_svds_bound_holds_for_the_smallest_matrices():
    """LAPACK errs by more than max(n, d) u sigma_1 there: without an allowance this exact rank 1 is a certain 2."""
    row = torch.tensor([-0.6875117421150208, -0.5717338919639587])
    estimate = matrix_rank(torch.stack([row, 8 * row]), rtol=0.0)
    assert estimate.lo <= 1 <= estimate.hi


def test_singular_values_beyond_the_largest_number_have_a_reason():
    s = spectrum(torch.full((40, 40), 1e308, dtype=torch.float64))
    assert s.sigma.isnan().all() and "beyond the largest" in s.reason
    assert math.isnan(matrix_rank(torch.full((40, 40), 1e308, dtype=torch.float64)).rank)
    top = top_svd(torch.full((40, 40), 3e38), 2)
    assert top.S.isnan().all() and "beyond the largest" in top.reason


def test_huge_float64_is_not_taken_for_limited_by_its_storage(recwarn):
    X = torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not matrix_rank(X * 1e155).dtype_limited and not recwarn.list


@pytest.mark.parametrize("scale", [1e-310, 1e-315, 1e-320])
def test_bounds_hold_for_subnormal_numbers(scale):
    X = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * scale
    s, truth = spectrum(X), torch.linalg.svdvals(X * 2.0**1000) / 2.0**1000
    assert ((s.sigma - truth).abs() <= s.bound).all() and (s.bound > 0).all()


def test_ranks_of_a_list_of_spectra_and_of_numpys_tolerances():
    X = torch.diag(torch.tensor([1.0, 0.5, 1e-4]))
    assert [int(r) for r in matrix_rank([spectrum(X), spectrum(2 * X)], rtol=np.float32(1e-3))] == [2, 2]
    with pytest.raises(InputError, match="rtol"):
        matrix_rank(X, rtol=True)


def test_a_default_device_changes_nothing():
    """Memory for a kernel is where its matrix is, whatever torch.set_default_device says: else it is no memory."""
    X = torch.randn(200, 300, generator=torch.Generator().manual_seed(2))
    z, y = torch.randn(5, 7), torch.tensor([0, 1, 2, 3, 4])
    expected = top_svd(X, 3).S, matrix_rank(X, method="inertia").rank, tempered_cross_entropy(z, y, 2.0)
    with torch.device("meta"):
        found = top_svd(X, 3).S, matrix_rank(X, method="inertia").rank, tempered_cross_entropy(z, y, 2.0)
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1] and torch.equal(found[2], expected[2])
