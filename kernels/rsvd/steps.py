"""One step of block subspace iteration in plain torch: the specification of `subspace_step_many`.

With the block V [d, q] and one read of A: Y = A V and Z = A^T Y. All else is small: T makes Q = Y T orthonormal, so
that B^T = A^T Q = Z T, and with its SVD, B = W S V'^T, the Ritz triplets are U = Q W, S, V', with A^T u = s v. The
Gram matrices of Y and Z and everything of size q x q are in float64, whatever A's dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastrank.kernels.rsvd.config import DEPENDENT, FILL_SEED, NEGLIGIBLE, NOISE, PASSES
from fastrank.kernels.rsvd.reference import test_matrix
from torch import Tensor

Step = tuple[Tensor, ...]  # the members of fastrank.kernels.rsvd.Step


def subspace_step(A: Tensor, V: Tensor, k: int) -> Step:
    """As `fastrank.kernels.rsvd.subspace_step_many`, of one matrix; V has the dtype of the products."""
    A = A.to(V.dtype)
    q = V.shape[1]
    k = min(k, q)
    # Powers of two, so that neither A V nor A^T A V leaves the range of the dtype.
    scale = _power_of_two(A)
    Y = A @ (V * scale)
    Z = (A.T @ (Y * scale)).double()
    Y, V64 = Y.double(), V.double()
    G = Y.T @ Y
    finite = torch.isfinite(Z).all() & torch.isfinite(G).all()
    G, Z = (torch.where(finite, X, torch.zeros_like(X)) for X in (G, Z))
    Y = torch.where(finite, Y, torch.zeros_like(Y))

    _, theta, Xh = torch.linalg.svd(Y, full_matrices=False)
    # Fewer rows than columns have fewer values.
    X, theta = F.pad(Xh.T, (0, q - len(theta))), F.pad(theta, (0, q - len(theta)))
    entering = (Z @ X - V64 @ X * theta**2).norm(dim=0) * _inverse(
        torch.where(theta > NOISE[V.dtype] * theta[:1], theta, 0.0)
    )

    length2 = G.diagonal()
    measured = length2 > NOISE[V.dtype] ** 2 * length2.amax()
    T = orthonormaliser(torch.where(measured[:, None] & measured, G, torch.zeros_like(G)))
    _, S, Wh = torch.linalg.svd(Z @ T, full_matrices=False)
    M = T @ Wh.T
    S = torch.where(NEGLIGIBLE[V.dtype] * S[:1] < S, S, 0.0)
    after = orthonormal((Z @ M * _inverse(S)).to(V.dtype))
    U = (Y @ M * (S > 0)).to(V.dtype)[:, :k]

    top = after[:, :k]
    residual = (A @ (top * scale) - U * S[:k].to(V.dtype)).double().norm(dim=0)
    nan = torch.full((), torch.nan, dtype=torch.float64, device=A.device)
    norm = (A * scale).double().norm()
    U, S, residual, entering, norm = (
        torch.where(finite, x.double() / unit, nan).to(V.dtype)
        for x, unit in ((U, 1.0), (S, scale), (residual, scale), (entering, scale), (norm, scale))
    )
    return U, S, torch.where(finite, after, V), residual, entering, norm


def orthonormal(X: Tensor) -> Tensor:
    """As `fastrank.kernels.rsvd.orthonormal_many`, of one block.

    Cholesky QR, again and again: what a pass leaves, the next takes away (CholeskyQR2). Random columns stand in for
    those that depend on others, and come last from then on: whoever was there before them keeps its direction.
    """
    d, q = X.shape
    fill = test_matrix(d, q, FILL_SEED, dtype=X.dtype, device=X.device)
    X = torch.where(torch.isfinite(X).all(0), X, torch.zeros_like(X))
    filled = torch.zeros(q, dtype=torch.long, device=X.device)
    for last in range(PASSES - 1, -1, -1):
        order = torch.argsort(filled, stable=True)
        T = orthonormaliser(X.double().T @ X.double(), order)
        X = (X.double() @ T).to(X.dtype)
        if last:
            lost = T.diagonal() == 0
            X, filled = torch.where(lost, fill, X), filled | lost
    return X


def orthonormaliser(G: Tensor, order: Tensor | None = None) -> Tensor:
    """T [q, q] such that T^T G T is the identity, but for columns that depend on others, whose column of T is zero.

    Cholesky of G with a unit diagonal. A column is dependent where what the ones before leave of it is at most
    DEPENDENT of its own norm. Without an `order`, the largest remainder comes first.
    """
    q = len(G)
    inverse = _inverse(G.diagonal().clamp_min(0).sqrt())
    rest = G * inverse[:, None] * inverse
    T, result = torch.diag(inverse), torch.zeros_like(G)
    done = torch.zeros(q, dtype=torch.bool, device=G.device)
    for j in range(q):
        left = torch.where(done, -1.0, rest.diagonal())
        p = left.argmax(keepdim=True) if order is None else order[j : j + 1]
        factor = torch.where(left[p] > DEPENDENT**2, left[p].clamp_min(1e-300).rsqrt(), 0.0)
        column = T[:, p] * factor
        row = rest[p] * factor
        result.index_copy_(1, p, column)
        done = done.index_fill(0, p, True)
        T = T - column @ row
        rest = rest - row.T @ row
    return result


def _power_of_two(A: Tensor) -> Tensor:
    """2^-e for the largest |A_ij| in [2^(e-1), 2^e); 1 where that says nothing."""
    largest = A.abs().amax() if A.numel() else A.new_zeros(())
    _, e = torch.frexp(largest)
    usable = torch.isfinite(largest) & (largest > 0)
    limit = 110 if A.dtype == torch.float32 else 900
    e = torch.where(usable, e, torch.zeros_like(e)).clamp(-limit, limit)
    return torch.ldexp(A.new_ones(()), -e)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1 / x.clamp_min(torch.finfo(x.dtype).tiny), torch.zeros_like(x))
