"""The closed-form probe: ridge regression onto class indicators, from a Gram matrix and class sums alone."""

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
    if not penalty > 0:
        raise InputError("penalty", "a number > 0", penalty)
    n, d = counts.sum(), len(scatter)
    if not n:
        raise InputError("labels", "at least one labelled sample to train probes on", 0)
    mean = sums.sum(0) / n
    std = (scatter.diagonal() / n).sqrt()
    std = std.masked_fill(std == 0, 1.0)
    share = counts / n
    if not bool(scatter.isfinite().all()):
        nan = scatter.new_full((len(counts), d), torch.nan).float()
        return Probe(nan, nan[:, 0], mean.float(), std.float(), "non-finite features")
    # Centred indicators make the intercept the class shares, and it stays unpenalised.
    moments = (sums - counts[:, None] * mean) / std
    system = scatter / torch.outer(std, std)
    system.diagonal().add_(penalty * n)
    weight = torch.cholesky_solve(moments.T, torch.linalg.cholesky(system)).T
    return Probe(weight.float(), share.float(), mean.float(), std.float())
