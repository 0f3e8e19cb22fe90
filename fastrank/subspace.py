"""Top-k singular triplets, warm-started from call to call, each with its error."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from fastrank.errors import InputError

#: Columns of the iterated block beyond k. A block without them stalls at sin 0.04-0.2 on drifting weights.
OVERSAMPLE = 12
#: Columns that are drawn anew at every warm call: only they can see a direction that was not there before.
FRESH = 4
#: Up to this small side a cold start is exact (an eigenproblem of that size, float64); beyond it, a range finder.
EXACT_SIDE = 1024
#: Half-steps of a cold range finder: two power iterations (Halko, Martinsson & Tropp 2011, section 4.5).
COLD_HALF_STEPS = 5
#: A warm call repeats itself when the largest residual exceeds both that of the last call times JUMP and
#: JUMP_FLOOR * sigma_1: something changed, and it must be seen in the call in which it happens.
JUMP, JUMP_FLOOR, MAX_REPEATS = 3.0, 1e-3, 2


@dataclass(frozen=True)
class SubspaceState:
    """Top-k singular triplets of A [n, d] and the block from which the next call goes on.

    Attributes:
        U: [n, k], S: [k] descending, Vh: [k, d]: A is about U diag(S) Vh on its top directions; A's dtype, float32
            at least.
        residual: [k], `||A v_i - s_i u_i||`, absolute; a true singular value lies within it of S[i].
        vector_error: [k], sin of the angle between v_i and a true singular vector, at most (Wedin): residual over the
            gap to the neighbouring values; 1 where the gap is below the residual.
        cluster: [k] bool, the gap is below the residual: v_i is any vector of a cluster's space.
        block: [d, q] orthonormal, what the next call iterates. calls: number of calls so far, which numbers the draws.
        seed: of the draws; same seed, same numbers on every machine.
        reason: why everything is NaN; empty otherwise.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    residual: Tensor
    vector_error: Tensor
    cluster: Tensor
    block: Tensor
    calls: int
    seed: int
    reason: str = ""

    @property
    def k(self) -> int:
        return len(self.S)

    def state_dict(self) -> dict:
        """Tensors and plain values only."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict) -> SubspaceState:
        return cls(**{field.name: state[field.name] for field in fields(cls)})


def top_svd(A, k: int = 15, state=None, *, seed: int = 0):
    """The top-k singular triplets of A [n, d]; for a list of matrices, a list of states.

    Without `state` the start is cold: exact where min(n, d) <= 1024, else a randomized range finder with two power
    iterations. With the state of the last call on a matrix of the same d, one warm step of block subspace iteration
    with fresh random directions, repeated where the residual jumps. The global random state is not touched.

    Args:
        A: [n, d] floating point. k: capped at min(n, d).
        state: what the last call returned (a list for a list); n may differ from call to call, d may not.
    Raises:
        InputError: A is not a floating-point matrix, k < 1, or `state` belongs to another d.
    """
    if not isinstance(A, Tensor):
        states = [None] * len(A) if state is None else state
        if len(states) != len(A):
            raise InputError("state", f"a list of {len(A)} states, one per matrix", f"{len(states)}")
        return [top_svd(member, k, old, seed=seed) for member, old in zip(A, states, strict=True)]
    if A.ndim != 2 or not A.is_floating_point():
        raise InputError("A", "a floating-point matrix [n, d]", f"{A.dtype} of shape {tuple(A.shape)}")
    if k < 1:
        raise InputError("k", "at least 1", k)
    n, d = A.shape
    if state is not None and state.block.shape[0] != d:
        raise InputError("state", f"one of a matrix with d = {d}", f"d = {state.block.shape[0]}")
    A = A.detach()
    A = A if A.dtype in (torch.float32, torch.float64) else A.float()
    k, q = min(k, n, d), min(k + OVERSAMPLE, n, d)
    calls, seed = (state.calls + 1, state.seed) if state is not None else (1, seed)
    if not bool(A.isfinite().all()) or k == 0:
        return _nan_state(A, k, state, calls, seed)
    usable = state is not None and not state.reason and state.block.shape[1] > 0
    if usable:
        fresh = _gaussian(d, min(FRESH, q), seed, calls, A)
        kept = state.block[:, : q - fresh.shape[1]].to(A)
        V = _orthonormal(torch.cat([kept, fresh], 1))
        result = _half_steps(A, V, k, half_steps=1)
        limit = JUMP_FLOOR * result[1][:1]
        if not state.residual.isnan().any() and len(state.residual):
            limit = torch.maximum(limit, JUMP * state.residual.max().to(A))
        for _ in range(MAX_REPEATS):
            if bool(result[3].max() <= limit):
                break
            result = _half_steps(A, result[4], k, half_steps=1)
    elif min(n, d) <= EXACT_SIDE:
        result = _exact(A, k, q)
    else:
        result = _half_steps(A, _orthonormal(_gaussian(d, q, seed, calls, A)), k, half_steps=COLD_HALF_STEPS)
    U, S, Vh, residual, block, rest = result
    # The iteration's own rounding: a residual smaller than this is not a measurement.
    residual = residual + 8 * torch.finfo(A.dtype).eps * S[:1]
    error, cluster = _vector_error(S, residual, rest)
    return SubspaceState(U, S, Vh, residual, error, cluster, block, calls, seed)


def _exact(A: Tensor, k: int, q: int) -> tuple[Tensor, ...]:
    """Through the eigenvectors of the smaller Gram matrix in float64, which squares the condition but only of the top."""
    X = A.double()
    tall = X.shape[0] >= X.shape[1]
    _, vectors = torch.linalg.eigh(X.T @ X if tall else X @ X.T)
    top = vectors.flip(1)[:, :q]
    V = top if tall else _orthonormal(X.T @ top)
    return _rayleigh_ritz(A, V.to(A.dtype), k)


def _half_steps(A: Tensor, V: Tensor, k: int, half_steps: int) -> tuple[Tensor, ...]:
    """Block subspace iteration from V [d, q], then Rayleigh-Ritz on what it reached."""
    for step in range(half_steps):
        side = _orthonormal(A @ V if step % 2 == 0 else A.T @ V)
        V = side
    if half_steps % 2:
        V = _orthonormal(A.T @ V)
    return _rayleigh_ritz(A, V, k)


def _rayleigh_ritz(A: Tensor, V: Tensor, k: int) -> tuple[Tensor, ...]:
    """Best triplets within span(V): SVD of A V [n, q] through its small Gram matrix, and the left-over residual."""
    AV = A @ V
    small = AV.double().T @ AV.double()
    values, rotation = torch.linalg.eigh(small)
    values, rotation = values.flip(0), rotation.flip(1).to(A.dtype)
    S = values.clamp_min(0).sqrt().to(A.dtype)
    block = V @ rotation
    U = (AV @ rotation[:, :k]) / S[:k].clamp_min(torch.finfo(A.dtype).tiny)
    # A v = s u holds by construction; what is left over is the other side, A^T u - s v.
    residual = (A.T @ U - block[:, :k] * S[:k]).norm(dim=0)
    # A zero singular value has no left vector; its right vector is any of the null space.
    residual = torch.where(S[:k] > 0, residual, torch.zeros_like(residual))
    rest = S[k : k + 1] if len(S) > k else S.new_zeros(1)
    return U, S[:k], block[:, :k].T, residual, block, rest


def _vector_error(S: Tensor, residual: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """sin-theta bound (Wedin 1972) from residual over gap, and where the gap does not exceed the residual."""
    padded = torch.cat([S.new_full((1,), torch.inf), S, rest])
    gap = torch.minimum(padded[:-2] - S, S - padded[2:])
    distance = (gap - residual).clamp_min(0)
    cluster = gap <= 2 * residual
    error = torch.where(cluster, torch.ones_like(S), residual / distance.clamp_min(torch.finfo(S.dtype).tiny))
    return error.clamp_max(1.0), cluster


def _orthonormal(Y: Tensor) -> Tensor:
    """Orthonormal basis [d, q] of the columns of Y, by Householder QR."""
    return torch.linalg.qr(Y)[0]


def _gaussian(rows: int, columns: int, seed: int, call: int, like: Tensor) -> Tensor:
    """Standard normal [rows, columns], a function of (seed, call) alone, drawn on the CPU so that devices agree."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + call) & 0x7FFFFFFFFFFFFFFF)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32).to(like)


def _nan_state(A: Tensor, k: int, state: SubspaceState | None, calls: int, seed: int) -> SubspaceState:
    """NaN figures, but the block of the last good call, so that tracking recovers with the data."""
    nan = A.new_full((k,), torch.nan)
    block = state.block if state is not None else A.new_zeros(A.shape[1], 0)
    reason = "non-finite values in the matrix" if k else "an empty matrix"
    return SubspaceState(
        A.new_full((A.shape[0], k), torch.nan), nan, A.new_full((k, A.shape[1]), torch.nan), nan, nan,
        torch.ones(k, dtype=torch.bool, device=A.device), block, calls, seed, reason,
    )


