"""Top-k singular triplets, warm-started from call to call, each with its error."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from fastrank.arrays import as_matrix
from fastrank.errors import InputError
from fastrank.precision import full_precision, one_thread

#: Columns of the iterated block beyond k. A block without them stalls at sin 0.04-0.2 on drifting weights.
OVERSAMPLE = 12
#: Columns that are drawn anew at every warm call: only they can see a direction that was not there before.
FRESH = 4
#: Up to this small side a cold start is exact (an eigenproblem of that size, float64); beyond it, a range finder.
EXACT_SIDE = 1024
#: Passes of a cold range finder: the sketch and two power iterations (Halko, Martinsson & Tropp 2011, section 4.5).
COLD_PASSES = 3
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
    if isinstance(A, list | tuple):
        states = [None] * len(A) if state is None else state
        if len(states) != len(A):
            raise InputError("state", f"a list of {len(A)} states, one per matrix", f"{len(states)}")
        return [top_svd(member, k, old, seed=seed) for member, old in zip(A, states, strict=True)]
    A = as_matrix("A", A)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError("k", "a whole number >= 1", repr(k))
    if state is not None and not isinstance(state, SubspaceState):
        raise InputError("state", "a SubspaceState or None", type(state).__name__)
    n, d = A.shape
    if state is not None and state.block.shape[0] != d:
        raise InputError("state", f"one of a matrix with d = {d}", f"d = {state.block.shape[0]}")
    A = A if A.dtype in (torch.float32, torch.float64) else A.float()
    k, q = min(k, n, d), min(k + OVERSAMPLE, n, d)
    with full_precision(A.device), one_thread():
        return _top_svd(A, k, q, state, state.seed if state is not None else seed)


def _top_svd(A: Tensor, k: int, q: int, state: SubspaceState | None, seed: int) -> SubspaceState:
    calls = state.calls + 1 if state is not None else 1
    if k == 0:
        return _nan_state(A, k, calls, seed, "an empty matrix")
    n, d = A.shape
    if state is not None and not state.reason:
        kept = state.block[:, : max(q - FRESH, 0)].to(A)
        fresh = _gaussian(d, q - kept.shape[1], seed, calls, A)
        ritz = _iterate(A, torch.cat([kept, fresh], 1), k, passes=1)
        for _ in range(MAX_REPEATS):
            if ritz is None or bool(
                ritz.residual.max() <= torch.maximum(JUMP_FLOOR * ritz.S[0], JUMP * state.residual.max().to(A))
            ):
                break
            ritz = _iterate(A, ritz.block, k, passes=1)
    elif min(n, d) <= EXACT_SIDE:
        ritz = _exact(A, k, q)
    else:
        ritz = _iterate(A, _gaussian(d, q, seed, calls, A), k, COLD_PASSES)
    if ritz is None:
        return _nan_state(A, k, calls, seed, "non-finite values in the matrix")
    # The iteration's own rounding: a residual smaller than this is not a measurement.
    residual = ritz.residual + 8 * torch.finfo(A.dtype).eps * ritz.S[:1]
    error, cluster = _vector_error(ritz.S, residual, ritz.next_value)
    return SubspaceState(ritz.U, ritz.S, ritz.block[:, :k].T, residual, error, cluster, ritz.block, calls, seed)


class _Ritz(NamedTuple):
    U: Tensor  # [n, k]
    S: Tensor  # [k]
    block: Tensor  # [d, q] orthonormal; its first k columns are the right vectors
    residual: Tensor  # [k]
    next_value: Tensor  # [1], the Ritz value after the k-th, 0 where there is none


def _exact(A: Tensor, k: int, q: int) -> _Ritz | None:
    """From the eigenvectors of the smaller Gram matrix in float64, whose squared condition the top does not feel."""
    X = A.double()
    tall = X.shape[0] >= X.shape[1]
    G = X.T @ X if tall else X @ X.T
    if not bool(G.isfinite().all()):
        return None
    _, vectors = torch.linalg.eigh(G)
    top = vectors.flip(1)[:, :q]
    # Orthonormal before it meets A again: A.T @ top is of A's scale, and A times that could leave float32's range.
    top = top if tall else torch.linalg.qr(X.T @ top)[0]
    return _iterate(A, top.to(A.dtype), k, passes=1)


def _iterate(A: Tensor, V: Tensor, k: int, passes: int) -> _Ritz | None:
    """`passes` times V -> A V -> A^T A V, orthonormalised in between; Rayleigh-Ritz on what that reaches.

    None where A is not finite: every non-finite entry reaches the small R, so A itself need not be read for it.
    """
    for _ in range(passes):
        Q = torch.linalg.qr(A @ V)[0]
        V, R = torch.linalg.qr(A.T @ Q)
    if not bool(R.isfinite().all()):
        return None
    # A^T Q = V R and R = u s w^T, so A is about (Q w) s (V u)^T.
    u, S, wh = torch.linalg.svd(R)
    U, block = Q @ wh.T, V @ u
    U = U[:, :k]
    # A^T u = s v holds by construction; what is left over is the other side.
    residual = (A @ block[:, :k] - U * S[:k]).norm(dim=0)
    return _Ritz(U, S[:k], block, residual, S[k : k + 1] if len(S) > k else S.new_zeros(1))


def _vector_error(S: Tensor, residual: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """sin-theta bound (Wedin 1972) from residual over gap, and where the gap does not exceed the residual."""
    padded = torch.cat([S.new_full((1,), torch.inf), S, rest])
    gap = torch.minimum(padded[:-2] - S, S - padded[2:])
    distance = (gap - residual).clamp_min(0)
    cluster = gap <= 2 * residual
    error = torch.where(cluster, torch.ones_like(S), residual / distance.clamp_min(torch.finfo(S.dtype).tiny))
    return error.clamp_max(1.0), cluster


def _gaussian(rows: int, columns: int, seed: int, call: int, like: Tensor) -> Tensor:
    """Standard normal [rows, columns], a function of (seed, call) alone, drawn on the CPU so that devices agree."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + call) & 0x7FFFFFFFFFFFFFFF)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32).to(like)


def _nan_state(A: Tensor, k: int, calls: int, seed: int, reason: str) -> SubspaceState:
    """NaN figures with their reason; the next call on finite data starts cold."""
    nan = A.new_full((k,), torch.nan)
    return SubspaceState(
        U=A.new_full((A.shape[0], k), torch.nan),
        S=nan,
        Vh=A.new_full((k, A.shape[1]), torch.nan),
        residual=nan,
        vector_error=nan,
        cluster=torch.ones(k, dtype=torch.bool, device=A.device),
        block=A.new_zeros(A.shape[1], 0),
        calls=calls,
        seed=seed,
        reason=reason,
    )
