"""torch's cross-entropy as the oracle: the same values, shapes and NaN for every combination of options, and the same
input refused. Where the two part on purpose is in `OURS_TAKES` and `OURS_REFUSES`, and in the function's docstring."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastrank.kernels.tempered_ce import tempered_cross_entropy

IMPLS = ("reference", "native")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(7,), (1,), (5, 7), (3, 1), (0, 7), (4, 7, 3), (2, 7, 0), (0, 7, 2), (2, 7, 3, 2)]
inf, nan = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def samples(shape):
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def combinations(probabilities):
    """Every option; ignore_index none of the labels, a valid class, and a negative one that is among them."""
    ignored = (-100,) if probabilities else (-100, 0, -1)
    return itertools.product(("none", "mean", "sum"), (False, True), (0.0, 0.2, 1.0), ignored)


def in_float64(options):
    return {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in options.items()}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_torch_for_every_option(shape, dtype, probabilities, impl):
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    eps, rounding = torch.finfo(acc).eps, torch.finfo(dtype)
    c = shape[min(1, len(shape) - 1)]
    temperatures = itertools.cycle((1.0, 1.0, 2.5, 1.0, 2.5))  # as many as no option has values
    for reduction, weighted, smoothing, ignore in combinations(probabilities):
        T = next(temperatures)
        z = (3 * torch.randn(shape)).to(dtype).requires_grad_()
        weight = torch.rand(c).to(acc) if weighted else None
        if probabilities:
            target = torch.rand(shape).to(acc)  # rows need not sum to 1
        else:
            target = torch.randint(c, samples(shape))
            target = torch.where(torch.rand(target.shape) < 0.3, ignore, target) if ignore != -100 else target
        options = {"weight": weight, "ignore_index": ignore, "reduction": reduction, "label_smoothing": smoothing}
        exact = z.detach().double().requires_grad_()
        truth = F.cross_entropy(exact / T, target.double() if probabilities else target, **in_float64(options))
        ours = tempered_cross_entropy(z, target, T, **options, impl=impl)
        assert (ours.dtype, ours.shape) == (acc, truth.shape)
        g = torch.randn_like(ours)
        gradient, expected = torch.autograd.grad(ours, z, g)[0], torch.autograd.grad(truth, exact, g.double())[0]
        frozen = tempered_cross_entropy(z.detach(), target, T, **options, impl=impl)
        assert torch.equal(frozen.nan_to_num(-1), ours.nan_to_num(-1)) and not frozen.requires_grad
        # At most 7 classes and X < 40: log S and p are right to 2 X + 7 + 8 roundings, a sum of 24 rows to 24 more. A
        # row of probabilities weighs up to 7, its grad_loss up to 4. Near p = 1 torch's gradient cancels, to p's eps.
        mass = 7 if probabilities else 1
        summed = max(1, math.prod(samples(shape))) if reduction == "sum" else 1
        say = partial("{} {}".format, options)
        torch.testing.assert_close(
            ours.double(), truth, rtol=128 * eps, atol=128 * eps * mass * summed, equal_nan=True, msg=say
        )
        atol = 128 * eps * mass * 4 + rounding.smallest_normal
        torch.testing.assert_close(gradient.double(), expected, rtol=rounding.eps, atol=atol, equal_nan=True, msg=say)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_three_hundred_thousand_classes(dtype, impl):
    c = 300_000
    z = (3 * torch.randn(c, 3)).to(dtype)
    weight = torch.rand(c)
    for view, target in ((z[:, 0], torch.tensor(c - 1)), (z.t().contiguous(), torch.tensor([0, c - 1, 77])),
                         (z.t(), torch.tensor([5, 6, c - 1]))):  # fmt: skip
        view = view.detach().requires_grad_()
        exact = view.detach().double().requires_grad_()
        ours = tempered_cross_entropy(view, target, 2.0, weight, label_smoothing=0.1, impl=impl)
        truth = F.cross_entropy(exact / 2, target, weight.double(), label_smoothing=0.1)
        # Sums of c terms, most of them alike, in 4 lanes or more or in chunks of 64: c / 8 roundings of half an eps.
        torch.testing.assert_close(ours.double(), truth, rtol=c / 8 * 6e-8, atol=0)
        got, want = torch.autograd.grad(ours, view)[0].double(), torch.autograd.grad(truth, exact)[0]
        assert (
            (got - want).abs() <= want.abs() * torch.finfo(dtype).eps + c / 8 * 6e-8 * want.abs().amax(-1, True)
        ).all()


# ---- what is taken and what is refused ----

Z, Y, P = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(4, 3)
MASKED = torch.tensor([[1.0, -inf, 0.0]])


def shaped(*shape):
    return torch.zeros(shape, dtype=torch.long)


#: (input, target, options)
SAME = {
    **{f"{dtype} labels": (Z, Y.to(dtype), {}) for dtype in (
        torch.int64, torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float32,
        torch.float16, torch.float64)},
    "labels [3]": (Z, Y[:3], {}),
    "labels [1, 4]": (Z, Y[None], {}),
    "labels [4, 1]": (Z, Y[:, None], {}),
    "labels []": (Z, Y[0], {}),
    "labels [5]": (Z, shaped(5), {}),
    "labels [4, 3]": (Z, shaped(4, 3), {}),
    "images, labels [2, 4]": (torch.randn(2, 3, 4), shaped(2, 4), {}),
    "images, labels [2, 3]": (torch.randn(2, 3, 4), shaped(2, 3), {}),
    "a 0-d input": (Z[0, 0], Y[0], {}),
    "no class": (Z[:, :0], Y, {}),
    "integer logits": (Z.long(), Y, {}),
    "bool logits": (Z.bool(), Y, {}),
    "complex logits": (Z.to(torch.complex64), Y, {}),
    "float8 logits": (Z.to(torch.float8_e4m3fn), Y, {}),
    "label C": (Z, torch.tensor([0, 3, 2, 0]), {}),
    "label C, smoothing": (Z, torch.tensor([0, 3, 2, 0]), {"label_smoothing": 0.1}),
    "label -1": (Z, torch.tensor([0, -1, 2, 0]), {}),
    "label -1 ignored": (Z, torch.tensor([0, -1, 2, 0]), {"ignore_index": -1}),
    "label 5 ignored": (Z, torch.tensor([0, 5, 2, 0]), {"ignore_index": 5}),
    "uint8 label 255 ignored": (Z, torch.tensor([0, 255, 2, 0], dtype=torch.uint8), {"ignore_index": 255}),
    "uint8 label 255, -1 ignored": (Z, torch.tensor([0, 255, 2, 0], dtype=torch.uint8), {"ignore_index": -1}),
    "uint8 labels, 256 ignored": (Z, Y.to(torch.uint8), {"ignore_index": 256}),
    **{f"ignore_index {value!r}": (Z, Y, {"ignore_index": value}) for value in (
        0, 2, -1, 5, 2**40, 1.0, True, None, "0", [0])},
    "ignore_index 0, probabilities": (Z, P, {"ignore_index": 0}),
    "ignore_index 5, probabilities": (Z, P, {"ignore_index": 5}),
    "ignore_index -1, probabilities": (Z, P, {"ignore_index": -1}),
    "weight [1]": (Z, Y, {"weight": torch.ones(1)}),
    "weight [4]": (Z, Y, {"weight": torch.ones(4)}),
    "weight [3, 1]": (Z, Y, {"weight": torch.ones(3, 1)}),
    "weight [1, 3]": (Z, Y, {"weight": torch.ones(1, 3)}),
    "weight [], a number in a tensor": (Z, Y, {"weight": torch.tensor(1.0)}),
    "weight [], probabilities": (Z, P, {"weight": torch.tensor(1.0)}),
    "weight [1], probabilities": (Z, P, {"weight": torch.ones(1)}),
    "weight a number": (Z, Y, {"weight": 1.0}),
    "weight of integers": (Z, Y, {"weight": torch.ones(3).long()}),
    "weight strided": (Z, Y, {"weight": torch.rand(6)[::2]}),
    "weight expanded": (Z, Y, {"weight": torch.rand(1).expand(3)}),
    "weight 0 for every label": (Z, Y * 0, {"weight": torch.tensor([0.0, 1, 1])}),
    "weight below 0": (Z, Y, {"weight": torch.tensor([-1.0, 1, 1])}),
    "weight NaN": (Z, Y, {"weight": torch.tensor([nan, 1, 1])}),
    "weight infinite": (Z, Y, {"weight": torch.tensor([inf, 1, 1])}),
    **{f"label_smoothing {value!r}": (Z, Y, {"label_smoothing": value}) for value in (0, 1, True, 1.1, inf, "a", None)},
    "label_smoothing 1.1, probabilities": (Z, P, {"label_smoothing": 1.1}),
    **{f"reduction {value!r}": (Z, Y, {"reduction": value}) for value in ("none", "avg", None, 1, "MEAN")},
    "probabilities [1, 3]": (Z, P[:1], {}),
    "probabilities below 0": (Z, -P, {}),
    "probabilities NaN": (Z, P * nan, {}),
    "unbatched probabilities": (Z[0], P[0], {}),
    "a masked class": (MASKED, torch.tensor([0]), {}),
    "a masked class, smoothing": (MASKED, torch.tensor([0]), {"label_smoothing": 0.1}),
    "a masked class without weight, smoothing": (
        MASKED, torch.tensor([0]), {"label_smoothing": 0.1, "weight": torch.tensor([1.0, 0, 1])}),
    "a masked label": (MASKED, torch.tensor([1]), {}),
    "a masked label without weight": (MASKED, torch.tensor([1]), {"weight": torch.tensor([1.0, 0, 1])}),
    "a masked class, probability 0": (MASKED, torch.tensor([[1.0, 0, 0]]), {}),
    "one class, masked": (MASKED[:, 1:2], torch.tensor([0]), {}),
    "a logit of inf": (torch.tensor([[1.0, inf, 0]]), torch.tensor([1]), {}),
    "NaN in an ignored row": (torch.tensor([[nan] * 3, [1, 2, 3]]), torch.tensor([-100, 1]), {}),
    "NaN in an ignored row, smoothing": (
        torch.tensor([[nan] * 3, [1, 2, 3]]), torch.tensor([-100, 1]), {"label_smoothing": 0.1}),
    **{f"all ignored, {r}": (Z, Y * 0 - 100, {"reduction": r}) for r in ("none", "sum", "mean")},
    "all ignored, weight": (Z, Y * 0 - 100, {"weight": torch.ones(3)}),
    "all ignored, smoothing": (Z, Y * 0 - 100, {"label_smoothing": 0.1}),
    "all ignored, unbatched": (Z[0], torch.tensor(-100), {}),
}  # fmt: skip


def answer(loss, *arguments, **options):
    """The loss, or None where the input is refused."""
    try:
        return loss(*arguments, **options)
    except (ValueError, TypeError, IndexError, RuntimeError, AttributeError, NotImplementedError):
        return None


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", SAME)
def test_takes_and_refuses_what_torch_does(name, impl):
    input, target, options = SAME[name]
    theirs = answer(F.cross_entropy, input, target, **options)
    ours = answer(tempered_cross_entropy, input, target, **options, impl=impl)
    assert (ours is None) == (theirs is None), f"torch: {theirs}, ours: {ours}"
    if theirs is not None:
        eps = torch.finfo(torch.float32 if target.dtype != torch.float16 else torch.float16).eps
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=16 * eps, atol=16 * eps, equal_nan=True)


#: What torch refuses, for no reason of ours: (input, target, options, the same as torch takes it).
OURS_TAKES = {
    **{f"{dtype} labels": (Z, Y.to(dtype), {}, (Z, Y, {})) for dtype in (torch.int32, torch.int16, torch.int8)},
    "uint8 labels of images": (
        torch.ones(2, 3, 4), shaped(2, 4).to(torch.uint8), {}, (torch.ones(2, 3, 4), shaped(2, 4), {})),
    **{f"{dtype} weight": (Z, Y, {"weight": torch.ones(3, dtype=dtype)}, (Z, Y, {}))
       for dtype in (torch.float64, torch.bfloat16, torch.float16)},
}  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", OURS_TAKES)
def test_takes_more_than_torch(name, impl):
    input, target, options, (alike, labels, others) = OURS_TAKES[name]
    assert answer(F.cross_entropy, input, target, **options) is None
    ours = tempered_cross_entropy(input, target, **options, impl=impl)
    torch.testing.assert_close(ours, F.cross_entropy(alike, labels, **others))


#: What torch takes, and we refuse by name: (input, target, options, message).
OURS_REFUSES = {
    "no class and no row": (Z[:0, :0], Y[:0], {}, "input: expected at least one class"),
    "labels [1] for one sample": (Z[0], Y[:1], {}, r"target: expected class indices of shape \[\].* got \[1\]"),
    "smoothing below 0, which torch takes for none": (Z, Y, {"label_smoothing": -0.1}, "label_smoothing: expected"),
    "smoothing NaN, which torch takes for none": (Z, Y, {"label_smoothing": nan}, "label_smoothing: expected"),
    "weight of integers with probabilities": (Z, P, {"weight": torch.ones(3).long()}, "weight: expected a floating"),
    "a tensor for label_smoothing": (
        Z, Y, {"label_smoothing": torch.tensor(0.1)}, "label_smoothing: expected a number in .*, got Tensor"),
    "a reduction that torch deprecates": (Z, Y, {"reduction": "elementwise_mean"}, "reduction: expected one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", OURS_REFUSES)
@pytest.mark.filterwarnings("ignore:reduction=:UserWarning")
def test_refuses_more_than_torch(name):
    input, target, options, message = OURS_REFUSES[name]
    assert answer(F.cross_entropy, input, target, **options) is not None
    with pytest.raises((ValueError, TypeError), match=message):
        tempered_cross_entropy(input, target, **options)


def test_precision_is_not_torch_s():
    """A loss in float32 for 16-bit logits, and in the logits' precision whatever the target's or weight's."""
    z = (3 * torch.randn(64, 10)).bfloat16()
    y = torch.randint(10, (64,))
    truth = F.cross_entropy(z.double(), y)
    ours, theirs = tempered_cross_entropy(z, y), F.cross_entropy(z, y)
    assert (ours.dtype, theirs.dtype) == (torch.float32, torch.bfloat16)
    assert (ours - truth).abs() < 1e-3 * (theirs - truth).abs()
    assert tempered_cross_entropy(Z, P.double(), 1.0, torch.ones(3).double()).dtype == torch.float32
    assert tempered_cross_entropy(Z.double(), P, 1.0, torch.ones(3)).dtype == torch.float64
