"""A fused cross-entropy as a textbook writes it, in torch, one method per step: what the broken versions of
tempered_ce_failures.py replace a step of. It has no impl, no statistics and no care for digits, but is right."""

from __future__ import annotations

import torch
from torch import Tensor

ACC = {torch.float64: torch.float64}


class Textbook:
    """Called as `tempered_cross_entropy` is. Second derivatives work, for `gradient` is made of torch's operators."""

    def __call__(
        self, input, target, T=1.0, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
    ) -> Tensor:
        problem = (target, T, weight, ignore_index, label_smoothing)
        self.judge(input, *problem)
        rows = _Rows.apply(input, self, problem)
        return self.reduce(rows, self.count(input, *problem), reduction).reshape(
            () if reduction != "none" else input.shape[:1] + input.shape[2:] if input.dim() > 1 else ()
        )

    def judge(self, input, target, T, weight, ignore_index, smoothing) -> None:
        T = torch.as_tensor(T)
        if not ((T > 0) & T.isfinite()).all():
            raise ValueError("T: expected a finite temperature > 0")
        if not target.is_floating_point():
            bad = (target != ignore_index) & ((target < 0) | (target >= classes(input)))
            if bad.any():
                raise IndexError("target: expected labels in range")

    def values(self, input: Tensor) -> Tensor:
        """The logits as [rows, classes] in the accumulator's dtype."""
        last = input.movedim(1, -1) if input.dim() > 1 else input
        return last.reshape(-1, classes(input)).to(ACC.get(input.dtype, torch.float32))

    def scaled(self, z: Tensor, T) -> Tensor:
        return z / T

    def log_sum(self, x: Tensor) -> Tensor:
        return x.logsumexp(1)

    def deficit(self, x: Tensor) -> Tensor:
        """log sum_i exp(x_i) - x_j."""
        x = x - x.detach().amax(1, keepdim=True)
        return self.log_sum(x)[:, None] - x

    def masses(self, input, target, T, weight, ignore_index, smoothing) -> Tensor:
        """The target's weight of each class, [rows, classes]."""
        c, acc = classes(input), ACC.get(input.dtype, torch.float32)
        if target.is_floating_point():
            t = (1 - smoothing) * self.values(target).to(acc) + smoothing / c
            return t if weight is None else t * weight.to(acc)
        y = target.reshape(-1).long()
        used = self.used(y, ignore_index)
        t = (1 - smoothing) * torch.nn.functional.one_hot(torch.where(used, y, 0), c).to(acc)
        return self.soften(t, weight, smoothing) * used[:, None]

    def soften(self, t: Tensor, weight, smoothing) -> Tensor:
        t = t + smoothing / t.shape[1]
        return t if weight is None else t * weight.to(t.dtype)

    def used(self, y: Tensor, ignore_index: int) -> Tensor:
        return y != ignore_index

    def count(self, input, target, T, weight, ignore_index, smoothing) -> Tensor:
        """What a mean divides by."""
        if target.is_floating_point():
            return torch.tensor(target.numel() // classes(input))
        y = target.reshape(-1).long()
        used = self.used(y, ignore_index)
        return used.sum() if weight is None else torch.where(used, weight[torch.where(used, y, 0)], 0).sum()

    def temperature(self, input: Tensor, T) -> Tensor | float:
        """T such that it divides [rows, classes]."""
        if not isinstance(T, Tensor) or T.dim() == 0:
            return T
        return T.repeat_interleave(self.values(input).shape[0] // T.shape[0])[:, None]

    def loss_rows(self, input: Tensor, *problem) -> Tensor:
        T = self.temperature(input, problem[1])
        t = self.masses(input, *problem)
        return torch.where(t == 0, 0, t * self.deficit(self.scaled(self.values(input), T))).sum(1)

    def gradient(self, input: Tensor, grad_loss: Tensor, *problem) -> Tensor:
        """That of the logits, for a grad_loss of each row."""
        T = self.temperature(input, problem[1])
        t = self.masses(input, *problem)
        p = self.scaled(self.values(input), T).softmax(1)
        rows = self.slope(p, t, input.dtype) * self.incoming(grad_loss)[:, None] / T
        return self.placed(torch.where(t.any(1, keepdim=True), rows, 0), input)

    def slope(self, p: Tensor, t: Tensor, dtype) -> Tensor:
        return t.sum(1, keepdim=True) * p - t

    def incoming(self, grad_loss: Tensor) -> Tensor:
        return grad_loss

    def placed(self, rows: Tensor, input: Tensor) -> Tensor:
        """[rows, classes] where the logits have them."""
        if input.dim() == 1:
            return rows[0].to(input.dtype)
        return rows.reshape(input.movedim(1, -1).shape).movedim(-1, 1).to(input.dtype)

    def reduce(self, rows: Tensor, count: Tensor, reduction: str) -> Tensor:
        return rows if reduction == "none" else rows.sum() if reduction == "sum" else rows.sum() / count


def classes(input: Tensor) -> int:
    return input.shape[min(1, input.dim() - 1)]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, book, problem):
        ctx.save_for_backward(input)
        ctx.book, ctx.problem = book, problem
        return book.loss_rows(input.detach(), *problem)

    @staticmethod
    def backward(ctx, grad_loss):
        (input,) = ctx.saved_tensors
        return ctx.book.gradient(input, grad_loss, *ctx.problem), None, None
