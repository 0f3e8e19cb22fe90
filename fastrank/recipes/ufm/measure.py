"""What is recorded of a batch of runs: singular values with a bound, loss, margin, and the measures of collapse."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrank.evaluation.collapse import centered, etf_error, nc1_trace, nc2_equiangular, nc2_equinorm, nc3_duality
from fastrank.evaluation.softmax_codes import gnc3
from fastrank.recipes.ufm.model import DeepUFM, features, logits, losses, margins
from fastrank.small_grams import U64

#: Figures of every record; those of COLLAPSE are left out where a simulation does not ask for them.
ALWAYS = ("loss", "margin", "accuracy", "norm", "etf")
COLLAPSE = ("nc1_trace", "nc2_equinorm", "nc2_equiangular", "nc3_duality", "gnc3_centered")


def measure(weights: list[Tensor], model: DeepUFM, collapse: bool = True) -> dict[str, Tensor]:
    """Figures of each run, [B] float64 ("sigma": [B, min(N, C)]); NaN where the logits are not finite.

    sigma, sigma_bound: singular values of Z, largest first, and how far each can be from those of the exact product of
    the stored weights: LAPACK's backward error and the rounding of L - 1 products (Higham 2002, eq. 3.13).
    loss: mean cross-entropy. margin: smallest z_y - max z_other over samples. accuracy: share of positive margins.
    norm: ||Z||_F. etf: distance of the class means of Z, centred over classes, to the simplex (`etf_error`, with the
    identity as the other factor): 0 exactly at neural collapse of the logits.
    COLLAPSE: of the features W_1 ... W_{L-1} and the classifier W_L, as in fastrank.evaluation; NaN with L = 1, where
    no layer lies between them. NC1 is 0 with one sample per class.
    """
    weights = [W.double() for W in weights]
    Z, labels = logits(weights), model.labels.to(weights[0].device)
    fine = Z.isfinite().flatten(1).all(1)
    Z = Z.masked_fill(~fine[:, None, None], 0)
    sigma = torch.linalg.svdvals(Z)
    sizes = torch.stack([W.flatten(1).norm(dim=1) for W in weights]).prod(0)
    inner = sum(shape[1] for shape in model.shapes[:-1])
    each = margins(Z, labels)
    means = class_means(Z, model)
    means = means - means.mean(-1, keepdim=True)
    eye = torch.eye(model.classes, dtype=Z.dtype, device=Z.device).expand_as(means)
    found = {
        "sigma": sigma,
        "sigma_bound": max(Z.shape[1:]) * U64 * sigma[:, 0] + inner * U64 * sizes,
        "loss": losses(Z, labels),
        "margin": each.amin(1),
        "accuracy": (each > 0).double().mean(1),
        "norm": sigma.norm(dim=1),
        "etf": etf_error(centered(means), eye),
    }
    if collapse:
        found |= _collapse([W.masked_fill(~fine[:, None, None], 0) for W in weights], model)
    return {name: torch.where(_like(fine, value), value, torch.nan) for name, value in found.items()}


def class_means(X: Tensor, model: DeepUFM) -> Tensor:
    """[B, C, d] of rows X [B, N, d]."""
    return X.unflatten(1, (model.classes, model.samples)).mean(2)


def _collapse(weights: list[Tensor], model: DeepUFM) -> dict[str, Tensor]:
    if model.depth == 1:
        return {name: weights[0].new_full((len(weights[0]),), torch.nan) for name in COLLAPSE}
    H, W = features(weights), weights[-1].mT
    means = class_means(H, model)
    within = (H.unflatten(1, (model.classes, model.samples)) - means[:, :, None]).square().sum((1, 2, 3)) / model.rows
    M = centered(means)
    return {
        "nc1_trace": nc1_trace(means, within),
        "nc2_equinorm": nc2_equinorm(M),
        "nc2_equiangular": nc2_equiangular(M),
        "nc3_duality": nc3_duality(W, means),
        "gnc3_centered": gnc3(W, means, center=True),
    }


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask if value.ndim == 1 else mask[:, None]
