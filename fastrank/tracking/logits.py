"""Figures of a batch's logits: norm and rank before the softmax, rank after it at the loss's temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrank.ranks import rank_counts
from fastrank.spectra import spectrum
from fastrank.tracking.figures import Figures
from fastrank.tracking.presets import TOP


def add_logits(figures: Figures, logits: Tensor, target: Tensor | None, T: float | Tensor) -> str:
    """Adds `logits/*`, and `train/accuracy` where there is a target; why they are NaN, else nothing.

    Args:
        logits: [n, C]; 16-bit ones count as float32.
        target: [n]; a negative one, such as the -100 of padding, is no class and does not count.
        T: the temperature of the softmax.
    """
    z = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    before, after = spectrum([z, torch.softmax(z / T, 1)])
    norm = z.double().norm()
    figures.add(["logits/norm", "logits/norm_over_T"], torch.stack([norm, norm / T]))
    for key, s in (("rank", before), ("softmax_rank", after)):
        figures.add([f"logits/{key}", f"logits/{key}_lo", f"logits/{key}_hi"], torch.stack(rank_counts(s)))
    figures.add_array("logits/sigma", before.sigma[:TOP])
    figures.add_array("logits/softmax_sigma", after.sigma[:TOP])
    if target is not None:
        hits, classes = logits.argmax(1) == target, target >= 0
        figures.add(["train/accuracy"], (hits & classes).double().sum() / classes.sum())
    return before.reason
