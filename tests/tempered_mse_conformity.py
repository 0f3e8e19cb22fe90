"""The tempered squared error as an `Op` of the conformity suite; cases, layouts and the error of a probability are
those of tempered_ce_conformity.py.

Outputs: the unreduced loss, the gradient of the logits for a given grad_loss, and the gradient of a T per sample.

The bound. With eps of the accumulator, p_j is right to eps p_j (K X_j + A) (derived there), and so is q = 1 - p_a, a
sum of such, beside the class a with p_a > 1/2. A difference d_j = p_j - t_j errs by that, by the roundings of t_j and
by its own; d_a = (1 - t_a) - q by those of q and 1 - t_a. Every sum adds the roundings of its additions. The loss, M =
sum beside a of p d, D = p_a d_a + M, the gradient p_j (d_j - D) or p_a (q d_a - M) and its product with x then follow,
term by term in absolute value. Nothing in the bound of p_a (q d_a - M) is larger than q: a kernel that forms p_a - 1,
or d_a - D from its parts, breaks it. Squares and products below the smallest normal number may be 0.
"""

from __future__ import annotations

import tempered_ce_conformity as ce
import torch
from conformity import Op
from fastrank.kernels import backend
from fastrank.kernels.tempered_mse import reference, tempered_mse
from tempered_ce_conformity import ACC, DTYPES, OPTIONS, SHAPES, Case, build

__all__ = ["DTYPES", "OP", "OPTIONS", "SHAPES", "Case", "build", "run"]


def run(impl: str, *inputs):
    return ce._outputs(lambda *args, **options: tempered_mse(*args, **options, impl=impl), *inputs)


def _reference(*inputs):
    return ce._outputs(reference.tempered_mse, *inputs)


def _hard(case: Case, target, second, share) -> torch.Tensor:
    """t' [n, c]; a row of zeros where it is ignored."""
    if case.target == "probabilities":
        return target.double()
    one_hot = lambda y: (torch.arange(case.c) == y[:, None]).double()  # noqa: E731
    if second is None:
        return one_hot(target)
    return share.double()[:, None] * one_hot(target) + (1 - share.double())[:, None] * one_hot(second)


def band(case: Case, truth) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The docstring's bound for each output."""
    logits, target, second, share, T, weight, grad_loss, s, scale_gradient = build(case)
    device, truth = truth[1].device.type, [t.cpu() for t in truth]
    info = torch.finfo(ACC.get(case.dtype, torch.float32))
    eps = ce.accumulator_eps(case.dtype)
    z, T = logits.double(), T.double()
    x = (z - z.amax(1, keepdim=True)) / T[:, None]
    p, X = x.softmax(1), -x
    hard = _hard(case, target, second, share)
    t, v = (1 - s) * hard + s / case.c, torch.ones(case.c).double() if weight is None else weight.double()
    w = (hard * v).sum(1)
    if case.target == "index":
        w = torch.where(target == -100, 0, w)
    mean_X = (p * X).sum(1)
    K, A = ce.roundings(case.dtype, case.c, mean_X, device)
    additions = (A - K * mean_X)[:, None]  # and a few more
    A = A[:, None]

    # Column a is treated apart; where p_a is not above 1/2 a kernel may treat it as any other.
    top = torch.arange(case.c) == x.argmax(1, keepdim=True)
    of_top = lambda values: torch.where(top, values, 0).sum(1, keepdim=True)  # noqa: E731
    beside = lambda values: torch.where(top, 0, values).sum(1, keepdim=True)  # noqa: E731
    p_a, q = of_top(p), beside(p)
    balanced = (p_a < 0.51).double()
    dp = p * (K * X + A)
    dq = beside(dp) + 4 * balanced * p_a
    dp = torch.where(top, dq, dp)
    to_one = ((1 - s) * (1 - hard)).abs() + s
    d = torch.where(top, (1 - s) * (1 - hard) + s * (case.c - 1) / case.c - q, p - t)
    dd = dp + torch.where(top, 3 * to_one + 3 * balanced * t, 3 * t) + d.abs()
    M, abs_M = beside(p * d), beside(p * d.abs())
    dM = beside(dp * d.abs() + p * dd) + (additions + 2) * abs_M
    d_a, dd_a = of_top(d), of_top(dd)
    D = p_a * d_a + M
    dD = dM + p_a * dd_a + (dq + 2 * p_a) * d_a.abs() + D.abs()
    rest = additions + 4  # w, scale and the products with them
    any_other = p * (dd + dD + d.abs() + D.abs()) + (dp + rest * p) * (d - D).abs()
    at_top = p_a * (dq * d_a.abs() + q * dd_a + dM + 2 * (q * d_a.abs() + M.abs()))
    at_top = at_top + (dq + rest * p_a) * (q * d_a - M).abs() + balanced * of_top(any_other)
    parts = torch.where(top, at_top, any_other)
    moment = (p * X).sum(1, keepdim=True)
    slope = (X * (dp * d.abs() + p * dd)).sum(1, keepdim=True) + dD * moment + D.abs() * (dp * X).sum(1, keepdim=True)
    slope = slope + (additions + rest + 4) * ((p * X * d.abs()).sum(1, keepdim=True) + D.abs() * moment)
    loss = (2 * d.abs() * dd + (additions + rest) * d.square() + eps * dd.square()).sum(1)

    tiny = info.tiny
    scale = 2 * w * grad_loss.double().abs() / T
    grad_scale = scale * T ** {None: 0, "T": 1, "T2": 2}[scale_gradient]
    rounding = torch.finfo(case.dtype)
    # Triton's interpreter truncates to bfloat16, where its compiler rounds to nearest.
    ulps = 1.0 if backend.interpreting() and case.dtype == torch.bfloat16 else 0.5
    grad = (
        eps * grad_scale[:, None] * parts
        + (ulps * rounding.eps * truth[1].double().abs() + rounding.smallest_normal * rounding.eps)
        + 4 * tiny * (1 + grad_scale[:, None])
    )
    lost = 4 * tiny * (case.c + X.sum(1))
    return eps * w * loss + w * lost, grad, eps * scale * slope[:, 0] + scale * lost


OP = Op(name="tempered_mse", impls=("native", "triton"), run=run, reference=_reference, band=band, build=build)
