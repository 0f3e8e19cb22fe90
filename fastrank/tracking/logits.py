"""Figures of a batch's logits: norm and rank before the softmax, rank after it at the loss's temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrank.ranks import rank_counts
from fastrank.spectra import spectrum
from fastrank.tracking.figures import Figures
from fastrank.tracking.presets import TOP


def logits_matrix(logits: Tensor) -> Tensor:
    """[N, C] or [N, C, ...] as [rows, C]."""
    return logits.detach().movedim(1, -1).flatten(0, -2)


def add_logits(figures: Figures, logits: Tensor, target: Tensor | None, T: float | Tensor) -> str:
    """Adds `logits/*`, and `train/accuracy` where there is a target [N]; why they are NaN, else nothing.

    16-bit logits count as float32. T: the temperature of the softmax.
    """
    z = logits_matrix(logits)
    z = z if z.dtype in (torch.float32, torch.float64) else z.float()
    before, after = spectrum([z, torch.softmax(z / T, 1)])
    norm = z.double().norm()
    figures.add(["logits/norm", "logits/norm_over_T"], torch.stack([norm, norm / T]))
    for key, s in (("rank", before), ("softmax_rank", after)):
        figures.add([f"logits/{key}", f"logits/{key}_lo", f"logits/{key}_hi"], torch.stack(rank_counts(s)))
    figures.add_array("logits/sigma", before.sigma[:TOP])
    figures.add_array("logits/softmax_sigma", after.sigma[:TOP])
    if target is not None:
        figures.add(["train/accuracy"], (logits.argmax(1) == target).double().mean())
    return before.reason
