"""The tempered cross-entropy as an `Op` of the conformity suite: cases, and the rounding bound each may use up.

Outputs: the unreduced loss, the gradient of the logits for a given grad_loss, and the gradient of a T per sample.

The bound. With eps of the accumulator, X_j = (max z - z_j) / T: subtraction, reciprocal and product put at most
2 eps X_j on x_j, so 2 eps X_j + 2 eps (the exponential) on e_j, relatively. Summing C of them in W lanes adds at most
C / W + W roundings of eps / 2; in chunks of 64, 64 + C / 64. Hence p_j is right to eps (2 X_j + A), with A half the
number of roundings + 2 sum_i p_i X_i + 8, and loss and gradients follow by their formulas, term by term in absolute
value. The gradient is then rounded once to the logits' dtype; probabilities below about the smallest normal number of
the accumulator may be 0. For float64 the truth is the reference in float64 too, which subtracts, like the kernel,
numbers as large as X_j, but three times (x_j, the others' logsumexp, their difference): there the bound is fourfold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from conformity import Op, odd_strides
from fastrank.kernels import backend
from fastrank.kernels.tempered_ce import reference, tempered_cross_entropy

ACC = {torch.float64: torch.float64}
LANE_BYTES = {"scalar": 16, "avx2": 32, "avx512": 64}


@dataclass(frozen=True)
class Case:
    """Logits [n, c] (3 times standard normal, plus `offset`) behind `strides`, temperatures around `T`; the target is
    "index", "mixed" or "probabilities"."""

    n: int
    c: int
    dtype: torch.dtype = torch.float32
    T: float = 1.0
    strides: str = "contiguous"
    offset: float = 0.0
    label_smoothing: float = 0.0
    weighted: bool = False
    ignored: bool = True
    target: str = "index"
    scale_gradient: str | None = None


def build(case: Case) -> tuple:
    """(logits, target, second labels, their shares, T [n], weight, grad_loss [n], label_smoothing, scale_gradient)."""
    generator = torch.Generator().manual_seed(case.n * 100003 + case.c)
    acc = ACC.get(case.dtype, torch.float32)
    logits = (3 * torch.randn(case.n, case.c, generator=generator) * max(1.0, case.T) + case.offset).to(case.dtype)
    target = torch.randint(case.c, (case.n,), generator=generator)
    T = (case.T * (0.5 + torch.rand(case.n, generator=generator))).to(acc)
    weight = (0.5 + torch.rand(case.c, generator=generator)).to(acc) if case.weighted else None
    grad_loss = torch.randn(case.n, generator=generator).to(acc)
    second = share = None
    if case.target == "mixed":
        second = torch.randint(case.c, (case.n,), generator=generator)
        share = torch.rand(case.n, generator=generator).to(acc)
    elif case.target == "probabilities":
        target = odd_strides(torch.randn(case.n, case.c, generator=generator).softmax(1).to(acc), case.strides)
    elif case.ignored and case.n > 2:
        target[1] = -100
    options = (case.label_smoothing, case.scale_gradient)
    return odd_strides(logits, case.strides), target, second, share, T, weight, grad_loss, *options


def _outputs(loss_of, logits, target, second, share, T, weight, grad_loss, label_smoothing, scale_gradient):
    logits, T = logits.detach().requires_grad_(), T.detach().requires_grad_()
    target = target if second is None else (target, second, share)
    loss = loss_of(
        logits, target, T, weight=weight, reduction="none", label_smoothing=label_smoothing,
        scale_gradient=scale_gradient,
    )  # fmt: skip
    return loss.detach(), *torch.autograd.grad(loss, (logits, T), grad_loss)


def run(impl: str, *inputs):
    return _outputs(lambda *args, **options: tempered_cross_entropy(*args, **options, impl=impl), *inputs)


def _reference(*inputs):
    return _outputs(reference.tempered_cross_entropy, *inputs)


def _masses(c: int, target, second, share, weight, smoothing) -> tuple[list, torch.Tensor]:
    """The target as the docstring's formula sees it: [(label [n], its weight [n])], and the other weights t [n, c]."""
    w = torch.ones(c, dtype=torch.float64) if weight is None else weight.double()
    if target.is_floating_point():
        return [], w * ((1 - smoothing) * target.double() + smoothing / c)
    used = (target != -100).double()
    labels = [(target.clamp(min=0), used)]
    if second is not None:
        labels = [(target, share.double()), (second, 1 - share.double())]
    soft = smoothing / c * used[:, None] * w
    return [(y, (1 - smoothing) * w[y] * part) for y, part in labels], soft


def band(case: Case, truth) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The docstring's bound for each output."""
    device, truth = truth[1].device.type, [t.cpu() for t in truth]
    return bound(*build(case), truth[1], device)


def accumulator_eps(dtype: torch.dtype) -> float:
    return torch.finfo(ACC.get(dtype, torch.float32)).eps * (4 if dtype == torch.float64 else 1)


def roundings(dtype: torch.dtype, c: int, mean_X: torch.Tensor, device: str = "cpu") -> tuple[int, torch.Tensor]:
    """The docstring's 2 and A; for sum_i p_i X_i."""
    core = backend.core()
    lanes = LANE_BYTES[core.isa if core else "scalar"] * 8 // torch.finfo(ACC.get(dtype, torch.float32)).bits
    # A row is summed in its lanes, or by one lane in chunks of 64 classes.
    additions = max(c / (2 * lanes) + lanes / 2, 32 + c / 128)
    # A GPU's float32 exponential is 2^(x log2 e): factor and product put 0.6 eps X_j more on e_j; and its division may
    # err by 2 eps where a CPU's errs by half of one.
    K, divisions = (4, 8) if device == "cuda" and dtype != torch.float64 else (2, 0)
    return K, additions + K * mean_X + 8 + divisions


def mean_distances(p: torch.Tensor, X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_i p_i X_i and sum_i p_i X_i^2, also where X_i^2 overflows."""
    return (p * X).sum(1), torch.where(p > 0, p * X.square(), p).sum(1)


def bound(
    logits, target, second, share, T, weight, grad_loss, smoothing, scale_gradient, true_grad, device="cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The docstring's bound for the outputs of any such inputs; the gradient of the logits is rounded to their dtype.

    A class whose logit is -inf errs by nothing: its exponential is 0 exactly.
    """
    dtype, c = logits.dtype, logits.shape[1]
    eps, tiny = accumulator_eps(dtype), torch.finfo(ACC.get(dtype, torch.float32)).tiny
    z, T, g = logits.double(), T.double(), grad_loss.double().abs()
    x = (z - z.amax(1, keepdim=True)) / T[:, None]
    p, X = x.softmax(1), torch.where(z.isneginf(), 0, -x)
    labels, t = _masses(c, target, second, share, weight, smoothing)

    mean_X, mean_X2 = mean_distances(p, X)
    K, A = roundings(dtype, c, mean_X, device)
    mass, tX = t.sum(1), (t * X).sum(1)
    loss = mass * A + tX * (K + A)
    parts = (mass[:, None] * p + t) * (K * X + A[:, None])
    moment = K * mass * mean_X2 + A * (mass * mean_X + tX)
    reach = mass * X.sum(1)
    for y, hard in labels:
        X_y, is_target = X.gather(1, y[:, None])[:, 0], torch.arange(c) == y[:, None]
        others = p * ~is_target
        without_y, others_X = others.sum(1), (others * X).sum(1)
        loss += hard * (K * X_y + A)
        # What the formula adds up, times the relative error of each: at the target it is the sum of the others.
        parts += torch.where(
            is_target, (hard * (K * others_X + without_y * A))[:, None], hard[:, None] * p * (K * X + A[:, None])
        )
        moment += hard * (K * mean_X2 + A * (mean_X + X_y * without_y))
        reach += hard * (X.sum(1) + X_y)
    scale = g / T
    grad_scale = scale * T ** {None: 0, "T": 1, "T2": 2}[scale_gradient]
    rounding = torch.finfo(dtype)
    # Triton's interpreter truncates to bfloat16, where its compiler rounds to nearest.
    ulps = 1.0 if backend.interpreting() and dtype == torch.bfloat16 else 0.5
    whole = mass + sum(hard for _, hard in labels)
    grad = (
        eps * grad_scale[:, None] * parts
        + (ulps * rounding.eps * true_grad.double().abs() + rounding.smallest_normal * rounding.eps)
        + 2 * tiny * (1 + (grad_scale * whole)[:, None])
    )
    return eps * loss, grad, eps * scale * moment + 2 * tiny * scale * (reach + whole)


@contextmanager
def split_rows() -> Iterator[None]:
    """Inside, the Triton kernels cut rows of up to 384 classes into three parts of a tile of 128, and put two rows
    together a step: what else takes rows of 8 tiles of 2048."""
    from fastrank.kernels.tempered_ce import triton
    from fastrank.kernels.tempered_loss.tiles import Tile

    real = triton.tile, triton.splits, triton.COMBINE
    triton.tile = lambda classes: Tile(float("inf"), rows=1, classes=128, warps=4)
    triton.splits, triton.COMBINE = (lambda programs, classes, sms: (3, 1)), 8
    try:
        yield
    finally:
        triton.tile, triton.splits, triton.COMBINE = real


OP = Op(name="tempered_ce", impls=("native", "triton"), run=run, reference=_reference, band=band, build=build)

SHAPES = [(0, 10), (1, 1), (1, 1000), *((7, c) for c in (1, 2, 10, 94, 1000, 1025)), (256, 10), (256, 94), (2, 21841)]
#: Beyond the plain loss.
OPTIONS = [
    {"label_smoothing": 0.1}, {"weighted": True}, {"label_smoothing": 1.0, "weighted": True},
    {"target": "mixed"}, {"target": "mixed", "weighted": True, "label_smoothing": 0.1, "scale_gradient": "T"},
    {"target": "probabilities"}, {"target": "probabilities", "weighted": True, "label_smoothing": 0.1},
    {"scale_gradient": "T2"},
]  # fmt: skip
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
