"""Eigenvalues and inertia: bounds that hold against extended precision, and fail where they are made smaller."""

import math

import extended_precision
import numpy as np
import pytest
import torch
from fastrank.kernels import backend
from fastrank.kernels.small_eigh import MOST_VECTORS, eigh_many, eigvalsh_many, inertia_many
from torch.library import opcheck

native = pytest.mark.skipif(not backend.native_status().available, reason=backend.native_status().reason or "-")
IMPLS = [impl for impl in ("reference", "native") if not backend.problem("eigvalsh_many", "cpu", impl)]
#: Around every vector, group of rows, panel and run of sums.
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33, 48, 63, 64, 65, 100, 129, 200, 257, 300]
U = 2.0**-53
#: Roundings of the norm that a step may count for: less than the 250 of the worst case.
SHARP = 100


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rotated(values, seed=0):
    """A symmetric matrix with about these eigenvalues."""
    values = torch.as_tensor(values, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))[0]
    G = Q * values @ Q.T
    return (G + G.T) / 2


def gaussian(m, seed):
    return torch.randn(m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def band(m, seed):
    x = gaussian(m, seed)
    return x.diagonal().diag() + x.diagonal(1).diag(1) + x.diagonal(1).diag(-1) if m > 1 else x


def beside(m):
    """Ones beside the diagonal."""
    ones = torch.ones(m - 1, dtype=torch.float64)
    return ones.diag(1) + ones.diag(-1) if m > 1 else torch.zeros(1, 1, dtype=torch.float64)


def wilkinson(m):
    return (torch.arange(m) - (m - 1) / 2).abs().double().diag() + beside(m)


def glued(m, part=7, glue=1e-9):
    """Wilkinson matrices side by side, all but uncoupled: clusters of as many eigenvalues as there are copies."""
    G = torch.block_diag(*[wilkinson(part)] * -(-m // part))[:m, :m].clone()
    for at in range(part, m, part):
        G[at, at - 1] = G[at - 1, at] = glue
    return G


def _powers(low, m):
    return torch.logspace(0, low, m, dtype=torch.float64)


FAMILIES = {
    "indefinite": lambda m, seed: gaussian(m, seed) + gaussian(m, seed).T,
    "Gram": lambda m, seed: gaussian(m, seed) @ gaussian(m, seed).T,
    "rank deficient": lambda m, seed: gaussian(m, seed)[:, : m // 2] @ gaussian(m, seed)[:, : m // 2].T,
    "graded": lambda m, seed: rotated(_powers(-20, m), seed),
    "graded along the diagonal": lambda m, seed: FAMILIES["indefinite"](m, seed) * torch.outer(*[_powers(-9, m)] * 2),
    "graded upwards": lambda m, seed: FAMILIES["graded along the diagonal"](m, seed).flip(0, 1),
    "clusters": lambda m, seed: rotated(1.0 + (torch.arange(m) % 3), seed),
    "cliff": lambda m, seed: rotated(torch.where(torch.arange(m) < m / 2, 1.0, 1e-14), seed),
    "diagonal": lambda m, seed: gaussian(m, seed).diagonal().diag(),
    "tridiagonal": band,
    "zero": lambda m, seed: torch.zeros(m, m, dtype=torch.float64),
    "identity": lambda m, seed: torch.eye(m, dtype=torch.float64),
    "ones": lambda m, seed: torch.ones(m, m, dtype=torch.float64),
    "reversed identity": lambda m, seed: torch.eye(m, dtype=torch.float64).flip(0),
    "Wilkinson": lambda m, seed: wilkinson(m),
    "glued Wilkinson": lambda m, seed: glued(m),
    "rank one": lambda m, seed: gaussian(m, seed)[:, :1] @ gaussian(m, seed)[:, :1].T,
    "huge": lambda m, seed: 1e300 * FAMILIES["Gram"](m, seed) / m**2,
    "tiny": lambda m, seed: 1e-300 * FAMILIES["Gram"](m, seed),
    "denormal": lambda m, seed: 1e-320 * FAMILIES["Gram"](m, seed),
    "one large": lambda m, seed: FAMILIES["Gram"](m, seed) + 1e12 * torch.ones(m, 1) @ torch.ones(1, m),
}  # fmt: skip


def lower(G):
    """What the ops may read: NaN above the diagonal."""
    return G.tril() + torch.full_like(G, math.nan).triu(1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("impl", IMPLS)
def test_bounds_hold_against_another_solver(impl, family):
    G = [FAMILIES[family](m, m) for m in SIZES]
    values, error = eigvalsh_many([lower(g) for g in G], impl)
    for g, v, e in zip(G, values, error, strict=True):
        # LAPACK's own error is a modest multiple of u times the norm; 2^-1074 is all there is of a denormal's digits.
        scale = float(g.abs().max()) or 1.0
        truth = torch.linalg.eigvalsh(g / scale) * scale
        own = 16 * len(g) * U * float(truth.abs().max()) + len(g) ** 2 * 2.0**-1074
        assert torch.all((v - truth).abs() <= e + own), f"{family} {len(g)}"
        assert torch.all(v[1:] >= v[:-1])
        # Sharp enough to be of use.
        assert (
            impl == "reference"
            or e <= (SHARP * len(g) + 600) * U * float(g.norm() / scale) * scale + len(g) * 2.0**-1021
        )
        for fraction in (-0.5, 0.0, 1e-6, 0.3, 0.999):
            shift = fraction * truth[-1:]
            count, slack = inertia_many([lower(g)], shift, impl)
            below, above = ((truth > shift + side * (slack + own)).sum() for side in (1, -1))
            assert below <= count[0] <= above, f"{family} {len(g)} {fraction}"


def many(sizes, seeds):
    for m in sizes:
        for name in FAMILIES:
            if name not in ("huge", "tiny", "denormal"):
                yield m, torch.stack([FAMILIES[name](m, seed) for seed in range(seeds)])


@extended_precision.needed
@pytest.mark.parametrize("impl", IMPLS)
def test_eigenvalue_bounds_hold_in_extended_precision_and_a_thousandth_does_not(impl):
    broken = 0
    for _, G in many((2, 3, 5, 8), 25):
        truth = extended_precision.eigenvalues(G.numpy())
        values, error = eigvalsh_many(list(G), impl)
        off = np.abs(np.stack([v.numpy() for v in values]) - truth).max(1)
        own = 64 * 2.0**-64 * np.sqrt((G.numpy() ** 2).sum((1, 2)))
        assert (off <= error.numpy() + own).all()
        broken += int((off > error.numpy() / 1000 + own).sum())
    assert broken > 0


#: Spectra that are hard to tell apart or to interpolate in.
DIAGONALS = {
    "spread": torch.linspace(-1, 1, 101),
    "equal": torch.full((70,), 0.7),
    "equal in threes": torch.arange(90) // 3 / 31.0 - 0.4,
    "pairs that differ in a few digits": torch.arange(80) // 2 + (torch.arange(80) % 2) * 2.0**-40,
    "pairs one digit apart": 1 + torch.arange(80) // 2 * 2.0**-9 + (torch.arange(80) % 2).double() * 2.0**-50,
    "one beside a cluster": torch.cat([torch.tensor([-1.0]), 1e-7 * torch.arange(60).double(), torch.tensor([1e-3])]),
    "geometric": torch.logspace(0, -300, 120, dtype=torch.float64),
    "geometric around 0": torch.cat([torch.logspace(0, -16, 50), -torch.logspace(0, -16, 50), torch.zeros(3)]),
    "towards a point": 0.3 + torch.logspace(-1, -14, 64, dtype=torch.float64),
    "zeros": torch.cat([torch.zeros(64), torch.ones(1)]),
    "negative zeros": torch.cat([-torch.zeros(33), torch.ones(1)]),
}


@native
@pytest.mark.parametrize("name", DIAGONALS)
def test_values_are_found_to_a_few_roundings(name):
    """Far closer than the bound, most of which is the reduction's: a diagonal matrix needs none, and its eigenvalues
    are known."""
    truth = DIAGONALS[name].double()
    d = truth[torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))]
    for scale in (1.0, 2.0**1000, 2.0**-700):
        (values,), error = eigvalsh_many([lower((d * scale).diag())])
        off = (values / scale - truth.sort().values).abs().max()
        assert off <= 8 * U * truth.abs().max() and off <= error / scale <= 64 * U * truth.abs().max()


@native
@extended_precision.needed
def test_clusters_of_glued_matrices_are_found_to_a_few_roundings():
    G = torch.stack([glued(35, 7, glue) for glue in (0.0, 1e-14, 1e-9, 1e-3, 1.0)])
    truth = extended_precision.eigenvalues(G.numpy())
    for g, t in zip(G, truth, strict=True):
        (values,), _ = eigvalsh_many([g])
        assert np.abs(values.numpy() - t).max() <= 16 * U * float(g.norm())


@extended_precision.needed
@pytest.mark.parametrize("impl", IMPLS)
def test_inertia_holds_in_extended_precision_and_a_thousandth_of_its_slack_does_not(impl):
    broken = 0
    for m, G in many((2, 4, 7), 12):
        truth = extended_precision.eigenvalues(G.numpy())
        own = 64 * 2.0**-64 * np.sqrt((G.numpy() ** 2).sum((1, 2)))
        # At the eigenvalues themselves, where rounding decides.
        for j in range(m):
            shift = torch.from_numpy(truth[:, j].astype(np.float64))
            count, slack = (x.numpy() for x in inertia_many(list(G), shift, impl))
            for share in (1.0, 1e-3):
                reach = slack * share + own
                low = (truth > (shift.numpy() + reach)[:, None]).sum(1)
                high = (truth > (shift.numpy() - reach)[:, None]).sum(1)
                right = (low <= count) & (count <= high)
                if share == 1:
                    assert right.all()
                else:
                    broken += int((~right).sum())
    assert broken > 0


@pytest.mark.parametrize("impl", IMPLS)
def test_inertia_is_exact_where_eigenvalues_are_far_and_its_slack_small(impl):
    for m in (3, 16, 40, 100, 300):
        values = torch.cat([torch.full((m // 3,), -2.0), torch.linspace(1, 3, m - m // 3)])
        G = rotated(values.double(), m)
        count, slack = inertia_many([G] * 3, torch.tensor([0.0, 0.5, -1.0], dtype=torch.float64), impl)
        assert count.tolist() == [m - m // 3] * 3
        assert slack.max() < (1e-7 if impl == "reference" else 1e-9)


@native
@pytest.mark.parametrize("family", ["indefinite", "rank deficient", "graded", "one large"])
def test_larger_matrices_hold_too(family):
    """Wider panels of the factorisation, several runs of a row's sums."""
    for m in (513, 600):
        G = FAMILIES[family](m, m)
        truth = torch.linalg.eigvalsh(G)
        own = 16 * m * U * truth.abs().max()
        (values,), error = eigvalsh_many([lower(G)])
        assert torch.all((values - truth).abs() <= error + own)
        shifts = torch.cat([truth[[0, m // 3, m // 2, m - 2]], truth[m // 2 :][:1] * 0.5])
        count, slack = inertia_many([lower(G)] * len(shifts), shifts)
        for shift, c, s in zip(shifts, count, slack, strict=True):
            assert (truth > shift + s + own).sum() <= c <= (truth > shift - s - own).sum()
            assert s < 1e-6 * truth.abs().max()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_pivot_of_zero_is_told_by_the_slack(impl):
    """[[0, 1], [1, 0]] has no L D L^T with 1 x 1 pivots: its eigenvalues are -1 and 1."""
    count, slack = inertia_many([torch.eye(2, dtype=torch.float64).flip(0)], torch.zeros(1, dtype=torch.float64), impl)
    assert int(count) == 1 or slack >= 1
    # Rank one less than its size: the last pivot is rounding noise, which is bounded instead of divided by.
    count, slack = inertia_many([torch.ones(40, 40).double()], torch.full((1,), 1e-3).double(), impl)
    assert int(count) == 1 and slack < 1e-9


@native
def test_neither_company_nor_order_nor_threads_change_a_bit():
    G = [FAMILIES["Gram"](m, m) for m in (300, 3, 64, 24, 1, 129, 17, 40, 2, 90, 25)]
    shift = torch.rand(len(G), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    small = [g for g in G if len(g) <= MOST_VECTORS]
    alone = [eigvalsh_many([g]) for g in G], [inertia_many([g], s[None]) for g, s in zip(G, shift, strict=True)]
    alone_vectors = [eigh_many([g]) for g in small]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for order in (range(len(G)), reversed(range(len(G)))):
            order = list(order)
            values, error = eigvalsh_many([G[i] for i in order])
            count, slack = inertia_many([G[i] for i in order], shift[order])
            for at, i in enumerate(order):
                assert torch.equal(values[at], alone[0][i][0][0]) and error[at] == alone[0][i][1][0]
                assert count[at] == alone[1][i][0][0] and slack[at] == alone[1][i][1][0]
        for (v, q), v1, q1 in zip(alone_vectors, *eigh_many(small), strict=True):
            assert torch.equal(v[0], v1) and torch.equal(q[0], q1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_not_finite_stays_with_its_matrix(impl, bad):
    for m, i, j in ((1, 0, 0), (5, 3, 1), (40, 39, 39), (40, 20, 3)):
        good = FAMILIES["Gram"](m, 0)
        broken = good.clone()
        broken[i, j] = bad
        values, error = eigvalsh_many([broken, good], impl)
        assert values[0].isnan().all() and error[0].isnan() and values[1].isfinite().all() and error[1].isfinite()
        count, slack = inertia_many([broken, good], torch.ones(2, dtype=torch.float64), impl)
        assert count[0] == -1 and slack[0] == math.inf and count[1] >= 0 and slack[1].isfinite()
        values, vectors = eigh_many([broken, good], impl)
        assert values[0].isnan().all() and vectors[0].isnan().all() and vectors[1].isfinite().all()
    count, slack = inertia_many([good], torch.tensor([bad], dtype=torch.float64), impl)
    assert count[0] == -1 and slack[0] == math.inf


@native
def test_a_value_beyond_the_largest_double_is_said():
    (values,), (error,) = eigvalsh_many([torch.full((4, 4), 1e308, dtype=torch.float64)], "native")
    assert values[-1] == math.inf and error == math.inf


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("impl", IMPLS)
def test_vectors_are_orthonormal_and_diagonalise(impl, family):
    G = [FAMILIES[family](m, m) for m in (1, 2, 5, 8, 13, 27, 40, 64)]
    for g, v, q in zip(G, *eigh_many([lower(g) for g in G], impl), strict=True):
        scale = float(g.abs().max()) or 1.0
        m, g, v = len(g), g / scale, v / scale
        assert (q.T @ q - torch.eye(m)).abs().max() < 64 * m * U
        if family != "denormal":  # no digits to hold
            assert (g @ q - q * v).norm() <= 64 * m * U * g.norm()
        assert torch.all(v[1:] >= v[:-1])


def test_any_strides_and_nothing_is_overwritten():
    G = FAMILIES["Gram"](20, 1)
    wide = torch.full((20, 25), math.nan, dtype=torch.float64)
    wide[:, :20] = G
    before = wide.clone()
    expected, error = eigvalsh_many([G])
    for view in (wide[:, :20], G.T, G.repeat_interleave(2, 1)[:, ::2], G.requires_grad_()):
        values, e = eigvalsh_many([view])
        assert torch.equal(values[0], expected[0]) and e == error and not values[0].requires_grad
    assert torch.equal(wide.nan_to_num(), before.nan_to_num())


def test_empty_lists_and_matrices():
    none = torch.empty(0, dtype=torch.float64)
    empty = torch.empty(0, 0, dtype=torch.float64)
    for impl in IMPLS:
        assert eigvalsh_many([], impl)[0] == [] and eigh_many([], impl) == ([], [])
        assert inertia_many([], none, impl)[0].shape == (0,)
        values, error = eigvalsh_many([empty, torch.ones(1, 1).double()], impl)
        assert values[0].shape == (0,) and error[0] == 0 and values[1] == 1
        assert inertia_many([empty], torch.zeros(1).double(), impl)[0].tolist() == [0]


@pytest.mark.parametrize("impl", IMPLS)
def test_operators_are_well_formed(impl):
    G = [FAMILIES["Gram"](m, 0) for m in (3, 6)]
    ops, shift = torch.ops.fastrank, torch.ones(2, dtype=torch.float64)
    opcheck(ops.eigvalsh_many.default, (G, impl))
    opcheck(ops.inertia_many.default, (G, shift, impl))
    opcheck(ops.eigh_many.default, (G, impl))


E = torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (TypeError, "G: expected a list of tensors, got Tensor", lambda: eigvalsh_many(E)),
        (TypeError, "G: expected a list of tensors, got int at 1", lambda: eigvalsh_many([E, 3])),
        (TypeError, "G: expected dense float64 matrices, got torch.float32 at 0", lambda: eigvalsh_many([E.float()])),
        (TypeError, "got torch.sparse_coo at 0", lambda: eigvalsh_many([E.to_sparse()])),
        (ValueError, r"square matrices, got shape \(2, 3\) at 1", lambda: inertia_many([E, E[:2]], torch.ones(2))),
        (TypeError, "shift: expected float64", lambda: inertia_many([E], torch.ones(1))),
        (ValueError, r"shift: expected shape \(1,\)", lambda: inertia_many([E], torch.ones(2).double())),
        (ValueError, "G: expected at most 64 rows, got 65", lambda: eigh_many([torch.eye(65).double()])),
        (ValueError, "impl: expected one of", lambda: eigvalsh_many([E], "fast")),
    ],
)
def test_mistakes_are_named(kind, message, call):
    with pytest.raises(kind, match=message):
        call()
