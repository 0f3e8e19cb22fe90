"""Twenty ways in which fused cross-entropies have failed their users, each a check and versions that fail it.

`@seen_in(...)` registers a check of a loss that is called as `tempered_cross_entropy` is, with versions of the textbook
(tempered_ce_textbook.py) that commit exactly this mistake: the check must pass for every implementation and for the
textbook itself, and must raise `Symptom` for the broken ones. Most checks compute in float64 against torch's own loss,
where a mistake is of order 1 and rounding of order 1e-14 (`EXACT`); where digits are the subject they say what is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tempered_ce_textbook import Textbook, classes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

inf, nan = float("inf"), float("nan")
EXACT = 1e-10


class Symptom(AssertionError):
    """What a check raises."""


@dataclass(frozen=True)
class Failure:
    check: Callable
    broken: tuple
    #: Whether the check's logits may be features @ identity: [N, C], finite.
    linear: bool
    #: Whether the textbook can show that the check accepts what is right.
    textbook: bool


FAILURES: dict[str, Failure] = {}


def seen_in(*broken, linear: bool = True, textbook: bool = True):
    def register(check):
        FAILURES[check.__name__] = Failure(check, broken, linear, textbook)
        return check

    return register


def expect(ok, symptom: str) -> None:
    if not ok:
        raise Symptom(symptom)


def close(got: Tensor, want: Tensor, symptom: str, rtol: float = EXACT) -> None:
    expect(got.shape == want.shape, f"{symptom}: shape {list(got.shape)} instead of {list(want.shape)}")
    got, want = got.detach().double(), want.detach().double()
    expect(torch.equal(got.isfinite(), want.isfinite()), f"{symptom}: not finite")
    scale = want[want.isfinite()].abs().amax().item() if want.isfinite().any() else 0.0
    error = (got - want).nan_to_num(0, 0, 0).abs().amax().item() if got.numel() else 0.0
    expect(error <= rtol * scale, f"{symptom}: off by {error:.1e} of {scale:.1e}")


def batch(n=6, c=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n * 1009 + c)
    z = (3 * torch.randn(n, c, generator=generator, dtype=torch.float64)).to(dtype)
    return z.requires_grad_(), torch.randint(c, (n,), generator=generator)


def grad(value: Tensor, z: Tensor, **options) -> Tensor:
    return torch.autograd.grad(value, z, **options)[0]


def exactly(z: Tensor, y: Tensor, T=1.0, **options) -> tuple[Tensor, Tensor]:
    """(loss, gradient of its sum) by torch in float64."""
    z = z.detach().double().requires_grad_()
    options = {name: x.double() if isinstance(x, Tensor) else x for name, x in options.items()}
    T = T.double().reshape(T.shape + (1,) * (z.dim() - T.dim())) if isinstance(T, Tensor) else T
    loss = F.cross_entropy(z / T, y.double() if y.is_floating_point() else y, **options)
    return loss, grad(loss.sum(), z)


def agrees(loss, z: Tensor, y: Tensor, T=1.0, symptom="the loss is wrong", rtol: float = EXACT, **options) -> None:
    """`loss` and its gradient are torch's in float64."""
    z = z.detach().requires_grad_()
    value, truth = loss(z, y, T, **options), exactly(z, y, T, **options)
    close(value, truth[0], symptom, rtol)
    close(grad(value.sum(), z), truth[1], f"{symptom}, in its gradient", rtol)


def refused(loss, error, *arguments, **options) -> bool:
    """Whether bad input raises `error`; NaN in the rows' losses is what a device says that nobody waits for."""
    try:
        return bool(loss(*arguments, **options, reduction="none").isnan().any())
    except error:
        return True


# ---- 1: logits overwritten by their gradient ----


class WritesGradientOverLogits(Textbook):
    def placed(self, rows, input):
        return input.detach().copy_(super().placed(rows, input))


@seen_in(WritesGradientOverLogits)
def logits_survive(loss):
    for reduction in ("mean", "sum", "none"):
        for dtype in (torch.float32, torch.bfloat16):
            z, y = batch(dtype=dtype)
            before = z.detach().clone()
            loss(z, y, 2.0, reduction=reduction).sum().backward()
            expect(torch.equal(z.detach(), before), f"{reduction}: the logits changed")


# ---- 2: a second backward over a retained graph ----


class ScalesItsGradientInPlace(Textbook):
    kept = None

    def gradient(self, input, grad_loss, *problem):
        if self.kept is None:
            self.kept = super().gradient(input, torch.ones_like(grad_loss), *problem)
        return self.kept.mul_(grad_loss[:, None])


@seen_in(ScalesItsGradientInPlace)
def a_second_backward_repeats_the_first(loss):
    for reduction in ("mean", "sum", "none"):
        for factor in (1.0, 3.0):
            z, y = batch()
            value = loss(z, y, 2.0, reduction=reduction).sum() * factor
            first = grad(value, z, retain_graph=True).clone()
            for _ in range(2):
                again = grad(value, z, retain_graph=True)
                expect(torch.equal(again, first), f"{reduction}, grad_loss {factor}: another gradient the second time")


# ---- 3: grad_loss ignored, or of another value or stride ----


class IgnoresGradLoss(Textbook):
    def incoming(self, grad_loss):
        return torch.ones_like(grad_loss)


class TakesTheFirstGradLossForAll(Textbook):
    def incoming(self, grad_loss):
        return grad_loss[:1].expand_as(grad_loss)


class TakesGradLossForContiguous(Textbook):
    def incoming(self, grad_loss):
        return grad_loss.as_strided(grad_loss.shape, (1,))


@seen_in(IgnoresGradLoss, TakesTheFirstGradLossForAll, TakesGradLossForContiguous)
def grad_loss_of_any_value_and_stride(loss):
    z, y = batch()
    rows = loss(z, y, 2.0, reduction="none")
    unit = exactly(z, y, 2.0, reduction="sum")[1]
    wide = torch.linspace(-3, 4, 12, dtype=torch.float64)
    for g in (wide[::2], wide[:6], wide[:1].expand(6), torch.zeros_like(wide[:6])):
        got = grad(rows, z, grad_outputs=g, retain_graph=True)
        close(got, unit * g[:, None], f"grad_loss of stride {g.stride()} does not arrive")
    for factor in (1.0, -65536.0):
        value = loss(z, y, 2.0) * factor
        close(grad(value, z), unit * factor / 6, f"grad_loss {factor} does not arrive")


# ---- 4: the target's gradient rounded before the 1 is taken off ----


class RoundsProbabilities(Textbook):
    def slope(self, p, t, dtype):
        return (p.to(dtype) - t.to(dtype)).to(p.dtype)


@seen_in(RoundsProbabilities)
def a_sure_target_keeps_its_gradient(loss):
    for dtype in (torch.bfloat16, torch.float16):
        z = torch.tensor([[7.0, 0.0, -1.0], [0.0, 9.0, 1.0]], dtype=dtype, requires_grad=True)
        y = torch.tensor([0, 1])
        got, want = (g.gather(1, y[:, None]) for g in (grad(loss(z, y), z), exactly(z, y)[1]))
        error = (got.double() / want - 1).abs().max().item()
        expect(error < torch.finfo(dtype).eps, f"{dtype}: the target's gradient is off by {error:.1%}")


# ---- 5: log-sum-exp and the target's logit cancel ----


class SubtractsLogSumExp(Textbook):
    def deficit(self, x):
        return x.logsumexp(1, keepdim=True) - x


@seen_in(SubtractsLogSumExp)
def an_offset_costs_no_digits(loss):
    z, y = batch(5, 50, torch.float32)
    z = (z.detach() * 16).round() / 64 + 10000  # exact, and so is what is left without the offset
    for T in (0.5, 1.0, 64.0):
        # Exponentials of X < 16 are right to 2 eps X, a sum of 50 of them to 50 roundings; a loss is about log 50.
        rtol = 100 * torch.finfo(torch.float32).eps
        agrees(loss, z, y, T, "digits are lost to the offset", rtol, reduction="none")


# ---- 6: a first block of nothing but -inf ----


class StartsItsMaximumAtMinusInfinity(Textbook):
    def log_sum(self, x):
        top, total = torch.full((x.shape[0],), -inf, dtype=x.dtype), torch.zeros(x.shape[0], dtype=x.dtype)
        for block in x.split(64, 1):
            raised = torch.maximum(top, block.amax(1))
            total = total * (top - raised).exp() + (block - raised[:, None]).exp().sum(1)
            top = raised
        return top + total.log()


@seen_in(StartsItsMaximumAtMinusInfinity, linear=False)
def blocks_of_minus_infinity(loss):
    good, y = batch(6, 4200)
    y[:3] = torch.tensor([4150, 4199, 4100])
    z = good.detach().clone()
    z[0, :4096] = z[1, :-1] = z[2, 64:4096] = -inf
    z[3], z[4, 0] = -inf, nan
    z.requires_grad_()
    value, truth = loss(z, y, 2.0, reduction="none"), exactly(z, y, 2.0, reduction="none")
    expect(value[3:5].isnan().all(), "a row without any finite logit, or with NaN, has a loss")
    close(value, truth[0], "masked blocks")
    close(grad(value.sum(), z)[[0, 1, 2, 5]], truth[1][[0, 1, 2, 5]], "gradient of masked blocks")


# ---- 7: padding counted ----


class CountsPaddingInItsSum(Textbook):
    def log_sum(self, x):
        return F.pad(x, (0, -x.shape[1] % 8)).logsumexp(1)


class SmoothsOverPadding(Textbook):
    def soften(self, t, weight, smoothing):
        c = t.shape[1]
        return super().soften(t, weight, smoothing * c / (c + -c % 8))


@seen_in(CountsPaddingInItsSum, SmoothsOverPadding)
def padding_counts_nowhere(loss):
    rows = itertools.cycle((1, 3, 17))
    for c in (1, 2, 3, 5, 8, 15, 17, 33, 63, 65, 100, 129, 1025):
        z, y = batch(n := next(rows), c)
        agrees(loss, z, y, symptom=f"{n} x {c}", label_smoothing=0.2)


# ---- 8: one column; a temperature that is none ----


class SqueezesItsLogits(Textbook):
    def values(self, input):
        return (
            super().values(input).squeeze(1).reshape(-1, classes(input)) if classes(input) > 1 else input.reshape(1, -1)
        )


class TakesAnyTemperature(Textbook):
    def judge(self, *problem):
        pass


@seen_in(SqueezesItsLogits, TakesAnyTemperature)
def one_column_and_bad_temperatures(loss):
    z, y = batch(4, 1)
    value = loss(z, y, 1e-2, reduction="sum")
    expect(value.item() == 0, f"the loss of one class is {value.item()}")
    expect((grad(value, z) == 0).all(), "one class has a gradient")
    z, y = batch()
    for T in (0.0, -1.0, nan, inf):
        expect(refused(loss, ValueError, z, y, T), f"T={T} is taken")
        expect(refused(loss, ValueError, z, y, torch.tensor(T)), f"a tensor T={T} is taken")


# ---- 9: the scale dropped, squared, multiplied for divided ----


class DropsTheTemperature(Textbook):
    def scaled(self, z, T):
        return z


class DividesTwice(Textbook):
    def scaled(self, z, T):
        return z / T / T


class Multiplies(Textbook):
    def scaled(self, z, T):
        return z * T


class ForgetsTheTemperatureBackward(Textbook):
    def gradient(self, input, grad_loss, *problem):
        return super().gradient(input, grad_loss, *problem) * problem[1]


@seen_in(DropsTheTemperature, DividesTwice, Multiplies, ForgetsTheTemperatureBackward)
def the_temperature_divides_once(loss):
    z, y = batch()
    for T in (3.0, torch.tensor(0.25), torch.linspace(0.5, 4, 6)):
        agrees(loss, z, y, T, f"T={T}")


# ---- 10: offsets in 32 bits ----


class KeepsOffsetsIn32Bits(Textbook):
    def values(self, input):
        if input.numel() == 0 or input.dim() != 2:
            return super().values(input)
        n, c = (torch.arange(size) for size in input.shape)
        offsets = (n[:, None] * input.stride(0) + c * input.stride(1)) & 0x7FFFFFFF  # short of its sign
        memory = input.as_strided((input.untyped_storage().nbytes() // input.itemsize,), (1,), 0)
        return memory[input.storage_offset() + offsets].float()


@seen_in(KeepsOffsetsIn32Bits, linear=False)
def offsets_beyond_32_bits(loss):
    far = 2**31 + 64
    memory = torch.empty(far + 64, dtype=torch.bfloat16)  # 4 GiB of addresses, of which few pages are touched
    memory[:128] = memory[far - 64 :] = 0
    z = memory.as_strided((2, 8), (far, 1))
    z.copy_(batch(2, 8)[0])
    y = torch.tensor([3, 5])
    # The large stride as that of N, of the classes and of an inner dimension.
    for view, target in ((z, y), (z.t(), torch.arange(8) % 2), (z.t()[None], y[None])):
        near = view.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        view = view.detach().requires_grad_()
        apart, together = loss(view, target), loss(near, target)
        expect(torch.equal(apart, together), f"another loss with strides {view.stride()}")
        expect(torch.equal(grad(apart, view), grad(together, near)), f"another gradient with strides {view.stride()}")


# ---- 11: labels out of range ----


class ClampsLabels(Textbook):
    def __call__(self, input, target, *options, **named):
        return super().__call__(input, target.clamp(0, classes(input) - 1), *options, **named)


class NarrowsLabels(Textbook):
    def __call__(self, input, target, *options, **named):
        return super().__call__(input, target.int(), *options, **named)


@seen_in(ClampsLabels, NarrowsLabels)
def labels_out_of_range_are_refused(loss):
    z, y = batch(4, 3)
    for label in (3, -1, 2**31 + 1, 2**32 + 1, -(2**32) + 1, -100 + 2**32):
        y[2] = label
        expect(refused(loss, IndexError, z, y), f"label {label} of 3 classes is taken")


# ---- 12: every row ignored ----


class DividesByEveryRow(Textbook):
    def count(self, input, target, *problem):
        return torch.tensor(target.numel())


class DividesByOneAtLeast(Textbook):
    def count(self, *problem):
        return super().count(*problem).clamp(min=1)


class PoisonsIgnoredRows(Textbook):
    def incoming(self, grad_loss):
        return grad_loss + (grad_loss - grad_loss)

    def placed(self, rows, input):
        return super().placed(rows if rows.any() else rows * nan, input)


@seen_in(DividesByEveryRow, DividesByOneAtLeast, PoisonsIgnoredRows)
def every_row_ignored(loss):
    z, y = batch()
    for used in (0, 1, 5):
        y[used:] = -100
        for reduction in ("none", "sum", "mean"):
            value = loss(z, y, 2.0, reduction=reduction)
            close(value, exactly(z, y, 2.0, reduction=reduction)[0], f"{used} of 6 rows used, {reduction}")
            moved = grad(value.sum(), z)
            expect((moved[used:] == 0).all(), f"{used} of 6 rows used, {reduction}: ignored logits have a gradient")


# ---- 13: logits that are not contiguous, or expanded ----


class TakesLogitsForContiguous(Textbook):
    def values(self, input):
        return super().values(input.as_strided(input.shape, torch.empty(input.shape, device="meta").stride()))


@seen_in(TakesLogitsForContiguous, linear=False)
def logits_of_any_stride(loss):
    z, y = batch(6, 8)
    images = batch(6, 60)[0].detach().reshape(3, 10, 4, 3)
    spots = torch.arange(36).reshape(3, 4, 3) % 10
    views = [
        (z.detach().t().contiguous().t(), y), (z.detach()[:, ::2], y % 4), (z.detach()[1:4, 3:], y[1:4] % 5),
        (z.detach()[:1].expand(6, 8), y), (z.detach()[:, :1].expand(6, 8), y),
        (images.contiguous(memory_format=torch.channels_last), spots), (images.permute(0, 1, 3, 2), spots.mT),
        (images[..., 1:], spots[..., 1:]), (images[:, :, :1, :1].expand(3, 10, 4, 3), spots),
    ]  # fmt: skip
    for view, target in views:
        agrees(loss, view, target, 2.0, f"shape {list(view.shape)}, strides {view.stride()}")


# ---- 14: weight with label smoothing with ignored rows ----


class SmoothsWithoutWeights(Textbook):
    def soften(self, t, weight, smoothing):
        return (t if weight is None else t * weight) + smoothing / t.shape[1]


class CountsTheWeightOfIgnoredRows(Textbook):
    def count(self, input, target, T, weight, ignore_index, smoothing):
        return weight[target.clamp(min=0)].sum()


class SmoothsIgnoredRows(Textbook):
    def masses(self, input, target, T, weight, ignore_index, smoothing):
        t = super().masses(input, target, T, weight, ignore_index, smoothing)
        return torch.where(t.any(1, keepdim=True), t, smoothing / t.shape[1])


@seen_in(SmoothsWithoutWeights, CountsTheWeightOfIgnoredRows, SmoothsIgnoredRows)
def weight_with_smoothing_and_ignored_rows(loss):
    z, y = batch(6, 4)
    y[1], y[4] = 2, 2
    weight = torch.tensor([0.3, 1.0, 2.0, 0.7], dtype=torch.float64)
    for ignore_index in (2, -100):
        for reduction in ("mean", "sum", "none"):
            options = {"weight": weight, "label_smoothing": 0.3, "ignore_index": ignore_index, "reduction": reduction}
            agrees(loss, z, y, 2.0, f"{reduction}, ignore_index {ignore_index}", **options)


# ---- 15: compiled Python numbers become float64 ----


def promotes_to_float64(z, y, T=1.0):
    return F.cross_entropy((z / torch.tensor([T], dtype=torch.float64)).float(), y)


@seen_in(promotes_to_float64, linear=False, textbook=False)
def a_number_in_a_compiled_graph_stays_float32(loss):
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    wide = []

    def inspect(graph, _inputs):
        values = [node.meta.get("val") for node in graph.graph.nodes]
        wide.extend(x for x in values if isinstance(x, Tensor) and x.dim() and x.dtype == torch.float64)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    compiled = torch.compile(lambda z, y, T: loss(z, y, T), fullgraph=True, backend=aot_autograd(fw_compiler=inspect))
    z, y = batch(dtype=torch.float32)
    for T in (2.0, 3.0, 5.0):  # the second makes it an input of the graph
        grad(compiled(z, y, T), z)
    expect(not wide, f"the graph computes in float64: {wide}")


# ---- 16: hidden host syncs ----


class LooksForAnEmptyBatch(Textbook):
    def judge(self, *problem):
        pass

    def reduce(self, rows, count, reduction):
        return super().reduce(rows, count, reduction) if count > 0 else rows.sum() * 0


class CopiesTheCountToTheHost(Textbook):
    def judge(self, *problem):
        pass

    def count(self, *problem):
        return super().count(*problem).item()


class _NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")
        expect(func._schema.name.split("::")[1] not in reads, f"the host waits for the device in {func}")
        return func(*args, **(kwargs or {}))


@seen_in(LooksForAnEmptyBatch, CopiesTheCountToTheHost, linear=False, textbook=False)
def the_host_reads_no_tensor(loss, device="meta"):
    """On "meta", where there is nothing to read, for what runs there."""
    z, y = batch()
    z, y = z.detach().to(device).requires_grad_(), y.to(device)
    for T in (2.0, torch.ones((), device=device), torch.ones(6, device=device)):
        for options in ({}, {"label_smoothing": 0.1, "weight": torch.ones(10, device=device).double()}):
            with _NoReading():
                for reduction in ("mean", "none"):
                    grad(loss(z, y, T, reduction=reduction, **options).sum(), z)


# ---- 17: autocast ----


class ReturnsItsLossInTheLogitsDtype(Textbook):
    def reduce(self, rows, count, reduction):
        return super().reduce(rows, count, reduction).bfloat16()


class ComputesInAutocastDtype(Textbook):
    def values(self, input):
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        return super().values(input.to(low))


@seen_in(ReturnsItsLossInTheLogitsDtype, ComputesInAutocastDtype, linear=False)
def autocast_leaves_precision_alone(loss):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        z, y = batch(dtype=dtype)
        outside = loss(z, y, 3.0)
        for low in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", low):
                inside = loss(z, y, 3.0)
                expect(inside.dtype == torch.float32, f"{dtype} logits under autocast: a loss in {inside.dtype}")
                expect(torch.equal(inside, outside), f"{dtype} logits: another loss under autocast")
            expect(
                torch.equal(grad(inside, z), grad(outside, z, retain_graph=True)),
                f"{dtype} logits: another gradient under autocast",
            )


# ---- 18: soft targets that do not sum to 1 ----


class TakesProbabilitiesForNormalised(Textbook):
    def slope(self, p, t, dtype):
        return p - t


@seen_in(TakesProbabilitiesForNormalised)
def soft_targets_of_any_sum(loss):
    z, _ = batch()
    q = batch(7, 10)[0].detach()[1:].abs()
    weight = torch.linspace(0.5, 2, 10, dtype=torch.float64)
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.2, "weight": weight}):
        for reduction in ("mean", "sum", "none"):
            agrees(loss, z, q, 2.0, f"targets that sum to {q.sum(1)[0]:.1f}", reduction=reduction, **options)


# ---- 19: logits that need no gradient ----


class IsZeroWithoutGradient(Textbook):
    def reduce(self, rows, count, reduction):
        return super().reduce(rows if rows.requires_grad else rows * 0, count, reduction)


@seen_in(IsZeroWithoutGradient)
def logits_without_gradient(loss):
    z, y = batch()
    for reduction in ("mean", "none"):
        with_gradient = loss(z, y, 2.0, reduction=reduction)
        frozen = loss(z.detach(), y, 2.0, reduction=reduction)
        with torch.no_grad():
            evaluated = loss(z, y, 2.0, reduction=reduction)
        expect(torch.equal(frozen, with_gradient), "another loss for logits that need no gradient")
        expect(torch.equal(evaluated, with_gradient), "another loss under no_grad")


# ---- 20: a Hessian of zero ----


class KeepsItsGradientAsAConstant(Textbook):
    def gradient(self, input, grad_loss, *problem):
        return super().gradient(input.detach(), grad_loss, *problem) + 0 * input


@seen_in(KeepsItsGradientAsAConstant)
def the_hessian_is_not_zero(loss):
    (z, y), v, T = batch(), batch(6, 11)[0].detach()[:, 1:], 3.0
    for reduction, count in (("sum", 1), ("mean", 6)):
        first = grad(loss(z, y, T, reduction=reduction), z, create_graph=True)
        second = grad((first * v).sum(), z)
        p = (z.detach() / T).softmax(1)
        close(second, (p * v - p * (p * v).sum(1, keepdim=True)) / T**2 / count, "the Hessian times a vector")
