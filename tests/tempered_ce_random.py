"""Random problems for the tempered cross-entropy, and one check of them all: `problems()` for hypothesis, `check`.

A problem is any combination of shape, memory layout of every tensor, dtypes, target form, temperature form, options and
odd values. The truth is the reference in float64, over rows; an implementation may err by the a-priori bound of
tempered_ce_conformity.py, plus what summing rows and dividing by their count adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import tempered_ce_conformity as suite
import torch
from fastrank.kernels.tempered_ce import reference, tempered_cross_entropy
from hypothesis import strategies as st
from torch import Tensor

inf, nan = float("inf"), float("nan")

LAYOUTS = ("contiguous", "permuted", "sliced", "shifted", "expanded")
#: What a few logits are replaced by: masks, infinities, NaN, numbers near the ends of the dtype.
ODD_VALUES = ("none", "none", "masked", "all masked", "lowest", "inf", "nan", "subnormal", "ties")


@dataclass(frozen=True)
class Problem:
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    scale: float
    times_T: bool
    offset: float
    odd: str
    target: str
    target_layout: str
    label_dtype: torch.dtype
    ignore_index: int
    T: float
    T_form: str
    T_layout: str
    T_dtype: torch.dtype
    weight: str
    reduction: str
    label_smoothing: float
    scale_gradient: str | None
    stats: bool
    seed: int


@st.composite
def problems(draw) -> Problem:
    c = draw(st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 94, 100, 127, 128, 129, 257, 1000, 1025])))
    n, inner = draw(st.integers(0, 6)), draw(st.lists(st.integers(0, 4), max_size=2))
    shape = draw(st.sampled_from([(c,), (n, c), (n, c), (n, c, *inner)]))
    dtype = draw(st.sampled_from(suite.DTYPES))
    target = draw(st.sampled_from(["index", "index", "mixed", "probabilities"]))
    usual = st.sampled_from([1e-2, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0, 1000.0])
    T = draw(usual if dtype == torch.float16 else st.one_of(usual, usual, usual, st.sampled_from([1e-30, 1e-9, 1e30])))
    return Problem(
        shape=shape,
        dtype=dtype,
        layout=draw(st.sampled_from(LAYOUTS)),
        scale=draw(st.sampled_from([0.0, 0.1, 3.0, 30.0])),
        times_T=not 1e-2 <= T <= 1e3 or draw(st.booleans()),
        offset=draw(st.sampled_from([0.0, 0.0, 1e4, -1e4])),
        odd=draw(st.sampled_from(ODD_VALUES)),
        target=target,
        target_layout=draw(st.sampled_from(LAYOUTS)),
        label_dtype=draw(st.sampled_from([torch.int64, torch.int64, torch.int32, torch.int16, torch.uint8]))
        if c <= 255
        else torch.int64,
        ignore_index=draw(st.sampled_from([-100, 0, c - 1, -1, 7])) if target == "index" else -100,
        T=T,
        T_form=draw(st.sampled_from(["number", "0-d", "0-d", "per sample", "per sample"])),
        T_layout=draw(st.sampled_from(LAYOUTS)),
        T_dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        weight=draw(
            st.sampled_from(["none", "none", "float32", "float64", "bfloat16", "strided", "expanded", "zeros"])
        ),
        reduction=draw(st.sampled_from(["none", "mean", "sum"])),
        label_smoothing=draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
        scale_gradient=draw(st.sampled_from([None, None, "T", "T2"])),
        stats=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def laid_out(x: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """The values of `x` in another memory layout ("expanded": those of its first slice along one dimension)."""
    if x.dim() == 0 or kind == "contiguous":
        return x.contiguous()
    if kind == "permuted":
        order = torch.randperm(x.dim(), generator=generator).tolist()
        return x.permute(order).contiguous().permute([order.index(i) for i in range(x.dim())])
    if kind == "expanded":
        dim = int(torch.randint(x.dim(), (), generator=generator))
        return x.narrow(dim, 0, min(1, x.shape[dim])).expand(x.shape)
    filler = nan if x.is_floating_point() else 99  # a label out of range
    if kind == "shifted":  # no alignment but the element's
        memory = torch.full((x.numel() + 1,), filler, dtype=x.dtype)
        return memory[1:].view(x.shape).copy_(x)
    wide = torch.full([2 * size + 1 for size in x.shape], filler, dtype=x.dtype)
    return wide[tuple(slice(1, None, 2) for _ in x.shape)].copy_(x)


@dataclass(frozen=True)
class Inputs:
    input: Tensor
    target: Tensor | tuple[Tensor, Tensor, float | Tensor]
    T: float | Tensor
    weight: Tensor | None


def build(problem: Problem) -> Inputs:
    generator = torch.Generator().manual_seed(problem.seed)
    shape, acc = problem.shape, suite.ACC.get(problem.dtype, torch.float32)
    c, samples = shape[min(1, len(shape) - 1)], shape[:1] + shape[2:] if len(shape) > 1 else ()
    # Every number is one of the accumulator's, whatever dtype holds it.
    T = float(torch.tensor(problem.T, dtype=problem.T_dtype if problem.T_form != "number" else acc).to(acc))
    z = problem.scale * (T if problem.times_T else 1) * torch.randn(shape, generator=generator, dtype=torch.float64)
    if 1e-2 <= T <= 1e3:
        z = z + problem.offset
    labels = [torch.randint(c, samples, generator=generator) for _ in range(2)]
    z = _with_odd_values(z.to(problem.dtype), problem, labels[0], generator)
    labels = [laid_out(y.to(problem.label_dtype), problem.target_layout, generator) for y in labels]
    if problem.target == "probabilities":
        q = torch.rand(shape, generator=generator).to([acc, problem.dtype, torch.float64][problem.seed % 3]).to(acc)
        target = laid_out(q, problem.target_layout, generator)
    elif problem.target == "mixed":
        share = torch.rand(samples[:1], generator=generator) if problem.seed % 2 else torch.tensor(0.25)
        target = (*labels, share.to(acc) if problem.seed % 3 else float(share.flatten()[0]) if share.numel() else 0.5)
    else:
        ignored = (torch.rand(samples, generator=generator) < 0.25) & (problem.ignore_index != -100)
        ignored &= torch.tensor(problem.ignore_index >= 0 or problem.label_dtype != torch.uint8)
        # An ignored label is one like any other to a layout.
        target = labels[0].masked_fill(ignored, problem.ignore_index) if ignored.any() else labels[0]
    return Inputs(laid_out(z, problem.layout, generator), target, _temperature(problem, T, generator),
                  _weight(problem, c, acc, generator))  # fmt: skip


def _with_odd_values(z: Tensor, problem: Problem, label: Tensor, generator: torch.Generator) -> Tensor:
    if problem.odd == "none" or not z.numel():
        return z
    some = torch.rand(z.shape, generator=generator) < 0.2
    if problem.odd == "ties":
        return z.masked_fill(some, float(z.flatten()[0]))
    if problem.odd == "subnormal":
        tiny = torch.finfo(z.dtype)
        return torch.where(some, (torch.randn(z.shape, generator=generator) * 8).round() * tiny.tiny * tiny.eps, z).to(
            z.dtype
        )
    row = label.unsqueeze(min(1, z.dim() - 1))
    is_label = torch.zeros_like(some).scatter(min(1, z.dim() - 1), row, True) if z.dim() else some
    if (
        problem.odd == "lowest"
    ):  # finite in the logits' dtype, after the division perhaps not, but in the truth's float64
        plain = (
            (problem.dtype != torch.float64 or problem.T >= 1)
            and problem.target == "index"
            and not problem.label_smoothing
            and problem.weight != "zeros"
        )
        return z.masked_fill(some & ~is_label, torch.finfo(z.dtype).min) if plain else z
    if problem.odd == "masked":
        return z.masked_fill(some & ~is_label, -inf)
    value = {"all masked": -inf, "inf": inf, "nan": nan}[problem.odd]
    if problem.odd == "all masked":
        some = (torch.rand(label.shape, generator=generator) < 0.3).unsqueeze(min(1, z.dim() - 1)).expand(z.shape)
    return z.masked_fill(some, value)


def _temperature(problem: Problem, T: float, generator: torch.Generator) -> float | Tensor:
    if problem.T_form == "number":
        return T
    acc = suite.ACC.get(problem.dtype, torch.float32)
    if problem.T_form == "0-d" or len(problem.shape) == 1:
        return torch.tensor(T, dtype=problem.T_dtype)
    n = problem.shape[0]
    near = (1 + torch.rand(n, generator=generator).round(decimals=2)) if 1e-2 <= problem.T <= 1e3 else torch.ones(n)
    values = (T * near).to(acc).to(problem.T_dtype)
    values = values.to(acc).to(problem.T_dtype)
    return laid_out(values, problem.T_layout, generator)


def _weight(problem: Problem, c: int, acc: torch.dtype, generator: torch.Generator) -> Tensor | None:
    if problem.weight == "none":
        return None
    w = (0.5 + torch.rand(c, generator=generator)).to(torch.bfloat16 if problem.weight == "bfloat16" else acc)
    if problem.weight == "zeros":
        w[torch.rand(c, generator=generator) < 0.3] = 0
    w = laid_out(w, {"strided": "sliced", "expanded": "expanded"}.get(problem.weight, "contiguous"), generator)
    return w.double() if problem.weight == "float64" else w


def _rows(x: Tensor) -> Tensor:
    """[C], [N, C] or [N, C, d1, ...] as [rows, C]."""
    last = x[None] if x.dim() == 1 else x.movedim(1, -1)
    return last.reshape(last.shape[:-1].numel(), last.shape[-1])


def check(problem: Problem, impl: str) -> None:
    given = build(problem)
    z = given.input.detach().requires_grad_()
    T = given.T.detach().requires_grad_() if isinstance(given.T, Tensor) else given.T
    options = {"reduction": problem.reduction, "label_smoothing": problem.label_smoothing}
    result = tempered_cross_entropy(
        z, given.target, T, given.weight, problem.ignore_index, **options,
        scale_gradient=problem.scale_gradient, return_stats=problem.stats, impl=impl,
    )  # fmt: skip
    loss, stats = result if problem.stats else (result, ())
    generator = torch.Generator().manual_seed(problem.seed + 1)
    g = torch.randn(loss.shape, generator=generator).to(loss.dtype)
    if problem.seed % 4 == 0:
        g = torch.ones_like(loss)  # what a gradient out of the forward pass is for
    moved, *slopes = torch.autograd.grad(loss, [z, T] if isinstance(T, Tensor) else [z], g)

    # The same in float64, over rows, for the grad_loss that reaches each row.
    rows = _rows(given.input.detach())
    n, c = rows.shape
    eps = suite.accumulator_eps(problem.dtype)
    target, second, share, used, count = _targets(problem, given, n, c)
    weight = None if given.weight is None else given.weight.double()
    inner = n // problem.shape[0] if len(problem.shape) > 1 and problem.shape[0] else 1
    T_rows = given.T.double() if isinstance(given.T, Tensor) else torch.tensor(given.T, dtype=torch.float64)
    T_rows = (T_rows.repeat_interleave(inner) if T_rows.dim() else T_rows.expand(n)).detach().requires_grad_()
    exact = rows.double().requires_grad_()
    exact_target = target if second is None else (target, second, share)
    true_rows = reference.tempered_cross_entropy(
        exact, exact_target, T_rows, weight, -100, "none", problem.label_smoothing, problem.scale_gradient
    )
    divisor = count if problem.reduction == "mean" else 1.0
    per_row = (g.double().flatten() / divisor).expand(n)
    true_grad, true_slope = torch.autograd.grad(true_rows, (exact, T_rows), per_row)
    true_rows = true_rows.detach()
    known = true_rows.isfinite()
    bounds = suite.bound(
        rows, target, second, share, T_rows.detach(), weight, per_row, problem.label_smoothing,
        problem.scale_gradient, true_grad,
    )  # fmt: skip
    b_loss, b_grad, b_slope = (b.nan_to_num(0) for b in bounds)  # of ignored rows and of those that are not finite

    # The loss.
    true_loss, budget = true_rows, b_loss
    if problem.reduction != "none":
        true_loss = true_rows.sum() / divisor
        budget = (b_loss.sum() + eps * true_rows.abs().sum()) / divisor + 2 * eps * true_loss.abs()
    _within(loss.flatten(), true_loss.flatten(), budget, problem, "loss")
    if problem.reduction == "mean" and not count > 0:
        assert (_rows(moved)[~used] == 0).all(), f"{problem}: a mean over nothing moves ignored logits"
        return

    # The gradient of the logits: NaN for rows without a largest one, anything where the loss alone is not finite.
    got, hopeless = _rows(moved.detach()), used & ~rows.amax(1).isfinite()
    assert (got[~used] == 0).all(), f"{problem}: ignored logits have a gradient"
    assert got[hopeless].isnan().all(), f"{problem}: a row of NaN has a gradient"
    _within(got[known], true_grad[known], (b_grad + 2 * eps * true_grad.abs())[known], problem, "gradient")

    # That of the temperature.
    if slopes and known.all():
        terms, room = true_slope, b_slope
        if given.T.dim() == 0:
            true_T, room, size = terms.sum(), room.sum(), terms.abs().sum()
        else:
            true_T, room, size = (x.reshape(len(given.T), inner).sum(1) for x in (terms, room, terms.abs()))
        rounding = torch.finfo(given.T.dtype)
        room = room + eps * (2 + n) * size + rounding.eps * true_T.abs() + rounding.smallest_normal
        _within(slopes[0].flatten(), true_T.flatten(), room, problem, "temperature's gradient")

    if problem.stats:
        _check_stats(problem, stats, rows, exact_target, T_rows.detach())


def _targets(problem: Problem, given: Inputs, n: int, c: int):
    """(target, second, share) of rows in float64, ignored labels -100; which rows count; what a mean divides by."""
    everything = torch.ones(n, dtype=torch.bool)
    if problem.target == "probabilities":
        return _rows(given.target).double(), None, None, everything, float(n)
    if problem.target == "mixed":
        first, second, share = given.target
        share = torch.as_tensor(share, dtype=torch.float64)
        share = share.repeat_interleave(n // share.shape[0]) if share.dim() and share.shape[0] else share.expand(n)
        return first.long().flatten(), second.long().flatten(), share, everything, float(n)
    y = given.target.long().flatten()
    used = y != problem.ignore_index
    y = torch.where(used, y, -100)
    count = float(used.sum()) if given.weight is None else float(given.weight.double()[y[used]].sum())
    return y, None, None, used, count


def _check_stats(problem, stats, rows, target, T):
    c = rows.shape[1]
    eps, z = suite.accumulator_eps(problem.dtype), rows.double()
    truth = reference.row_stats(z, target, T, -100)
    x = (z - z.amax(1, keepdim=True)) / T[:, None]
    p, X = x.softmax(1), torch.where(z.isneginf(), 0, -x)
    mean_X, mean_X2 = suite.mean_distances(p, X)
    K, A = suite.roundings(problem.dtype, c, mean_X)
    budgets = {
        "logsumexp": A + 2 * (z.amax(1) / T).abs() + truth.logsumexp.abs(),
        "max_prob": A * truth.max_prob,
        "entropy": A + K * mean_X2 + 2 * A * mean_X + truth.entropy.abs(),
        "sum_z": (c / 2 + 1) * z.abs().sum(1),
        "sum_z2": (c / 2 + 2) * truth.sum_z2,
    }
    for name, budget in budgets.items():
        tiny = torch.finfo(torch.float32).tiny * c
        _within(getattr(stats, name).flatten(), getattr(truth, name), eps * budget + tiny, problem, name)
    if problem.target != "probabilities" or problem.target_layout != "expanded":  # which of equal ones is anyone's
        assert torch.equal(stats.target_rank.flatten(), truth.target_rank), f"{problem}: target_rank"


def _within(got: Tensor, want: Tensor, budget: Tensor, problem: Problem, name: str) -> None:
    assert got.shape == want.shape, f"{problem}: {name} of shape {list(got.shape)}, expected {list(want.shape)}"
    got, want = got.detach().double(), want.detach()
    # What the truth's own dtype has no number for.
    beyond = want.abs() > torch.finfo(suite.ACC.get(problem.dtype, torch.float32)).max * (1 - 1e-3)
    if name == "gradient" or name.startswith("temp"):
        beyond = want.abs() > torch.finfo(problem.dtype).max * (1 - 1e-2)
    finite = want.isfinite() & ~beyond
    same = torch.equal(got.isnan(), want.isnan()) and torch.equal(got[want.isinf()], want[want.isinf()])
    assert same, f"{problem}: {name}: {got.tolist()[:8]} instead of {want.tolist()[:8]}"
    error, budget = (got - want).abs()[finite], budget.nan_to_num(0).expand_as(want)[finite]
    worst = (error - budget).max().item() if error.numel() else 0.0
    assert worst <= 0, f"{problem}: {name} off by {error.max():.3e}, {worst:.3e} above its budget"
