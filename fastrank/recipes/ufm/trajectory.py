"""`Trajectory`: what a simulation recorded of its runs, and where each ended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastrank.metrics import effective_rank
from fastrank.ranks import rank_counts
from fastrank.recipes.ufm.model import DeepUFM
from fastrank.spectra import Spectrum


@dataclass
class Trajectory:
    """Records of B runs at T times.

    Attributes:
        model: their sizes. times: [T] float64, gradient steps (descent) or time (flow).
        figures: name -> [T, B] float64, see `measure`; "sigma" is [T, B, k]. A run that has stopped keeps its last
            figures, a diverged one has NaN.
        stopped: [B], the time at which the loss fell to the criterion; NaN for a run that went on to the end.
        diverged: [B] bool, the loss rose far above its start or was not finite: the step was too large.
        weights: the last ones, [B, m, n] each.
    """

    model: DeepUFM
    times: Tensor
    figures: dict[str, Tensor]
    stopped: Tensor
    diverged: Tensor
    weights: list[Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.figures[name]

    @property
    def spectrum(self) -> Spectrum:
        """The singular values with leading dimensions [T, B], for figures that work along the last dimension."""
        sigma, bound = self["sigma"], self["sigma_bound"][..., None]
        return Spectrum(sigma, bound.expand_as(sigma), bound[..., 0], self.model.rows, self.model.classes,
                        self.weights[0].dtype, False, "svd64")  # fmt: skip

    def rank(self, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
        """(rank, lo, hi), [T, B] float64: #{sigma_i > rtol * sigma_1} and the counts that rounding leaves open.

        From a generic start no singular value is ever zero, so the rank is that at a tolerance, which must be named.
        """
        return rank_counts(self.spectrum, rtol=rtol)

    def effective_rank(self) -> Tensor:
        """[T, B], exp of the entropy of sigma / sum(sigma): a rank that needs no tolerance."""
        return effective_rank(self.spectrum)


def log_times(last: float, per_decade: int = 10, first: float = 1.0) -> Tensor:
    """[T] float64: 0, then `per_decade` times a decade from `first` up to `last`."""
    count = max(2, round(per_decade * torch.tensor(last / first).log10().item()) + 1)
    return torch.cat([torch.zeros(1), torch.logspace(0, 1, count, base=last / first).mul(first)]).double()


def log_steps(last: int, per_decade: int = 10) -> list[int]:
    """0, 1, 2, ... `last`, whole steps, at most `per_decade` a decade."""
    return sorted({round(t) for t in log_times(last, per_decade).tolist()} | {last}) if last > 1 else [0, last]
