"""Alignment of a layer's weights with its inputs: cosines between their top singular vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrank.errors import InputError
from fastrank.kernels.rsvd import cosines_many
from fastrank.precision import full_precision, one_thread
from fastrank.subspace import SubspaceState, top_svd


@dataclass(frozen=True)
class Alignment:
    """`cosines[i, j] = |<v_i(W), u_j(A)>|` ([U] eq. 2; Masarczyk et al. 2025, Fig. 3).

    Attributes:
        cosines: [k, k], rows the weight's right singular vectors, columns the input's feature-side ones.
        errors: [k, k], how far each cosine can be off, from the vectors' sin-theta bounds; at most 1.
        max: the largest cosine. error: that of `max`. diagonal: the mean of cosines[i, i].
        chance: about the largest of k*k cosines of random directions, `sqrt(2 ln(k^2) / d)`, at most 1.
    """

    cosines: Tensor
    errors: Tensor
    max: Tensor
    diagonal: Tensor
    error: Tensor
    chance: float
    reason: str = ""


def alignment(W, A, k: int = 15):
    """Alignment of W [out, in] with A [n, in], matrices or their `top_svd` states (conv: flattened kernel, patches).

    Lists of layers give a list; their singular vectors are found in one grouped call.

    Raises:
        InputError: the two have different feature dimensions, or lists different lengths.
    """
    if not isinstance(W, list | tuple) and not isinstance(A, list | tuple):
        return alignment([W], [A], k)[0]
    if not isinstance(W, list | tuple) or not isinstance(A, list | tuple) or len(W) != len(A):
        lengths = [len(side) if isinstance(side, list | tuple) else "no list" for side in (W, A)]
        raise InputError("A", f"as many matrices as W, {lengths[0]}", lengths[1])
    sides = [*W, *A]
    matrices = [side for side in sides if not isinstance(side, SubspaceState)]
    found = iter(top_svd(matrices, k))
    states = [side if isinstance(side, SubspaceState) else next(found) for side in sides]
    pairs = list(zip(states[: len(W)], states[len(W) :], strict=True))
    for w, a in pairs:
        if a.Vh.shape[1] != w.Vh.shape[1]:
            raise InputError("A", f"{w.Vh.shape[1]} features, as W has", f"{a.Vh.shape[1]}")
    # A zero singular value has no direction of its own; NaN counts as none either.
    tops = [[min(k, side.directions) for side in pair] for pair in pairs]
    results: list[Alignment | None] = [None] * len(pairs)
    for device in dict.fromkeys(w.Vh.device for w, _ in pairs):
        here = [i for i, (w, _) in enumerate(pairs) if w.Vh.device == device]
        left = [pairs[i][0].Vh[: tops[i][0]] for i in here]
        right = [pairs[i][1].Vh[: tops[i][1]].to(x) for i, x in zip(here, left, strict=True)]
        with full_precision(device), one_thread():  # 15 x 15 from 4608 terms: 0.05 ms, by two threads 1.2
            found = cosines_many(left, right)
        for i, cosines in zip(here, found, strict=True):
            results[i] = _alignment(*pairs[i], cosines)
    return results


def _alignment(W: SubspaceState, A: SubspaceState, cosines: Tensor) -> Alignment:
    w, a = cosines.shape
    d = W.Vh.shape[1]
    errors = (W.vector_error[:w, None] + A.vector_error[None, :a].to(W.Vh)).clamp_max(1.0)
    reason = W.reason or A.reason
    if not cosines.numel():
        nan = cosines.new_full((), math.nan)
        return Alignment(
            cosines,
            errors,
            nan,
            nan,
            nan,
            math.nan,
            reason or "a matrix without a direction: all its singular values are zero",
        )
    best = cosines.flatten().argmax()
    chance = min(1.0, math.sqrt(2 * math.log(max(w * a, 2)) / d))
    return Alignment(
        cosines, errors, cosines.flatten()[best], torch.diagonal(cosines).mean(), errors.flatten()[best], chance, reason
    )
