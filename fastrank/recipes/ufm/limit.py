"""The gradient flow's path beyond any time: parametrised by the growth of the weights' norm.

Margins grow as log t, so that in time the limit is out of reach, and the loss underflows at margins of 745. On the same
path the gradient, scaled by a positive number of each run, may be followed instead: dW/dtau = -||W|| G / ||G||, G any
positive multiple of dloss/dW. The probabilities are scaled by the largest of the wrong classes', in logarithms, so that
nothing underflows; tau is the path's length relative to the weights. How fast directions converge in the margin depends
on the depth (DevNotes.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.recipes.ufm.integrate import Integrator
from fastrank.recipes.ufm.model import DeepUFM, check_weights, join, logits, margins, split

#: tau between two looks at the margin, which grows by a factor of exp(L tau) at most.
LOOK = 0.02


def follow(
    weights: list[Tensor], model: DeepUFM, margin: float, rtol: float = 1e-6, atol: float = 1e-9
) -> tuple[list[Tensor], Tensor]:
    """(weights [B, m, n] float64 where the flow's path from `weights` first has this margin, failed [B] bool).

    margin: smallest target logit less the largest other, as in `measure`; up to one `LOOK` is gone beyond it. A run
    that starts with it stays. rtol, atol: as in `flow`. The steps needed are about margin / L.

    Raises:
        InputError: shapes that do not fit, a margin that is not positive and finite.
    """
    check_weights(weights, model)
    if not 0 < margin < float("inf"):
        raise InputError("margin", "a positive number", margin)
    y = join([W.detach().double() for W in weights])
    integrator = Integrator(lambda y, runs: direction(y, model), y, rtol, atol)
    labels, tau = model.labels.to(y.device), 0.0
    active = torch.ones(len(y), dtype=torch.bool, device=y.device)
    while True:
        active &= ~integrator.failed & (margins(logits(split(integrator.y, model)), labels).amin(1) < margin)
        if not bool(active.any()):
            return split(integrator.y, model), integrator.failed
        tau += LOOK
        integrator.advance(tau, active)


def direction(y: Tensor, model: DeepUFM) -> Tensor:
    """[B, P]: -||W|| G / ||G|| of flat states y [B, P]; see above."""
    weights = split(y, model)
    prefixes = [weights[0]]
    for W in weights[1:]:
        prefixes.append(torch.bmm(prefixes[-1], W))
    target = torch.nn.functional.one_hot(model.labels.to(y.device), model.classes).bool()
    wrong = prefixes[-1].log_softmax(2).masked_fill(target, -torch.inf)
    P = (wrong - wrong.amax((1, 2), keepdim=True)).exp()
    D = P - P.sum(2, keepdim=True) * target
    layers = []
    for l in range(model.depth - 1, 0, -1):
        layers.append(torch.bmm(prefixes[l - 1].mT, D))
        D = torch.bmm(D, weights[l].mT)
    G = join([D, *reversed(layers)])
    return G * (-y.norm(dim=1) / G.norm(dim=1))[:, None]
