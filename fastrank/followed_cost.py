"""What a tracked step does with a large weight or gradient that is not computed anew, counted.

It follows `fastrank.carried`, `fastrank.factored` and `fastrank.sketched` as they stand. Products with a few random
vectors and the passes over a matrix are counted; the algebra of a few columns is not.
"""

from __future__ import annotations

import torch

from fastrank import factored, sketched
from fastrank.carried import RENEW, SMALLEST_SIDE
from fastrank.kernels.cost import Launch
from fastrank.kernels.gram import cost as gram

#: Each launch, and each factorisation as (name, flops).
Counted = tuple[tuple[Launch, ...], tuple[tuple[str, int], ...]]


def is_carried(n: int, d: int) -> bool:
    return min(n, d) >= SMALLEST_SIDE


def renewal(n: int, d: int) -> int:
    """Steps from one exact spectrum of a carried matrix to the next, at least."""
    return min(n, d) // RENEW


def carried(n: int, d: int, dtype: torch.dtype) -> Counted:
    """Between two exact spectra: the distance of X from its anchor and its norm, in one read of both."""
    unit = "fp64" if dtype == torch.float64 else "fp32"
    return (Launch("distances", 2 * n * d * dtype.itemsize, 0, {unit: 5 * n * d}),), ()


def from_factors(n: int, d: int, rows: int) -> Counted:
    """Of a gradient [n, d] that is a product of float32 factors [rows, n] and [rows, d].

    Their Gram matrices, the eigenvalues of the product of these, and the first round of probes, which is all that the
    gradients of an MLP and of a ResNet-10 took in their first steps. A second takes twice as much.
    """
    r, columns = rows, 1 + factored.PROBES
    small = Launch("torch.linalg.cholesky", 3 * 8 * r * r, 8 * r * r, {"fp64": r**3 // 3 + 4 * r**3})
    numbers = n * d + r * (n + d)
    checks = Launch("torch.probes", 4 * numbers, 0, {"fp64": 2 * columns * numbers})
    launches = (*gram.dual(r, n), *gram.dual(r, d), small, checks)
    return launches, (("eigvalsh", 4 * r**3 // 3),)


def from_sketch(n: int, d: int, width: int) -> Counted:
    """Of a gradient [n, d] with a sketch of so many columns: two products, an orthonormal basis, five probes, and the
    spectrum of what is left."""
    m, long, q = min(n, d), max(n, d), width
    products = {"fp32": 4 * m * long * q + 4 * m * q * q, "fp64": 2 * m * q * q}
    sketch = Launch("torch.sketch", 2 * 4 * n * d, 4 * q * (m + long), products)
    numbers = n * d + q * (n + d)
    checks = Launch("torch.probes", 3 * 4 * n * d, 0, {"fp64": 3 * 2 * sketched.PROBES * numbers})
    return (sketch, checks, *gram.dual(q, long)), (("eigvalsh", 4 * q**3 // 3),)
