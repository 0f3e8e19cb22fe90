"""The dynamics under spectral initialisation: an ODE in the singular values alone (derivation in DevNotes.md).

With balanced, aligned layers and Z = U diag(s) U^T, gradient flow of depth L moves

    ds_r/dt = L s_r^(2 - 2/L) g_r(s),    g_r = u_r^T (Y - P) u_r / C,

P the row-wise softmax of Z and Y the identity, for as long as U^T (Y - P) U is diagonal: always in the bases of
bases.py. Each layer's singular value w_r = s_r^(1/L) then follows dw_r/dt = w_r^(L-1) g_r, and gradient descent is that
ODE's Euler steps, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrank.recipes.ufm.integrate import Integrator


def forces(s: Tensor, U: Tensor) -> Tensor:
    """g [B, k] at singular values s [B, k] in the basis U [C, k], float64."""
    Z = torch.einsum("ik,bk,jk->bij", U, s, U)
    P = torch.softmax(Z, -1)
    off = P - torch.diag_embed(P.diagonal(dim1=1, dim2=2))
    force = torch.diag_embed(off.sum(-1)) - off  # Y - P, without rounding p near 1
    return torch.einsum("ik,bij,jk->bk", U, force, U) / len(U)


def off_diagonal(s: Tensor, U: Tensor) -> Tensor:
    """[B], the share of ||U^T (Y - P) U||_F off its diagonal: 0 where the reduction is exact."""
    P = torch.softmax(torch.einsum("ik,bk,jk->bij", U, s, U), -1)
    G = torch.einsum("ik,bij,jl->bkl", U, torch.eye(len(U), dtype=P.dtype) - P, U)
    off = G - torch.diag_embed(G.diagonal(dim1=1, dim2=2))
    return off.norm(dim=(1, 2)) / G.norm(dim=(1, 2))


def reduced_flow(
    s: Tensor, U: Tensor, depth: int | Tensor, times: Sequence[float] | Tensor, rtol: float = 1e-10, atol: float = 1e-13
) -> Tensor:
    """[T, B, k], the singular values at `times` (ascending, from 0 on) from s [B, k]; depth: one, or [B]."""
    L = torch.as_tensor(depth, dtype=torch.float64).expand(len(s))[:, None]
    integrator = Integrator(lambda w, runs: _layer_rate(w, U, L[runs]), s.double() ** (1 / L), rtol, atol)
    everyone, found = torch.ones(len(s), dtype=torch.bool), []
    for time in torch.as_tensor(times).tolist():
        integrator.advance(time, everyone)
        found.append(torch.where(integrator.failed[:, None], torch.nan, integrator.y.clamp_min(0) ** L))
    return torch.stack(found)


def reduced_descent(s: Tensor, U: Tensor, depth: int | Tensor, lr: float | Tensor, record: Sequence[int]) -> Tensor:
    """[T, B, k], the singular values at the steps `record` of gradient descent; what `descend` does on such weights."""
    L = torch.as_tensor(depth, dtype=torch.float64).expand(len(s))[:, None]
    lr = torch.as_tensor(lr, dtype=torch.float64).expand(len(s))[:, None]
    w, found, at = s.double() ** (1 / L), [], 0
    for step in record:
        for _ in range(step - at):
            w = w + lr * _layer_rate(w, U, L)
        at = step
        found.append(w**L)
    return torch.stack(found)


def turning_point(classes: int, depth: int) -> float:
    """s* = C (1 - 2/L): below it singular values near a common s repel each other relative to s, above they attract."""
    return classes * (1 - 2 / depth)


def amplification(s: Tensor | float, start: Tensor | float, classes: int, depth: int) -> Tensor:
    """How much a small relative deviation from collapse has grown when the common value has gone from `start` to s.

    delta(s) / delta(start) = (s / start)^(1 - 2/L) exp(-(s - start) / C), exact to first order in delta.
    """
    s, start = (torch.as_tensor(x, dtype=torch.float64) for x in (s, start))
    return (s / start) ** (1 - 2 / depth) * torch.exp(-(s - start) / classes)


def critical_deviation(start: float, classes: int, depth: int, largest: float = 1.0) -> float:
    """The relative deviation at `start` that first-order theory brings to `largest` at its peak: the basin's radius.

    A first-order estimate used beyond its range, so of the right order only.
    """
    peak = max(turning_point(classes, depth), start)
    return largest / float(amplification(peak, start, classes, depth))


def _layer_rate(w: Tensor, U: Tensor, L: Tensor) -> Tensor:
    return w ** (L - 1) * forces(w**L, U)
