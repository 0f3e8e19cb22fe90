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
        max: the largest cosine. diagonal: the mean of cosines[i, i].
        error: of the pair that `max` is of; another, less settled pair may truly be larger.
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
    tops = [tuple(min(k, side.directions) for side in pair) for pair in pairs]
    groups: dict[tuple, list[int]] = {}
    for index, ((w, _), (rows, columns)) in enumerate(zip(pairs, tops, strict=True)):
        groups.setdefault((w.Vh.device, w.Vh.dtype, rows, columns), []).append(index)
    results: list[Alignment | None] = [None] * len(pairs)
    for (device, _, rows, columns), here in groups.items():
        left = [pairs[i][0].Vh[:rows] for i in here]
        right = [pairs[i][1].Vh[:columns].to(x) for i, x in zip(here, left, strict=True)]
        with full_precision(device), one_thread():  # 15 x 15 from 4608 terms: 0.05 ms, by two threads 1.2
            cosines = torch.stack(cosines_many(left, right))
        for index, result in zip(here, _alignments([pairs[i] for i in here], cosines), strict=True):
            results[index] = result
    return results


def _alignments(pairs: list[tuple[SubspaceState, SubspaceState]], cosines: Tensor) -> list[Alignment]:
    """From the cosines [m, w, a] of m pairs, a dozen small operations for all."""
    m, w, a = cosines.shape
    of_w, of_a = torch.stack([x.vector_error[:w] for x, _ in pairs]), [x.vector_error[:a] for _, x in pairs]
    errors = (of_w[:, :, None] + torch.stack(of_a).to(of_w)[:, None]).clamp_max(1.0)
    if w and a:
        reasons = [""] * m
        largest, best = cosines.flatten(1).max(1)
        of_best = errors.flatten(1).gather(1, best[:, None])[:, 0]
        diagonal = cosines.diagonal(dim1=1, dim2=2).mean(1)
        chances = [min(1.0, math.sqrt(2 * math.log(max(w * a, 2)) / x.Vh.shape[1])) for x, _ in pairs]
    else:
        none = "a matrix without a direction: all its singular values are zero"
        reasons = [x.reason or y.reason or none for x, y in pairs]
        largest = of_best = diagonal = cosines.new_full((m,), math.nan)
        chances = [math.nan] * m
    columns = (x.unbind() for x in (cosines, errors, largest, diagonal, of_best))
    return [Alignment(*each) for each in zip(*columns, chances, reasons, strict=True)]
