"""Orthonormal bases of the class space without its constant direction, in which softmax keeps a matrix diagonal.

Z = U diag(s) U^T stays diagonal in the same basis under the cross-entropy's gradient when Z[i, j] depends on a
difference in an abelian group only: softmax acts entry by entry and its row sums are then all equal, so that the
gradient is such a matrix too, and the characters of the group diagonalise all of them at once (DevNotes.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastrank.errors import InputError


def walsh(classes: int) -> Tensor:
    """[C, C-1] float64, the Walsh functions but the constant one; Z[i, j] depends on i xor j, and every s is free.

    Raises:
        InputError: classes is no power of two.
    """
    if classes < 2 or classes & (classes - 1):
        raise InputError("classes", "a power of two", classes, "use the Fourier basis")
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < classes:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H[:, 1:] / math.sqrt(classes)


def fourier(classes: int) -> Tensor:
    """[C, C-1] float64, cosines and sines of frequencies 1 .. C/2, side by side.

    Z[i, j] depends on i - j mod C where the two of a frequency (`frequencies`) have equal s; only then is the
    reduction exact.
    """
    angle = 2 * math.pi / classes * torch.arange(classes, dtype=torch.float64)
    columns = []
    for k in range(1, classes // 2 + 1):
        columns.append(torch.cos(k * angle))
        if 2 * k != classes:
            columns.append(torch.sin(k * angle))
    return torch.nn.functional.normalize(torch.stack(columns, 1), dim=0)


def frequencies(classes: int) -> Tensor:
    """[C-1] int64, the frequency of each column of `fourier`, from 0: columns of one frequency share a value."""
    return torch.arange(classes - 1) // 2


def random_basis(classes: int, generator: torch.Generator) -> Tensor:
    """[C, C-1] float64, Haar-distributed; in it the reduction is an approximation."""
    G = torch.randn(classes, classes, dtype=torch.float64, generator=generator)
    G[:, 0] = 1
    Q, R = torch.linalg.qr(G)
    return (Q * R.diagonal().sign())[:, 1:]
