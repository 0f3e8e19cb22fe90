"""GramState: one pass, any split; centring; sources; errors and their bound; saving; ranks of torch.distributed."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastrank.kernels.gram import MODES, digits

from fastrank import GramState, InputError, matrix_rank


def integers(n, d, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, (n, d), generator=generator).to(dtype)


def normal(n, d, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def same(a: GramState, b: GramState):
    """Equal to the bit in everything that can be read; the shift may differ."""
    assert a.n == b.n and a.dtype == b.dtype
    for centered in (False, True):
        assert torch.equal(a.gram(centered), b.gram(centered))
    assert torch.equal(a.mean, b.mean)


def error(state: GramState, X: torch.Tensor, centered: bool) -> float:
    X = X.double()
    X = X - X.mean(0) if centered else X
    return float(torch.linalg.matrix_norm(state.gram(centered) - X.T @ X, 2))


# ---- one pass, however it is cut ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_split_of_integers_gives_the_same_bits(mode, dtype):
    # Powers of two in all counts, so that means are dyadic and the centred Gram is exact too.
    X = integers(512, 30, dtype=dtype)
    X[:, 3] += 40
    whole = GramState(30, mode).update(X)
    assert torch.equal(whole.gram(), X.double().T @ X.double())
    centred = X.double() - X.double().mean(0)
    assert torch.equal(whole.gram(centered=True), centred.T @ centred)

    batches = GramState(30, mode)
    for part in X.split([1, 0, 100, 311, 100]):
        batches.update(part)
    same(batches, whole)

    permuted = GramState(30, mode)
    for part in X[torch.randperm(512, generator=torch.Generator().manual_seed(1))].split(64):
        permuted.update(part)
    same(permuted, whole)

    parts = [GramState(30, mode).update(part) for part in X.split(200)]
    merged = GramState(30, mode)
    for part in parts:
        merged.merge(part)
    same(merged, whole)

    resumed = GramState(30, mode)
    resumed.load_state_dict(GramState(30, mode).update(X[:300]).state_dict())
    same(resumed.update(X[300:]), whole)


def test_merging_states_with_distant_shifts_stays_within_the_bound():
    X = torch.cat([normal(300, 20, 1) + 1000, normal(500, 20, 2) - 1000])
    merged = GramState(20).update(X[:300]).merge(GramState(20).update(X[300:]))
    one_pass = GramState(20).update(X)
    assert not torch.equal(merged._shift, one_pass._shift - 1)
    for centered in (False, True):
        for state in (merged, one_pass):
            assert error(state, X, centered) <= float(state.gram_error(centered))
    # Two shifts 1e6 deviations apart, in data that has no such spread once merged: the excess must carry that.
    far = GramState(20)
    far._shift = torch.full((20,), 1e6, dtype=torch.float64)
    far.n = 1  # the shift stays as set
    far.update(X[300:])
    far.n -= 1
    near = GramState(20).update(X[300:])
    moved = copy.deepcopy(near).merge(far)
    twice = torch.cat([X[300:], X[300:]])
    assert error(moved, twice, True) <= float(moved.gram_error(True))
    assert float(moved.gram_error(True)) > 1e3 * float(near.gram_error(True))


def test_merge_of_empty_states_and_with_itself():
    X = integers(64, 5)
    state = GramState(5).update(X)
    before = copy.deepcopy(state)
    state.merge(GramState(5))
    same(state, before)
    same(GramState(5).merge(state), before)
    same(state.merge(state), GramState(5).update(torch.cat([X, X])))


# ---- centring, precision and its bound ----


@pytest.mark.parametrize("mode", MODES)
def test_a_mean_far_above_the_spread_costs_nothing(mode):
    """mean / std = 1e5: a Gram matrix about zero would lose ten digits of the covariance, float32 all of it."""
    X = normal(4000, 16, dtype=torch.float64) @ torch.diag(torch.logspace(0, -1, 16, dtype=torch.float64)) + 1e5
    X = X.float()
    truth = X.double() - X.double().mean(0)
    truth = truth.T @ truth
    state = GramState(16, mode)
    for part in X.split(700):
        state.update(part)
    scale = truth.diagonal().sqrt()
    assert ((state.gram(centered=True) - truth).abs() / torch.outer(scale, scale)).max() < 1e-6
    assert (state.gram(centered=True).diagonal() > 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
def test_the_error_is_within_its_bound_and_the_bound_is_not_idle(mode, offset):
    for n, d in [(50, 8), (3000, 40), (1200, 300)]:
        X = normal(n, d, dtype=torch.float32) + offset
        state = GramState(d, mode)
        for part in X.split(500):
            state.update(part)
        for centered in (False, True):
            bound = float(state.gram_error(centered))
            assert error(state, X, centered) <= bound
            # About 1e-13 (exact) and 1e-5 (fast) of the trace of what was accumulated.
            trace = float(state.gram(centered).diagonal().sum())
            assert bound <= trace * (1e-12 if mode == "exact" else 4e-5) * (1 if centered or not offset else 4)


def test_values_that_underflow_in_fast_mode_are_covered_by_the_bound():
    X = normal(200, 6) * 1e-22
    state = GramState(6, "fast").update(X)
    assert error(state, X, False) <= float(state.gram_error())
    exact = GramState(6).update(X)
    assert float(exact.gram_error()) < 1e-12 * float(exact.gram().diagonal().sum())


def test_sixteen_bit_data_against_the_exact_truth():
    for dtype in (torch.bfloat16, torch.float16):
        X = normal(1000, 24, dtype=dtype)
        truth = X.double().T @ X.double()
        exact, fast = (GramState(24, mode).update(X).gram() for mode in MODES)
        scale = truth.diagonal().max()
        assert (exact - truth).abs().max() < 1e-13 * scale
        assert (fast - truth).abs().max() < 1e-6 * scale


def test_a_centred_variance_is_never_negative():
    X = torch.full((1000, 3), 1e5) + torch.tensor([0.0, 1 / 3, 1e-3])
    state = GramState(3)
    state._shift = torch.tensor([7e3, -2e4, 0.1], dtype=torch.float64)  # as a bad first batch would leave it
    state.n = 1
    state.update(X)
    state.n -= 1
    naive = state._gram.diagonal() - state._total**2 / state.n
    assert (naive < 0).any()
    assert (state.gram(centered=True).diagonal() >= 0).all()
    assert not state.spectrum(centered=True).sigma.isnan().any()


def test_floor_says_what_can_be_resolved():
    assert GramState(3).floor == math.inf
    assert GramState(3).update(torch.zeros(5, 3)).floor == 0
    X = normal(2000, 12)
    exact, fast = (GramState(12, mode).update(X) for mode in MODES)
    assert 1e-8 < exact.floor < 1e-6
    assert (3e-7 < fast.floor < 3e-6) if digits() else (1e-3 < fast.floor < 3e-2)
    # A direction below the floor is not told from zero, one above is.
    for factor, seen in ((0.01, False), (100.0, True)):
        Y = X.double()
        Y[:, -1] = Y[:, 0] + factor * exact.floor * Y[:, -1]
        spectrum = GramState(12).update(Y).spectrum()
        assert bool(spectrum.sigma[-1] > spectrum.bound[-1]) is seen


def test_spectrum_is_that_of_the_data():
    X = normal(400, 20) + 2
    state = GramState(20).update(X)
    for centered in (False, True):
        Y = X.double() - X.double().mean(0) if centered else X.double()
        spectrum = state.spectrum(centered)
        assert ((spectrum.sigma - torch.linalg.svdvals(Y)).abs() <= spectrum.bound + 1e-12).all()
        assert (spectrum.n, spectrum.d, spectrum.dtype, spectrum.centered) == (400, 20, torch.float32, centered)
    assert GramState(20).update(normal(7, 20)).spectrum().sigma.shape == (7,)


@pytest.mark.parametrize("mode", MODES)
def test_rank_of_a_state_is_that_of_its_spectrum(mode):
    decay = torch.arange(1, 41).float() ** -2
    for X in (normal(900, 40) * decay + 3, normal(900, 40), normal(9, 40), torch.ones(300, 5), torch.zeros(5, 3)):
        state, other = (GramState(X.shape[1], mode).update(X) for _ in range(2))
        for rtol in (None, 0.02, 0.3):
            wanted = (rtol or 0.0) > state.floor or state.floor == 0 or (rtol is None and mode == "exact")
            if not wanted:
                continue
            r, by_values = matrix_rank(state, rtol), matrix_rank(state, rtol, method="spectrum")
            assert by_values.lo <= r.lo <= r.rank <= r.hi <= by_values.hi <= min(X.shape)
            assert (r.tol, r.rtol, r.definition) == (
                pytest.approx(by_values.tol, rel=1e-6),
                by_values.rtol,
                by_values.definition,
            )
            assert [each.rank for each in matrix_rank([state, other], rtol)] == [r.rank] * 2
    with pytest.raises(InputError, match="rtol/atol: expected a tolerance of at least"):
        matrix_rank(GramState(40, mode).update(normal(900, 40)), rtol=1e-12)
    broken = normal(30, 6)
    broken[3, 2] = math.nan
    assert matrix_rank(GramState(6, mode).update(broken)).reason.endswith("in 1 of 6 features, the first at 2")


def test_the_coarsest_dtype_seen_is_kept():
    state = GramState(4).update(normal(5, 4, dtype=torch.float64))
    assert state.dtype == torch.float64
    state.update(normal(5, 4, dtype=torch.bfloat16)).update(normal(5, 4))
    assert state.dtype == torch.bfloat16
    assert GramState(4).merge(state).dtype == torch.bfloat16


def test_non_finite_rows_harm_their_features_only():
    X, later = normal(50, 6), normal(50, 6, 1)
    X[3, 2] = float("inf")
    state = GramState(6).update(X).update(later)
    clean = torch.tensor([0, 1, 3, 4, 5])
    assert state.gram()[clean][:, clean].isfinite().all()
    for centered in (False, True):
        assert not state.gram(centered)[2, 2].isfinite()
    assert state.mean[clean].isfinite().all()
    assert state.spectrum().reason == "non-finite values in the matrix, in 1 of 6 features, the first at 2"


# ---- sources ----


def test_channels_are_read_in_place_whatever_their_strides():
    x = normal(4 * 6, 5 * 7).view(4, 6, 5, 7)
    for view in (
        x,
        x.to(memory_format=torch.channels_last),
        x[:, 1:4],
        x[1:3],
        x[:, :, ::2, 1::3],
        x.transpose(2, 3),
        x.flatten(2),
        x.unflatten(3, (7, 1)),
        x[:1].expand(3, -1, -1, -1),
        x[:0],
    ):
        d = view.shape[1]
        rows = view.movedim(1, -1).reshape(-1, d)
        state, plain = GramState(d).update_channels(view), GramState(d).update(rows)
        assert state.n == plain.n == len(rows)
        torch.testing.assert_close(state.gram(), plain.gram(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ((3, 4, 9, 8), {"kernel_size": 3}),
        ((3, 4, 9, 8), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
        ((3, 4, 9, 8), {"kernel_size": 3, "padding": 1, "groups": 2}),
        ((3, 4, 9, 8), {"kernel_size": 3, "groups": 4}),
        ((3, 4, 9, 8), {"kernel_size": 1}),
        ((3, 4, 9, 8), {"kernel_size": 1, "stride": 2, "groups": 2}),
        ((3, 4, 9, 8), {"kernel_size": np.int64(3), "groups": np.int64(2)}),
        ((2, 2, 3, 3), {"kernel_size": 3}),
        ((2, 2, 3, 3), {"kernel_size": 2, "padding": 4, "stride": 3}),  # patches that see padding only
        ((0, 4, 9, 8), {"kernel_size": 3}),
    ],
)
def test_patches_are_those_of_unfold(size, arguments, memory_format):
    x = torch.randint(-5, 6, size, generator=torch.Generator().manual_seed(0)).float()
    x = x.contiguous(memory_format=memory_format)
    groups = arguments.get("groups", 1)
    unfold = {name: value for name, value in arguments.items() if name != "groups"}
    grouped = x.contiguous().view(size[0] * groups, size[1] // groups, *size[2:])
    if size[0]:
        rows = F.unfold(grouped, **unfold).transpose(1, 2).flatten(0, 1)
    else:
        rows = torch.zeros(0, size[1] // groups * 9)
    state = GramState(rows.shape[1]).update_patches(x, **arguments)
    assert state.n == len(rows)
    assert torch.equal(state.gram(), rows.double().T @ rows.double())


def test_patches_join_rows_whatever_came_first():
    """The kernel of patches knows one shift a channel; a state that rows have shifted otherwise takes them in too."""
    x = integers(2 * 12 * 6 * 5, 1).view(2, 12, 6, 5)
    rows = F.unfold(x, 3).transpose(1, 2).flatten(0, 1)
    truth = 2 * rows.double().T @ rows.double()
    before = GramState(108).update(rows).update_patches(x, 3)
    behind = GramState(108).update_patches(x, 3).update(rows)
    for state in (before, behind):
        assert state.n == 2 * len(rows)
        torch.testing.assert_close(state.gram(), truth, rtol=1e-12, atol=1e-9)
        error = torch.linalg.matrix_norm(state.gram() - truth, 2)
        assert error <= state.gram_error()
    again = GramState(108)
    again.load_state_dict(before.state_dict())
    torch.testing.assert_close(again.update_patches(x, 3).gram(), truth * 1.5, rtol=1e-12, atol=1e-9)
    # Nine taps a channel, then four.
    y = integers(2 * 27 * 3 * 4, 1, seed=5).view(2, 27, 3, 4)
    more = F.unfold(y, 2).transpose(1, 2).flatten(0, 1).double()
    both = GramState(108).update_patches(x, 3).update_patches(y, 2)
    torch.testing.assert_close(both.gram(), truth / 2 + more.T @ more, rtol=1e-12, atol=1e-9)


def test_patches_of_bfloat16_and_a_convolutions_own_features():
    conv = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    x = normal(2 * 4, 49).view(2, 4, 7, 7)
    out = conv(x)
    G = GramState(18).update_patches(x, 3, 2, 1, groups=2).gram()
    # ||W p||^2 over all patches of a group: with the weights of group 0 on every group's patches it is a trace.
    weight = conv.weight[:3].flatten(1).double()
    both = F.conv2d(x.view(4, 2, 7, 7), conv.weight[:3], stride=2, padding=1)
    torch.testing.assert_close((weight @ G @ weight.T).trace(), both.double().square().sum(), rtol=1e-5, atol=0)
    assert out.shape[1] == 6
    half = GramState(36).update_patches(x.bfloat16(), 3)
    rows = F.unfold(x.bfloat16().float(), 3).transpose(1, 2).flatten(0, 1).double()
    torch.testing.assert_close(half.gram(), rows.T @ rows, rtol=1e-12, atol=1e-12)
    assert half.dtype == torch.bfloat16


def test_a_state_is_on_the_cpu_unless_told():
    with torch.device("meta"):
        state = GramState(np.int64(3), classes=np.int64(2))
    assert state.device == torch.device("cpu") and repr(state).startswith("GramState(d=3,")
    assert state.update(torch.eye(3), torch.zeros(3, dtype=torch.int64)).n == 3


def test_numpy_in_any_layout():
    X = normal(40, 6).numpy()
    whole = GramState(6).update(torch.from_numpy(X))
    read_only = X.copy()
    read_only.flags.writeable = False
    for array in (X, np.asfortranarray(X), read_only, X[::-1], X.astype(">f4")):
        torch.testing.assert_close(GramState(6).update(array).gram(), whole.gram(), rtol=1e-12, atol=1e-12)
    labels = np.arange(40) % 3
    assert GramState(6, classes=3).update(X, labels).class_counts.tolist() == [14, 13, 13]
    assert torch.equal(torch.from_numpy(X), normal(40, 6))


def test_an_update_reads_and_keeps_no_graph():
    X = normal(20, 4).requires_grad_()
    before = X.detach().clone()
    state = GramState(4).update(X * 1)
    assert not state.gram().requires_grad and torch.equal(X, before)


def test_class_sums_and_counts():
    X, y = integers(300, 7), torch.arange(300) % 5
    y[y == 3] = 1
    state = GramState(7, classes=5).update(X[:100] + 0, y[:100]).update(X[100:], y[100:].int())
    sums = torch.zeros(5, 7, dtype=torch.float64).index_add(0, y, X.double())
    assert torch.equal(state.class_sums, sums)
    assert state.class_counts.tolist() == [60, 120, 60, 0, 60]
    state.merge(state)
    assert torch.equal(state.class_sums, 2 * sums) and int(state.class_counts.sum()) == 600


# ---- mistakes ----


def test_mistakes_are_named_and_leave_the_state_alone():
    state, labelled = GramState(4), GramState(4, classes=3)
    X, image, y = normal(6, 4), torch.zeros(2, 4, 5, 5), torch.zeros(6, dtype=torch.int64)
    cases = [
        (lambda: GramState(0), "d: expected a positive integer"),
        (lambda: GramState(4, "tf32"), "mode: expected 'exact' or 'fast'"),
        (lambda: GramState(4, classes=0), "classes: expected a positive integer"),
        (lambda: state.update(normal(6, 5)), "X: expected d = 4 features in dimension 1"),
        (lambda: state.update(X[0]), "X: expected 2 dimensions, got shape"),
        (lambda: state.update(X.long()), "X: expected float64, float32, bfloat16 or float16, got torch.int64"),
        (lambda: state.update(X.to(torch.complex64)), "got torch.complex64$"),
        (lambda: state.update([[1.0]]), "X: expected a torch, NumPy or CuPy array, got list"),
        (lambda: state.update(np.array(["a"])), "X: expected an array of numbers"),
        (lambda: state.update(X.to("meta")), "X: expected data on cpu, where the state is, got meta"),
        (lambda: state.update(X, y), "y: expected no labels"),
        (lambda: labelled.update(X), "y: expected labels, for a state with 3 classes"),
        (lambda: labelled.update(X, y[:5]), "y: expected one label for each of 6 rows"),
        (lambda: labelled.update(X, y.float()), "y: expected integer labels"),
        (lambda: labelled.update(X, y + 3), r"y: expected labels in 0 .. 2, got 3"),
        (lambda: labelled.update(X, y - 1), r"y: expected labels in 0 .. 2, got -1"),
        (lambda: labelled.update_channels(image), "classes: expected a state without classes"),
        (lambda: state.class_sums, "classes: expected a state with classes"),
        (lambda: state.update_channels(X), "x: expected 3 dimensions or more"),
        (lambda: state.update_patches(image[0], 1), "x: expected 4 dimensions"),
        (lambda: state.update_patches(image, 3), r"x: expected C / groups \* kh \* kw = d = 4, got 4 / 1 \* 3 \* 3"),
        (lambda: GramState(16).update_patches(image[:, :, :1], 2), "kernel_size: expected patches within .* 1 x 5"),
        (lambda: state.update_patches(image, 1, groups=3), "groups: expected a positive divisor of the 4 channels"),
        (lambda: state.update_patches(image, (1, 1, 1)), "kernel_size: expected an integer >= 1 or a pair"),
        (lambda: state.update_patches(image, 1, stride=0), "stride: expected an integer >= 1"),
        (lambda: state.update(X.to_sparse()), "X: expected a dense tensor, got torch.sparse_coo"),
        (lambda: state.update(torch.nested.nested_tensor([X, X])), "X: expected a dense tensor, got a nested one"),
        (lambda: state.update_patches(image[:, :, :0], 1, padding=1), "x: expected images of at least 1 x 1, got"),
        (lambda: GramState(True), "d: expected a positive integer"),
        (lambda: state.merge(3), "other: expected a GramState, got int"),
        (lambda: state.load_state_dict(None), r"state: expected a dictionary from state_dict\(\), got NoneType"),
        (lambda: state.load_state_dict({**state.state_dict(), "n": 2.5}), r"state\['n'\]: expected an integer >= 0"),
        (lambda: state.load_state_dict({**state.state_dict(), "dtype": "foo"}), r"state\['dtype'\]: expected None or"),
        (lambda: state.load_state_dict({**state.state_dict(), "depth": [1]}), r"state\['depth'\]: expected three"),
        (lambda: state.load_state_dict({**state.state_dict(), "gram": None}), r"state\['gram'\]: expected a torch"),
        (lambda: state.merge(GramState(5)), "other: expected a state with d = 4, got 5"),
        (lambda: state.merge(GramState(4, "fast")), "other: expected a state with mode = 'exact'"),
        (lambda: state.merge(labelled), "other: expected a state with classes = None, got 3"),
        (lambda: state.mean, "state: expected at least one row"),
        (lambda: state.spectrum(), "state: expected at least one row"),
        (lambda: state.load_state_dict(GramState(5).state_dict()), r"state\['d'\]: expected 4, got 5"),
        (lambda: state.load_state_dict({"d": 4}), "state: expected the entries"),
        (lambda: state.load_state_dict({**state.state_dict(), "total": X[0]}), r"state\['total'\]: expected torch"),
        (lambda: state.all_reduce(), "group: expected an initialised torch.distributed"),
    ]  # fmt: skip
    for act, message in cases:
        with pytest.raises(InputError, match=message):
            act()
    for untouched in (state, labelled):
        assert untouched.n == 0 and not untouched.gram().any() and untouched.dtype is None
    assert not labelled.class_sums.any() and not labelled.class_counts.any()


# ---- saving and sharing ----


@pytest.mark.parametrize("classes", [None, 3])
def test_a_saved_state_goes_on_as_if_nothing_happened(classes):
    X, y = normal(200, 5), torch.arange(200) % 3 if classes else None
    part = (lambda a, b: (X[a:b], y[a:b])) if classes else (lambda a, b: (X[a:b],))
    whole = GramState(5, classes=classes).update(*part(0, 120)).update(*part(120, 200))
    first = GramState(5, classes=classes).update(*part(0, 120))

    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    restored = GramState(5, classes=classes)
    restored.load_state_dict(torch.load(file, weights_only=True))
    pickled = pickle.loads(pickle.dumps(first))
    for state in (restored, pickled, copy.deepcopy(first), first):
        same(state.update(*part(120, 200)), whole)
        assert float(state.gram_error()) == float(whole.gram_error())
        if classes:
            assert torch.equal(state.class_sums, whole.class_sums)


def test_states_of_inference_mode_live_on():
    X, y = integers(8, 3), torch.arange(8) % 2
    with torch.inference_mode():
        inside = GramState(3, classes=2).update(integers(8, 3), y)
        loaded = GramState(3, classes=2)
        loaded.load_state_dict(inside.state_dict())
        rows = GramState(12).update(integers(5, 12))
    inside.merge(loaded).update(X, y)
    assert inside.n == 24 and inside.class_counts.tolist() == [12, 12]
    assert torch.equal(inside.gram(), 3 * X.double().T @ X.double())
    rows.update_patches(integers(9 * 3, 1).view(1, 3, 3, 3), 2)
    assert rows.n == 9


def test_a_copy_is_a_state_of_its_own():
    state = GramState(3).update(integers(8, 3))
    copied = copy.copy(state).update(integers(4, 3))
    same(state, GramState(3).update(integers(8, 3)))
    assert copied.n == 12


def test_a_subclass_of_tensor_is_not_kept(tmp_path):
    class Marked(torch.Tensor):
        pass

    state = GramState(6).update(normal(40, 6).as_subclass(Marked))
    torch.save(state.state_dict(), tmp_path / "state.pt")
    assert type(state.gram()) is torch.Tensor and torch.load(tmp_path / "state.pt", weights_only=True)["n"] == 40


@pytest.mark.parametrize("scale", [1e79, 1e80, 1e120, 1e-82, 1e-120])
def test_the_floor_does_not_depend_on_the_scale(scale):
    X = normal(50, 4, dtype=torch.float64)
    X[:, 3] = X[:, 2]
    assert GramState(4).update(X * scale).floor == pytest.approx(GramState(4).update(X).floor, rel=1e-3)


def test_a_state_dict_is_a_copy():
    state = GramState(5).update(integers(8, 5))
    saved = state.state_dict()
    state.update(integers(8, 5, seed=1))
    other = GramState(5)
    other.load_state_dict(saved)
    other.update(integers(8, 5, seed=2))
    third = GramState(5)
    third.load_state_dict(saved)
    same(third, GramState(5).update(integers(8, 5)))


def _rank(rank: int, world: int, path: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=world)
    try:
        x = integers(4 * 16 * 5 * 5, 1).view(4, 16, 5, 5)
        patches = GramState(144).update_patches(x[2 * rank : 2 * rank + 2] + 8 * rank, 3, padding=1).all_reduce()
        torch.save(patches.state_dict(), f"{path}/patches-{rank}.pt")
        # Rank 0 has no rows in the second case, and shifts differ in the first.
        for case, sizes in enumerate([(300, 212), (0, 512)]):
            X, y = _shared(case)
            start = sum(sizes[:rank])
            mine = slice(start, start + sizes[rank])
            state = GramState(6, classes=4).update(X[mine], y[mine]).all_reduce()
            torch.save(state.state_dict(), f"{path}/{case}-{rank}.pt")
        empty = GramState(6).all_reduce()
        assert empty.n == 0 and empty.dtype is None
    finally:
        dist.destroy_process_group()


def _shared(case: int):
    X = integers(512, 6, seed=case)
    X[300:] += 64
    return X, torch.arange(512) % 4


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(_rank, args=(2, str(tmp_path)), nprocs=2)
    for case in (0, 1):
        X, y = _shared(case)
        whole = GramState(6, classes=4).update(X, y)
        for rank in (0, 1):
            state = GramState(6, classes=4)
            state.load_state_dict(torch.load(tmp_path / f"{case}-{rank}.pt", weights_only=True))
            same(state, whole)
            assert torch.equal(state.class_sums, whole.class_sums)
            assert torch.equal(state.class_counts, whole.class_counts)
            assert float(state.gram_error(True)) >= float(whole.gram_error(True)) * 0.1
    x = integers(4 * 16 * 5 * 5, 1).view(4, 16, 5, 5)
    x[2:] += 8
    whole = GramState(144).update_patches(x, 3, padding=1)
    for rank in (0, 1):
        state = GramState(144)
        state.load_state_dict(torch.load(tmp_path / f"patches-{rank}.pt", weights_only=True))
        assert state.n == whole.n
        torch.testing.assert_close(state.gram(), whole.gram(), rtol=0, atol=1e-9)
        assert torch.equal(state.gram(), state.update_patches(x[:0], 3, padding=1).gram())


def test_zeros_are_known_to_be_zeros():
    """Products of float64 can underflow, so that zeros may stand for 1e-200; those of float32 cannot."""
    single, double = GramState(6), GramState(6)
    single.update(torch.zeros(50, 6))
    double.update(torch.tensor([1e-200, -1e-200], dtype=torch.float64)[:, None].expand(2, 6).repeat(9, 1))
    for rank, interval in ((matrix_rank(single), (0, 0)), (matrix_rank(double), (0, 6))):
        assert (rank.lo, rank.hi) == interval
    for state in (single, double):
        again = GramState(6)
        again.load_state_dict(state.state_dict())
        assert matrix_rank(again).hi == matrix_rank(state).hi
    assert matrix_rank(single.merge(double)).hi == 6 and matrix_rank(double.merge(single)).hi == 6
