"""Top-k subspaces against a float64 SVD: cold, warm, through a jump, and where the figures are not defined."""

import math
from dataclasses import replace

import pytest
import torch

from fastrank import InputError, alignment, subspace, top_svd
from fastrank.subspace import SubspaceState


def decaying(n, d, seed=0, power=0.7, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(n, min(n, d), generator=g, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(d, min(n, d), generator=g, dtype=torch.float64))[0]
    sigma = torch.arange(1, min(n, d) + 1, dtype=torch.float64) ** -power
    return ((U * sigma) @ V.T).to(dtype)


def sine(v, w):
    """Sine of the angle between unit vectors in float64, accurate for small angles too."""
    v, w = v.double() / v.double().norm(), w.double() / w.double().norm()
    return (v - w * (v @ w)).norm()


def assert_within_its_own_bounds(state, A):
    _, S, Vh = torch.linalg.svd(A.double(), full_matrices=False)
    rounding = 16 * torch.finfo(torch.float32).eps
    assert torch.all((state.S.double() - S[: state.k]).abs() <= state.residual.double() + rounding * S[0])
    for i in range(state.k):
        if not state.cluster[i]:
            assert sine(state.Vh[i], Vh[i]) <= state.vector_error[i] + rounding
    assert torch.allclose(state.Vh @ state.Vh.T, torch.eye(state.k), atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (94, 512), (20, 9), (9, 300)])
def test_cold_start_is_exact_where_a_side_is_small(shape):
    A = decaying(*shape)
    state = top_svd(A)
    assert state.k == min(15, *shape)
    assert_within_its_own_bounds(state, A)
    assert state.residual.max() <= 1e-5 * state.S[0]


def test_cold_range_finder_on_a_large_matrix():
    A = decaying(1100, 1050, power=1.5)
    state = top_svd(A)
    S = torch.linalg.svdvals(A.double())
    assert torch.all((state.S.double() - S[:15]).abs() <= state.residual.double() + 1e-6 * S[0])


def test_a_settled_cold_start_has_the_values_of_a_flat_spectrum():
    A = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    truth = torch.linalg.svdvals(A.double())[:15]
    first, settled = ((truth - top_svd(A, 15, settled=s).S.double()).abs().max() / truth[0] for s in (False, True))
    assert settled < first / 5
    B = torch.randn(100, 500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(top_svd(B, 15, settled=True).S, top_svd(B, 15).S)  # exact already
    both = top_svd([A, A], 15, settled=[False, True])
    for settled, state in zip((False, True), both, strict=True):
        assert torch.equal(state.S, top_svd(A, 15, settled=settled).S)
    with pytest.raises(InputError, match=r"^settled: expected one for all, or 2, one per matrix, got 1"):
        top_svd([A, A], 15, settled=[True])
    for wrong in ("yes", None, torch.tensor([True, False]), ["a", "b"]):
        with pytest.raises(InputError, match=r"^settled: expected True or False, or a list of them, got"):
            top_svd([A, A], 15, settled=wrong)


def test_warm_steps_follow_a_drift_better_than_its_size():
    A = decaying(128, 576)
    state = top_svd(A)
    g = torch.Generator().manual_seed(3)
    for _ in range(10):
        A = A + 1e-3 * A.norm() / A.numel() ** 0.5 * torch.randn(A.shape, generator=g)
        state = top_svd(A, state=state)
    assert_within_its_own_bounds(state, A)
    assert state.calls == 11


def test_a_planted_jump_is_seen_in_the_call_in_which_it_happens():
    A = decaying(128, 576)
    state = top_svd(A)
    for _ in range(3):
        state = top_svd(A, state=state)
    g = torch.Generator().manual_seed(4)
    u, v = torch.randn(128, generator=g), torch.randn(576, generator=g)
    jumped = A + 3 * torch.outer(u / u.norm(), v / v.norm())
    after = top_svd(jumped, state=state)
    _, S, Vh = torch.linalg.svd(jumped.double(), full_matrices=False)
    assert abs(float(after.S[0]) - float(S[0])) < 1e-3 * float(S[0])
    assert sine(after.Vh[0], Vh[0]) < 1e-2


@pytest.mark.parametrize(("n", "d", "power"), [(128, 576, 0.7), (64, 576, 0.7), (256, 300, 0.5), (100, 1000, 0.3)])
def test_a_jump_orthogonal_to_everything_is_seen_whatever_the_draws(n, d, power):
    """2 sigma_15, along directions of which A, and so the block, has nothing: only the fresh columns can meet it. With
    four of them a quarter of the seeds missed it at (256, 300), before what the block lacks of the norm was watched."""
    U, V = (torch.linalg.qr(side)[0] for side in random_pair(n, d))
    sigma = torch.arange(1, n, dtype=torch.float64) ** -power
    A = (U[:, :-1] * sigma) @ V[:, :-1].T
    jumped = (A + 2 * sigma[14] * torch.outer(U[:, -1], V[:, -1])).float()
    state = top_svd(A.float())
    for _ in range(2):
        state = top_svd(A.float(), state=state)
    for seed in range(25):
        after = top_svd(jumped, state=replace(state, seed=seed))
        assert (after.Vh.double() @ V[:, -1]).norm() > 0.99, seed


def test_after_a_jump_among_many_like_values_the_largest_is_found():
    """On the flat spectrum of a layer's first weights, where a repeat says little more of it than of the others."""
    g = torch.Generator().manual_seed(0)
    A = torch.randn(520, 512, generator=g) / 40
    state = top_svd(A, settled=True)
    u, v = torch.randn(520, generator=g), torch.randn(512, generator=g)
    jumped = A + 1.15 * float(state.S[0]) * torch.outer(u / u.norm(), v / v.norm())
    after, truth = top_svd(jumped, state=state), torch.linalg.svdvals(jumped.double())
    assert float(after.S[0]) == pytest.approx(float(truth[0]), rel=1e-3)


def test_what_shall_be_settled_is_followed_through_jump_after_jump():
    g = torch.Generator().manual_seed(0)
    A = torch.randn(520, 512, generator=g) / 40
    state = top_svd(A, settled=True)
    for _ in range(5):
        u, v = torch.randn(520, generator=g), torch.randn(512, generator=g)
        A = A + 1.4 * float(state.S[0]) * torch.outer(u / u.norm(), v / v.norm())
        state = top_svd(A, state=state, settled=True)
        assert float(state.S[0]) == pytest.approx(float(torch.linalg.matrix_norm(A.double(), 2)), rel=2e-3)


def test_batches_of_activations_take_one_step_each_and_a_jump_among_them_more(monkeypatch):
    """What changes at every call is the pace of the matrix, not a jump; what exceeds the pace still is one."""
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(512, 128, generator=g) * torch.arange(1, 129) ** -0.7
    batch = lambda: torch.relu(torch.randn(128, 128, generator=g) @ mix.T)  # noqa: E731
    steps, step = [], subspace.subspace_step_many
    counted = lambda A, *rest, **options: steps.extend(A) or step(A, *rest, **options)  # noqa: E731
    monkeypatch.setattr(subspace, "subspace_step_many", counted)
    state, taken = None, []
    for _ in range(12):
        steps.clear()
        state = top_svd(batch(), state=state)
        taken.append(len(steps))
    assert sum(taken[4:]) <= 10  # 16 where every call is held against a calm one
    v = torch.randn(512, generator=g)
    jumped = batch() + 3 * state.S[0] * torch.outer(torch.randn(128, generator=g) / 128**0.5, v / v.norm())
    state = top_svd(jumped, state=state)
    assert sine(state.Vh[0], torch.linalg.svd(jumped.double())[2][0]) < 1e-2


def test_two_jumps_in_a_row_are_both_seen():
    A = decaying(128, 576)
    state = top_svd(A)
    for _ in range(3):
        state = top_svd(A, state=state)
    U, V = (torch.linalg.qr(torch.randn(side, 2, generator=torch.Generator().manual_seed(side)))[0] for side in A.shape)
    for i in range(2):
        A = A + (2 + i) * torch.outer(U[:, i], V[:, i])
        state = top_svd(A, state=state)
        assert sine(state.Vh[0], torch.linalg.svd(A.double())[2][0]) < 1e-2


def random_pair(n, d):
    g = torch.Generator().manual_seed(n)
    return (torch.randn(side, n, generator=g, dtype=torch.float64) for side in (n, d))


def test_many_matrices_in_one_call_are_as_one_by_one():
    A = [decaying(128, 576), decaying(576, 64), decaying(5, 9), decaying(300, 400), torch.zeros(3, 4)]
    A += [decaying(30, 40).double(), decaying(30, 40).bfloat16(), torch.full((6, 8), math.nan), torch.zeros(0, 5)]
    states, others = None, [None] * len(A)
    for _ in range(3):
        states = top_svd(A, state=states)
        others = [top_svd(a, state=other) for a, other in zip(A, others, strict=True)]
        for one, other in zip(states, others, strict=True):
            for x, y in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
                assert torch.equal(torch.nan_to_num(x), torch.nan_to_num(y)) if isinstance(x, torch.Tensor) else x == y
        A = [a + 1e-3 * a.roll(1) for a in A]
    assert top_svd([]) == []


def test_only_those_that_jumped_are_repeated(monkeypatch):
    A = [decaying(128, 300, seed) for seed in range(3)]
    states = top_svd(A)
    for _ in range(2):
        states = top_svd(A, state=states)
    sizes, step = [], subspace.subspace_step_many
    counted = lambda A, *rest, **options: sizes.append(len(A)) or step(A, *rest, **options)  # noqa: E731
    monkeypatch.setattr(subspace, "subspace_step_many", counted)
    top_svd(A, state=states)
    assert [size for size in sizes if size] == [3]
    sizes.clear()
    top_svd([A[0], A[1] + 5 * decaying(128, 300, 7), A[2]], state=states)
    assert [size for size in sizes if size][:2] == [3, 1]


def test_a_block_of_values_is_a_lower_bound_of_the_rank_and_no_more():
    A = torch.eye(40)
    state = top_svd(A, k=4)
    assert state.at_least(0.5) == 4  # of 40
    assert state.at_least(1.5) == 0
    assert state.outside == pytest.approx(1 - 16 / 40)
    flat = top_svd(torch.randn(300, 260, generator=torch.Generator().manual_seed(0)), k=4)
    assert flat.at_least(float(flat.S[3])) <= 4


def test_values_that_share_a_true_one_are_not_counted_twice():
    """Of two values 1 and 1 with residuals 0.8 both may be off the same 1.1 and a 0: above 0.1 one is certain."""
    state = replace(
        top_svd(torch.eye(3), k=3), S=torch.tensor([1.0, 1.0, 0.0]), residual=torch.tensor([0.8, 0.8, 1e-9])
    )
    assert state.at_least(0.1) == 1 and state.at_least(0.3) == 0
    assert replace(state, residual=torch.tensor([0.6, 0.6, 1e-9])).at_least(0.1) == 2


@pytest.mark.parametrize("scale", [1.0, 1e-28, 1e28])
@pytest.mark.parametrize("shape", [(3, 129), (10, 512), (129, 3), (60, 200)])
def test_errors_of_vectors_hold_where_small_values_magnify_the_rounding_of_the_other_side(shape, scale):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        sides = [torch.linalg.qr(torch.randn(n, min(shape), generator=g, dtype=torch.float64))[0] for n in shape]
        A = ((sides[0] * 10.0 ** -torch.linspace(0, 3, min(shape), dtype=torch.float64)) @ sides[1].T).float()
        state = None
        for _ in range(4):
            A = A + 1e-5 * torch.randn(shape, generator=g) * A.abs().mean()
            state = top_svd(A * scale, state=state)
        true = torch.linalg.svd(A.double(), full_matrices=False)[2]
        for v, error in zip(state.Vh.double(), state.vector_error.tolist(), strict=True):
            cosines = true @ v
            best = cosines.abs().argmax()
            assert (v - cosines[best] * true[best]).norm() <= error + 1e-6


@pytest.mark.parametrize("power", [4.0, 12.0])
def test_counts_and_values_of_steep_float64_spectra_hold(power):
    """Below 1e-8 of the largest, where the Gram matrix of a float64 block has no digits left, a Ritz value may stand
    between two true ones. Its residual says so."""
    for seed in range(20):
        A = decaying(60, 60, seed, power, torch.float64)
        truth, state = torch.linalg.svdvals(A), None
        for _ in range(3):
            state = top_svd(A, 15, state, seed=seed)
            near = (state.S[:, None] - truth).abs().amin(1)
            assert (near <= state.residual + 64 * 2**-52 * truth[0]).all()
            for tolerance in 10.0 ** torch.arange(-13, 0):
                assert state.at_least(float(tolerance)) <= int((truth > tolerance).sum())


def test_equal_singular_values_are_flagged_as_a_cluster():
    sigma = torch.cat([torch.tensor([4.0, 2.0, 1.0, 1.0]), torch.full((16,), 0.1)])
    A = torch.zeros(20, 40)
    A[torch.arange(20), torch.arange(20)] = sigma
    state = top_svd(A, k=4)
    assert state.cluster.tolist() == [False, False, True, True]
    assert state.vector_error[2:].tolist() == [1.0, 1.0]


def test_the_number_of_rows_may_change_between_calls():
    state = None
    for n in (5, 128, 3, 64):
        A = decaying(n, 50, seed=n)
        state = top_svd(A, state=state)
        assert state.k == min(15, n)
        assert torch.isfinite(state.S).all()


def test_non_finite_data_is_named_and_the_next_call_recovers():
    A = decaying(30, 40)
    state = top_svd(A)
    broken = A.clone()
    broken[0, 0] = math.nan
    bad = top_svd(broken, state=state)
    assert bad.reason and bad.S.isnan().all()
    again = top_svd(A, state=bad)
    assert_within_its_own_bounds(again, A)


def test_global_random_state_is_untouched_and_draws_repeat():
    A = decaying(1100, 1050)
    before = torch.get_rng_state()
    first, second = top_svd(A, seed=5), top_svd(A, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.S, second.S)


def test_surrounding_precision_settings_do_not_reach_the_measurement():
    A = decaying(128, 576)
    plain = top_svd(A)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = top_svd(A)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(plain.S, inside.S)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_scale_does_not_matter(shape, scale):
    A = decaying(*shape)
    plain, scaled = top_svd(A), top_svd(A * scale)
    assert not scaled.reason
    assert torch.allclose(scaled.S / scale, plain.S, rtol=1e-5)


def test_a_zero_matrix_aligns_with_nothing():
    result = alignment(torch.zeros(5, 7), torch.randn(6, 7), k=3)
    assert math.isnan(result.max) and "zero" in result.reason


def test_state_survives_a_state_dict():
    A = decaying(40, 60)
    state = top_svd(A)
    restored = SubspaceState.from_state_dict(state.state_dict())
    assert torch.equal(top_svd(A, state=state).S, top_svd(A, state=restored).S)


def test_alignment_of_planted_vectors():
    g = torch.Generator().manual_seed(0)
    V = torch.linalg.qr(torch.randn(60, 6, generator=g))[0]
    scale = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    W = torch.linalg.qr(torch.randn(30, 6, generator=g))[0] * scale @ V.T
    A = torch.linalg.qr(torch.randn(50, 6, generator=g))[0] * scale @ V.T
    result = alignment(W, A, k=6)
    assert torch.allclose(result.cosines, torch.eye(6), atol=1e-4)
    assert result.max > 0.9999 and result.diagonal > 0.9999
    assert result.error < 1e-3
    assert result.chance == pytest.approx(math.sqrt(2 * math.log(36) / 60))
    other = torch.linalg.qr(torch.cat([V, torch.randn(60, 6, generator=g)], 1))[0][:, 6:]
    assert alignment(W, torch.linalg.qr(torch.randn(50, 6, generator=g))[0] * scale @ other.T, k=6).max < 1e-3


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("A", lambda: top_svd(torch.randn(3))),
        ("A", lambda: top_svd("abc")),
        ("k", lambda: top_svd(torch.eye(3), k=0)),
        ("k", lambda: top_svd(torch.eye(3), k=1.5)),
        ("k", lambda: top_svd(torch.eye(3), k=117)),
        ("state", lambda: top_svd([torch.eye(3)], state=top_svd(torch.eye(3)))),
        ("state", lambda: top_svd(torch.eye(3), state="x")),
        ("state", lambda: top_svd(torch.eye(3), state=top_svd(torch.eye(4)))),
        ("state", lambda: top_svd([torch.eye(3)], state=[])),
        ("A", lambda: alignment(torch.randn(4, 5), torch.randn(4, 6))),
    ],
)
def test_bad_arguments_are_named(argument, call):
    with pytest.raises(InputError, match=rf"^{argument}: expected .*, got "):
        call()
