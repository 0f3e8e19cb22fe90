"""The closed-form probe: ridge regression onto class indicators, from a Gram matrix and class sums or from few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.evaluation.probes import Probe


def ridge_probe(scatter: Tensor, sums: Tensor, counts: Tensor, penalty: float = 1e-3) -> Probe:
    """The weights that minimise sum ||Z w + b - onehot(y)||^2 + penalty * n * ||w||^2 over standardised features Z.

    No data is needed again: one pass gives the statistics, in memory that does not grow with the samples. Its answers
    are those of scikit-learn's `RidgeClassifier(alpha=penalty * n)` on standardised features.

    Args:
        scatter: [d, d] float64, sum of (x - mean)(x - mean)^T over the samples.
        sums: [C, d] float64, sum of the rows x of each class.
        counts: [C] float64, number of rows of each class.
        penalty: per sample; with standardised features every feature has a scatter of n, so it is a share.
    Raises:
        InputError: a penalty that is not positive, no samples.
    """
    n = counts.sum()
    _check(penalty, n)
    mean = sums.sum(0) / n
    std = (scatter.diagonal() / n).sqrt()
    std = std.masked_fill(std == 0, 1.0)
    share = counts / n
    if not bool(scatter.isfinite().all()):
        return _broken(len(counts), mean, std)
    # Centred indicators make the intercept the class shares, and it stays unpenalised.
    moments = (sums - counts[:, None] * mean) / std
    system = scatter / torch.outer(std, std)
    system.diagonal().add_(penalty * n)
    weight = torch.cholesky_solve(moments.T, torch.linalg.cholesky(system)).T
    return Probe(weight.float(), share.float(), mean.float(), std.float())


def ridge_probe_of_rows(centred: Tensor, mean: Tensor, labels: Tensor, classes: int, penalty: float = 1e-3) -> Probe:
    """The same probe from n rows of d > n features: of the dual problem, whose system is [n, n].

    W = Y^T (Z Z^T + penalty n I)^-1 Z is the same matrix as Y^T Z (Z^T Z + penalty n I)^-1, Y being the centred class
    indicators.

    Args:
        centred: [n, d] float64, rows minus their mean [d]. labels: [n] int64 in 0 .. classes-1.
    Raises:
        InputError: as `ridge_probe`.
    """
    n = len(centred)
    _check(penalty, n)
    std = centred.square().mean(0).sqrt()
    std = std.masked_fill(std == 0, 1.0)
    if not bool(centred.isfinite().all()):
        return _broken(classes, mean, std)
    Z = centred / std
    onehot = torch.nn.functional.one_hot(labels, classes).double()
    share = onehot.mean(0)
    system = Z @ Z.T
    system.diagonal().add_(penalty * n)
    weight = torch.cholesky_solve(onehot - share, torch.linalg.cholesky(system)).T @ Z
    return Probe(weight.float(), share.float(), mean.float(), std.float())


def _check(penalty: float, n: float | Tensor) -> None:
    if not penalty > 0:
        raise InputError("penalty", "a number > 0", penalty)
    if not n:
        raise InputError("labels", "at least one labelled sample to train probes on", 0)


def _broken(classes: int, mean: Tensor, std: Tensor) -> Probe:
    nan = mean.new_full((classes, len(mean)), torch.nan).float()
    return Probe(nan, nan[:, 0], mean.float(), std.float(), "non-finite features")
