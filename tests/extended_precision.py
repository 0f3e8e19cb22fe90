"""Singular values and eigenvalues of many small matrices at once in x87's extended precision (64-bit significands).

One-sided Jacobi on numpy.longdouble: every rotation is exact to 2^-64 of the columns' norms, so singular values come
with an error of a small multiple of 2^-64 * sigma_1, two thousand times below float64's.
"""

from __future__ import annotations

import numpy as np
import pytest

#: Where long double is no longer than double (MSVC, some ARM), there is no truth to hold anything to.
needed = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="numpy.longdouble is float64 here")


def singular_values(A: np.ndarray) -> np.ndarray:
    """[B, n, d] -> [B, min(n, d)] long double, descending."""
    X = np.asarray(A, dtype=np.longdouble)
    if X.shape[1] < X.shape[2]:
        X = X.transpose(0, 2, 1)
    norms = np.sqrt((X * X).sum(1))
    return -np.sort(-np.sqrt((_orthogonalised(X) ** 2).sum(1)), axis=1) if norms.size else norms


def eigenvalues(G: np.ndarray) -> np.ndarray:
    """Symmetric [B, m, m] -> [B, m] long double, ascending: those of G + s I, positive definite, less s."""
    X = np.asarray(G, dtype=np.longdouble)
    shift = 2 * np.sqrt((X * X).sum((1, 2)))[:, None]
    shifted = X + shift[:, :, None] * np.eye(X.shape[1], dtype=np.longdouble)
    return singular_values(shifted)[:, ::-1] - shift


def _orthogonalised(X: np.ndarray) -> np.ndarray:
    """X [B, n, d] times a rotation that makes its columns orthogonal."""
    X = X.transpose(2, 0, 1).copy()  # columns first: [d, B, n]
    tiny = np.finfo(np.longdouble).tiny
    for _ in range(24):
        worst = 0.0
        for p in range(len(X) - 1):
            for q in range(p + 1, len(X)):
                x, y = X[p], X[q]
                a, b, c = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
                off = np.abs(c) / np.maximum(np.sqrt(a) * np.sqrt(b), tiny)
                worst = max(worst, float(off.max()))
                theta = (b - a) / np.where(c == 0, 1, 2 * c)
                t = np.where(theta < 0, -1, 1) / (np.abs(theta) + np.sqrt(1 + theta * theta))
                t = np.where(c == 0, 0, t)[:, None]
                cosine = 1 / np.sqrt(1 + t * t)
                sine = cosine * t
                X[p], X[q] = cosine * x - sine * y, sine * x + cosine * y
        if worst < 2.0**-60:
            break
    return X.transpose(1, 2, 0)
