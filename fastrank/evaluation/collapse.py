"""Neural collapse from class statistics: NC1, NC2, NC3 in their named variants (Papyan, Han & Donoho 2020).

The statistics are `means` [..., C, d] of the classes that occur, mu_c; S_W, the covariance within classes, averaged
over all samples; S_B, that of the class means about their own mean mu_G, each class counting once. With classes of
equal size these are the definitions of 2020; with unequal ones mu_G is not the mean of all samples, as the geometry is
that of the classes. Leading dimensions are networks, layers or steps worked on at once. Give float64.

Other implementations: NC1 is also found without 1 / C, with the mean of all samples as mu_G (the same for balanced
classes), and with S_W over n - C; NC4 also without the classifier's bias (the `neural-collapse` package), which counts
as disagreement what the bias decides.

Every measure is 0 at collapse. NaN where it is not defined: fewer than two classes, or class means that coincide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor


def centered(means: Tensor) -> Tensor:
    """[..., C, d]: class means minus their own mean."""
    return means - means.mean(-2, keepdim=True)


def nc1_pinv(
    means: Tensor, within: Tensor | None = None, rtol: float | None = None, *, rows: Tensor | None = None
) -> Tensor:
    """[...]: Tr(S_W pinv(S_B)) / C, the within-class spread in units of the one between classes (2020, eq. 6).

    within: S_W [..., d, d]; or rows: R [..., n, d] with S_W = R^T R, which need no d x d matrix. Eigenvalues of S_B up
    to `rtol` times the largest count as zero; by default max(C, d) * eps, about that of `torch.linalg.pinv`. The
    inverse is taken through the singular values of the class means, which keeps the half of their digits that forming
    S_B would lose. Where the means have collapsed to fewer than C - 1 directions the value hangs on `rtol`:
    `between_rank` says how many were kept.
    """
    C = means.shape[-2]
    _, sigma, Vh = torch.linalg.svd(centered(means), full_matrices=False)
    spread = ((Vh @ within) * Vh).sum(-1) if rows is None else (rows @ Vh.mT).square().sum(-2)
    kept = _kept(sigma, means, rtol)
    value = (spread / (sigma.square() / C).where(kept, 1)).where(kept, 0).sum(-1) / C
    return value.where(kept.any(-1), math.nan)


def between_rank(means: Tensor, rtol: float | None = None) -> Tensor:
    """[...] int64: directions of the class means that `nc1_pinv` keeps; C - 1 for a simplex."""
    return _kept(torch.linalg.svdvals(centered(means)), means, rtol).sum(-1)


def nc1_trace(means: Tensor, within_trace: Tensor) -> Tensor:
    """[...]: Tr S_W / Tr S_B (as in Tirer & Bruna 2022). within_trace: Tr S_W [...]."""
    return within_trace / _positive(centered(means).square().sum((-2, -1)) / means.shape[-2])


def cdnv(means: Tensor, variances: Tensor) -> Tensor:
    """[...]: class-distance normalised variance, mean over pairs of (v_c + v_k) / (2 ||mu_c - mu_k||^2).

    variances: v_c [..., C], the mean of ||h - mu_c||^2 over the samples of class c (Galanti, Gyorgy & Hutter 2022).
    """
    C = means.shape[-2]
    pairs = torch.ones(C, C, dtype=torch.bool, device=means.device).triu(1)
    # Of differences, not of products, which would cancel where two classes are close.
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    ratio = (variances[..., :, None] + variances[..., None, :]) / (2 * _positive(distances))
    return ratio[..., pairs].mean(-1)


def nc2_equinorm(vectors: Tensor) -> Tensor:
    """[...]: coefficient of variation of the norms of `vectors` [..., C, d]: centred means, or classifier rows."""
    norms = vectors.norm(dim=-1)
    return norms.std(-1, correction=0) / _positive(norms.mean(-1))


def nc2_equiangular(vectors: Tensor) -> Tensor:
    """[...]: mean over pairs of |cos + 1 / (C - 1)|, 0 for a simplex."""
    return (_cosines(vectors) + 1 / (vectors.shape[-2] - 1)).abs().mean(-1) if vectors.shape[-2] > 1 else _nan(vectors)


def nc2_angle_spread(vectors: Tensor) -> Tensor:
    """[...]: standard deviation of the cosines over pairs: equal angles, whatever their size."""
    return _cosines(vectors).std(-1, correction=0) if vectors.shape[-2] > 1 else _nan(vectors)


def etf_error(A: Tensor, B: Tensor) -> Tensor:
    """[...]: || A B^T / ||A B^T||_F - (I - 1 1^T / C) / sqrt(C - 1) ||_F (Zhu et al. 2021).

    With A = B = the centred class means it is their distance to a simplex (NC2); with A = the classifier, B = the
    centred class means it is that of the pair (NC3). Between 0 and 2.
    """
    C = A.shape[-2]
    if C < 2:
        return _nan(A)
    eye = torch.eye(C, dtype=A.dtype, device=A.device)
    product = A @ B.mT
    norm = _positive(torch.linalg.matrix_norm(product))
    return torch.linalg.matrix_norm(product / norm[..., None, None] - (eye - 1 / C) / math.sqrt(C - 1))


def nc3_duality(weight: Tensor, means: Tensor) -> Tensor:
    """[...]: || W / ||W||_F - M / ||M||_F ||_F^2, M the centred class means, W [..., C, d] (2020, eq. 8)."""
    M = centered(means)
    norms = [_positive(torch.linalg.matrix_norm(A))[..., None, None] for A in (weight, M)]
    return (weight / norms[0] - M / norms[1]).square().sum((-2, -1))


def mean_share(means: Tensor) -> Tensor:
    """[...]: ||mu_G||^2 over the mean of ||mu_c||^2, in [0, 1]: what the class means have in common."""
    return means.mean(-2).square().sum(-1) / _positive(means.square().sum(-1).mean(-1))


def nearest_class(features: Tensor, means: Tensor) -> Tensor:
    """[n] int64: the class mean nearest to each row of `features` [n, d]: the decision that NC4 compares with."""
    shift = means.mean(-2, keepdim=True)  # distances do not feel it, and products of what is left cancel less
    means, features = means - shift, features.to(means.dtype) - shift
    return (means.square().sum(-1) - 2 * features @ means.mT).argmin(-1)


@dataclass(frozen=True)
class Collapse:
    """Neural collapse of the features that enter the classifier; 0 at collapse, NaN where not defined.

    Attributes:
        nc1_pinv, nc1_rank: Tr(S_W pinv(S_B)) / C and the directions that the inverse kept.
        nc1_trace, nc1_cdnv: Tr S_W / Tr S_B; class-distance normalised variance.
        nc2_equinorm, nc2_equiangular, nc2_angle_spread, nc2_etf: of the centred class means.
        nc2_equinorm_weight, nc2_equiangular_weight: the same of the classifier's rows.
        nc3_duality, nc3_etf: classifier against class means.
        nc4: share of samples that the model and the nearest class mean decide differently; the model decides by its
            own logits, bias included.
        nc4_samples: how many samples that is a share of.
        gnc2, gnc2_lo: one-vs-rest margin of the classifier's normalised rows, and its certified lower bound.
        mean_share: of the class means' squared lengths what they have in common; no measure of collapse.
        gnc3, gnc3_centered: mean of 1 - cos(w_c, mu_c), the means as they are or centred (Jiang et al. 2024).
        classes, present: of the model; with samples in this set. Means and rows are those of the classes present.
        samples: number of samples. notes: why a figure is NaN.
    """

    nc1_pinv: float = math.nan
    nc1_rank: int = 0
    nc1_trace: float = math.nan
    nc1_cdnv: float = math.nan
    nc2_equinorm: float = math.nan
    nc2_equiangular: float = math.nan
    nc2_angle_spread: float = math.nan
    nc2_etf: float = math.nan
    nc2_equinorm_weight: float = math.nan
    nc2_equiangular_weight: float = math.nan
    nc3_duality: float = math.nan
    nc3_etf: float = math.nan
    nc4: float = math.nan
    nc4_samples: int = 0
    gnc2: float = math.nan
    gnc2_lo: float = math.nan
    gnc3: float = math.nan
    gnc3_centered: float = math.nan
    mean_share: float = math.nan
    classes: int = 0
    present: int = 0
    samples: int = 0
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, float]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("notes",)}


def _kept(sigma: Tensor, means: Tensor, rtol: float | None) -> Tensor:
    if rtol is None:
        rtol = max(means.shape[-2:]) * torch.finfo(means.dtype).eps
    return (sigma > math.sqrt(rtol) * sigma[..., :1]) & (sigma > 0)


def _cosines(vectors: Tensor) -> Tensor:
    """[..., C (C - 1) / 2]; NaN with a zero vector."""
    unit = vectors / _positive(vectors.norm(dim=-1, keepdim=True))
    C = vectors.shape[-2]
    return (unit @ unit.mT)[..., torch.ones(C, C, dtype=torch.bool, device=vectors.device).triu(1)]


def _positive(x: Tensor) -> Tensor:
    """x, with NaN for zero: what is divided by it is not defined."""
    return x.where(x > 0, math.nan)


def _nan(x: Tensor) -> Tensor:
    return x.new_full(x.shape[:-2], math.nan)
