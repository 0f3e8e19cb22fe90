"""Top-k singular triplets of many matrices in one call, warm-started from call to call, each with its error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from fastrank.arrays import as_matrix
from fastrank.errors import InputError
from fastrank.kernels.gram import gram_dual_many
from fastrank.kernels.rsvd import Step, orthonormal_many, products_many, subspace_step_many, test_matrix
from fastrank.precision import full_precision, one_thread

#: Columns of the iterated block beyond k. A block without them stalls at sin 0.04-0.2 on drifting weights.
OVERSAMPLE = 12
#: Columns that are drawn anew at every warm call: only they can see a direction that was not there before.
FRESH = 4
#: Up to this small side a cold start is exact (an eigenproblem of that size, float64); beyond it, a range finder. All
#: weights of a ResNet-50 took 0.63 s with the range finder from a side of 64 on, 0.67 from 128 and 0.79 from 256.
EXACT_SIDE = 128
#: Steps of a cold range finder: the first is the sketch, then two power iterations (Halko, Martinsson & Tropp 2011,
#: section 4.5).
COLD_PASSES = 3
#: A cold start that shall be settled takes min(n, d) / SETTLE instead, MOST_PASSES at most. On a layer's first weights,
#: whose spectrum is flat, one of the top 15 is 9 % too small after 3 (512 x 4608) and 0.3 % after 32; of 192 x 768,
#: 8 % after 3 and 1 % after 12. An exact spectrum takes as long as some min(n, d) / 12 of them. Eight layers of
#: 2048 x 2048 took 11 s for 128.
SETTLE, MOST_PASSES = 16, 32
#: A warm call repeats itself when something changed, which must be seen in the call in which it happens: when the
#: largest residual exceeds both that of the last call times JUMP and JUMP_FLOOR * sigma_1; or when A's squared
#: Frobenius norm outside the block grew, as a share of the whole, by more than both sigma_k^2 and
#: (JUMP_FLOOR sigma_1)^2. A new direction that belongs among the top k and was missed leaves so much there, however
#: little of it the draws have. Where a matrix changes so at every call, as activations of batch after batch do, that is
#: its pace and no jump: both must also exceed JUMP times the second largest of what the first steps of the last PACE
#: calls left. (One jump does not set the pace: the next, even in the next call, is seen.) What shall be settled has no
#: pace: a weight that jumps at every step is followed at every step. (After one step at 20 times the learning rate
#: sigma_1 of 520 x 512 is 3.8 % too small with two repeats, 0.1 % with six; of jump after jump 24 and 0.1 %.)
JUMP, JUMP_FLOOR, MAX_REPEATS, PACE = 3.0, 1e-3, 6, 4


@dataclass(frozen=True)
class SubspaceState:
    """Top-k singular triplets of A [n, d] and the block from which the next call goes on.

    Attributes:
        U: [n, k], S: [k] descending, Vh: [k, d]: A is about U diag(S) Vh on its top directions; A's dtype, float32
            at least. Where S is 0 (to rounding), U's column is 0 too, and Vh's row is any direction.
        residual: [k], `||A v_i - s_i u_i||`, or `||A^T u_i - s_i v_i||` where that is more, absolute; a true singular
            value lies within it of S[i].
        vector_error: [k], sin of the angle between v_i and a true singular vector, at most (Wedin): residual over the
            gap to the neighbouring values; 1 where the gap is below the residual.
        cluster: [k] bool, the gap is below the residual: v_i is any vector of a cluster's space.
        block: [d, q] orthonormal, what the next call iterates.
        outside: [], the share of A's squared Frobenius norm that the block does not have.
        pace: [2, 4], what the first steps of the last four warm calls left: the largest residual over sigma_1, and by
            how much `outside` changed; 0 where there was none.
        calls: number of calls so far, which numbers the draws.
        seed: of the draws; same seed, same numbers on every machine.
        directions: how many of S exceed 0, a plain number: nobody has to ask the device for it.
        reason: why everything is NaN; empty otherwise.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    residual: Tensor
    vector_error: Tensor
    cluster: Tensor
    block: Tensor
    outside: Tensor
    pace: Tensor
    calls: int
    seed: int
    directions: int
    reason: str = ""

    @property
    def k(self) -> int:
        return len(self.S)

    def at_least(self, tolerance: float) -> int:
        """How many singular values certainly exceed `tolerance`: a lower bound of the rank, at most k.

        With some columns V of the block, A V = U diag(S) + R: as many do as these are where the least of their S
        exceeds it by more than ||R||_F (Weyl 1912). Each residual alone would not do: two S may be near one true value.

        Never the rank itself: nothing was looked for beyond the block, so where all k exceed it there may be more
        (`matrix_rank` counts them).
        """
        pairs = sorted(
            (r, s) for s, r in zip(self.S.tolist(), self.residual.tolist(), strict=True) if s - r > tolerance
        )
        while pairs and not min(s for _, s in pairs) - math.hypot(*(r for r, _ in pairs)) > tolerance:
            pairs.pop()  # the largest residual
        return len(pairs)

    def state_dict(self) -> dict:
        """Tensors and plain values only."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict) -> SubspaceState:
        return cls(**{field.name: state[field.name] for field in fields(cls)})


def top_svd(A, k: int = 15, state=None, *, seed: int = 0, settled: bool | Sequence[bool] = False):
    """The top-k singular triplets of A [n, d]; for a list of matrices, a list of states, all in one grouped call.

    Without `state` the start is cold: exact where min(n, d) <= 128, else a randomized range finder with two power
    iterations. With the state of the last call on a matrix of the same d, one warm step of block subspace iteration
    with fresh random directions, repeated for those whose residual jumps. What else is in the list changes nothing.
    The global random state is not touched.

    Args:
        A: [n, d] floating point. k: capped at min(n, d).
        state: what the last call returned (a list for a list); n may differ from call to call, d may not.
        settled: for matrices that are followed for long, such as weights: a cold start takes min(n, d) / 16 iterations,
            32 at most, and whatever jumps is repeated, however often that happens; of a list of matrices for all of
            them, or a list.
    Raises:
        InputError: A is not a floating-point matrix, k is not in [1, 116], `settled` is no flag, or `state` belongs to
            another d.
    """
    if not isinstance(A, list | tuple):
        return _many([A], k, [state], seed, _flags(settled, 1))[0]
    settled = _flags(settled, len(A))
    states = [None] * len(A) if state is None else state
    if not isinstance(states, list | tuple) or len(states) != len(A):
        got = str(len(states)) if isinstance(states, list | tuple) else type(states).__name__
        raise InputError("state", f"a list of {len(A)} states, one per matrix", got)
    return _many(A, k, states, seed, settled)


def _flags(settled: bool | Sequence[bool], matrices: int) -> Sequence[bool]:
    if isinstance(settled, bool):
        return [settled] * matrices
    if not isinstance(settled, list | tuple) or not all(isinstance(flag, bool) for flag in settled):
        raise InputError("settled", "True or False, or a list of them", repr(settled))
    if len(settled) != matrices:
        raise InputError("settled", f"one for all, or {matrices}, one per matrix", str(len(settled)))
    return settled


class _Job:
    """One matrix on its way through the rounds of a call."""

    def __init__(self, A: Tensor, k: int, state: SubspaceState | None, settled: bool, seed: int) -> None:
        n, d = A.shape
        self.A, self.k, self.q = A, min(k, n, d), min(k + OVERSAMPLE, n, d)
        self.settled = settled
        self.state = state
        self.seed = state.seed if state is not None else seed
        self.calls = state.calls + 1 if state is not None else 1
        self.warm = state is not None and not state.reason
        self.dtype = torch.float64 if A.dtype == torch.float64 else torch.float32
        self.pace: Tensor | None = None  # with the first step's
        self.V: Tensor | None = None
        self.step: Step | None = None
        # Steps that are taken whatever comes, and at most.
        self.exact = not self.warm and min(n, d) <= EXACT_SIDE
        cold = max(COLD_PASSES, min(MOST_PASSES, min(n, d) // SETTLE)) if settled else COLD_PASSES
        self.rounds = 1 if self.warm or self.exact else cold
        self.most = 1 + MAX_REPEATS if self.warm else self.rounds


def _many(A, k: int, states, seed: int, settled: Sequence[bool]) -> list[SubspaceState]:
    A = [as_matrix("A", member) for member in A]
    # A block has at most 128 columns (fastrank.kernels.rsvd).
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 128 - OVERSAMPLE:
        raise InputError("k", f"a whole number >= 1 and <= {128 - OVERSAMPLE}", repr(k))
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise InputError("seed", "a whole number of 64 bits", repr(seed))
    for member, state in zip(A, states, strict=True):
        if state is not None and not isinstance(state, SubspaceState):
            raise InputError("state", "a SubspaceState or None", type(state).__name__)
        if state is not None and state.block.shape[0] != member.shape[1]:
            raise InputError("state", f"one of a matrix with d = {member.shape[1]}", f"d = {state.block.shape[0]}")
    jobs = [_Job(member, k, *each, seed) for member, *each in zip(A, states, settled, strict=True)]
    for device in {job.A.device for job in jobs}:
        with full_precision(device):
            _run([job for job in jobs if job.A.device == device and job.k], k)
    found: list[SubspaceState | None] = [None] * len(jobs)
    for members in _groups(jobs):
        for index, result in zip(members, _finished([jobs[i] for i in members]), strict=True):
            found[index] = result
    return found


def _run(jobs: list[_Job], k: int) -> None:
    _start(jobs)
    taken = 0
    while jobs:
        taken += 1
        # Of the steps of a range finder only the last one's triplets and residuals are wanted.
        for wanted in (0, k):
            now = [job for job in jobs if (taken < job.rounds) == (wanted == 0)]
            if not now:
                continue
            found = subspace_step_many([j.A for j in now], [j.V for j in now], wanted, entering=False)
            for job, step in zip(now, found, strict=True):
                job.step, job.V = step, step.V
        again = {job for job in jobs if taken < job.rounds}
        again |= _jumped([job for job in jobs if job.rounds <= taken < job.most])
        jobs = [job for job in jobs if job in again]


@one_thread()
def _jumped(jobs: list[_Job]) -> set[_Job]:
    """Those that changed more than their pace explains (see JUMP), with one wait for a device. The first step of each
    also sets the pace of the next calls."""
    groups: dict[tuple, list[_Job]] = {}
    for job in jobs:
        groups.setdefault((job.k, job.q, job.dtype, job.state.k), []).append(job)
    decided, answers = [], []
    for (k, *_), members in groups.items():
        now, then = ("residual", "S", "norm"), ("residual", "outside", "pace")
        residual, S, norm = (torch.stack([getattr(job.step, x) for job in members]).double() for x in now)
        before, outside, pace = (torch.stack([getattr(job.state, x) for job in members]).to(S) for x in then)
        top, total, left = S[:, 0], norm**2, residual.amax(1)
        grown = total * (1 - outside) - S.square().sum(1)
        usual = JUMP * pace.sort(2).values[:, :, -2] * pace.new_tensor([[not job.settled] for job in members])
        for job, own in zip(members, _next_pace(pace, left / top, grown.abs() / total, top > 0), strict=True):
            job.pace = own if job.pace is None else job.pace
        floor = JUMP_FLOOR * top
        jumped = left > torch.maximum(torch.maximum(floor, JUMP * before.amax(1)), usual[:, 0] * top)
        jumped |= grown > torch.maximum(torch.maximum(S[:, k - 1], floor).square(), usual[:, 1] * total)
        decided += members
        answers.append(jumped)
    told = torch.cat(answers).tolist() if answers else []
    return {job for job, jumped in zip(decided, told, strict=True) if jumped}


def _next_pace(pace: Tensor, left: Tensor, grown: Tensor, usable: Tensor) -> Tensor:
    """With this call's in front; zeros for what is not finite, or is zero."""
    newest = torch.stack([left, grown], 1)[:, :, None]
    return torch.where(usable[:, None, None], torch.cat([newest, pace[:, :, :-1]], 2), 0.0)


def _start(jobs: list[_Job]) -> None:
    """The block of each: the last one with fresh directions, the top eigenvectors of the smaller Gram matrix, or
    random ones."""
    drawn: dict[tuple, Tensor] = {}

    def draw(job: _Job, columns: int) -> Tensor:
        key = job.A.shape[1], columns, job.seed, job.calls, job.dtype
        if key not in drawn:
            d, columns, seed, call, dtype = key
            drawn[key] = test_matrix(d, columns, seed, call, dtype=dtype, device=job.A.device)
        return drawn[key]

    exact = [job for job in jobs if job.exact]
    for job, V in zip(exact, _eigenvectors([job.A for job in exact], [job.q for job in exact]), strict=True):
        job.V = V.to(job.dtype)
    kept = {job: job.state.block[:, : max(job.q - FRESH, 0)].to(job.A.device, job.dtype) for job in jobs if job.warm}
    going_on = [job for job, block in kept.items() if block.shape[1] and job.q - block.shape[1] == FRESH]
    draws = {"seeds": [job.seed for job in going_on], "streams": [job.calls for job in going_on]}
    for job, V in zip(going_on, orthonormal_many([kept[job] for job in going_on], fresh=FRESH, **draws), strict=True):
        job.V = V
    others = [job for job in jobs if job.V is None]
    # Cold ones, and blocks that were narrower in a matrix of fewer rows.
    blocks = [
        torch.cat([kept[job], draw(job, job.q - kept[job].shape[1])], 1) if job in kept else draw(job, job.q)
        for job in others
    ]
    for job, V in zip(others, orthonormal_many(blocks), strict=True):
        job.V = V


def _eigenvectors(A: list[Tensor], q: list[int]) -> list[Tensor]:
    """The top right singular vectors of each from the smaller Gram matrix in float64, whose squared condition the top
    does not feel; any orthonormal block where that is not finite."""
    # Scaled by powers of two, so that squares stay in range.
    scaled = [_near_one(a) for a in A]
    tall = [a.shape[0] >= a.shape[1] for a in A]
    grams = gram_dual_many([s.T if t else s for s, t in zip(scaled, tall, strict=True)])
    found = []
    with one_thread():
        for s, t, G, width in zip(scaled, tall, grams, q, strict=True):
            _, vectors = torch.linalg.eigh(torch.where(torch.isfinite(G), G, 0.0))
            top = vectors.flip(1)[:, :width]
            found.append(top if t else s.double().T @ top)
    return orthonormal_many([V.contiguous() for V in found])


def _near_one(A: Tensor) -> Tensor:
    largest = A.abs().amax()
    _, exponent = torch.frexp(largest.double())
    usable = torch.isfinite(largest) & (largest > 0)
    return A.double() * torch.ldexp(torch.ones((), dtype=torch.float64, device=A.device), -exponent * usable)


def _groups(jobs: list[_Job]) -> list[list[int]]:
    """Indices of those whose figures have one shape."""
    found: dict[tuple, list[int]] = {}
    for index, job in enumerate(jobs):
        found.setdefault((job.k, job.step is not None and len(job.step.S), job.dtype, job.A.device), []).append(index)
    return list(found.values())


def _finished(jobs: list[_Job]) -> list[SubspaceState]:
    k = jobs[0].k
    if k == 0:
        return [_nan_state(job, "an empty matrix") for job in jobs]
    values, norm = torch.stack([job.step.S for job in jobs]), torch.stack([job.step.norm for job in jobs])
    S, rest = values[:, :k], values[:, k : k + 1]
    rest = rest if rest.shape[1] else S.new_zeros(len(S), 1)
    # The iteration's own rounding: a residual smaller than this is not a measurement.
    info = torch.finfo(S.dtype)
    noise = 8 * info.eps * S[:, :1] + info.smallest_normal
    residual = torch.stack([job.step.residual for job in jobs]) + noise
    # The other side's vanishes but for the rounding of A^T Y, which grows as it is divided by small values: about
    # eps ||A||_F s_1 / s_i. Where four times as much is not little beside the residual, it is measured.
    doubtful = (8 * info.eps * norm[:, None] / S > residual / S[:, :1]).logical_and(S > 0).any(1)
    # -1: not finite.
    directions = torch.where(S[:, 0].isfinite(), (S > 0).sum(1), -1)
    directions, doubtful = torch.stack([directions, doubtful.long()]).tolist()
    if measured := [
        i for i, (known, doubt) in enumerate(zip(directions, doubtful, strict=True)) if known > 0 and doubt
    ]:
        others = torch.stack(_other_residuals([jobs[i] for i in measured], S[measured])).to(S) + noise[measured]
        residual[measured] = torch.maximum(residual[measured], others)
    error, cluster = _vector_error(S, residual, rest)
    total = norm.double() ** 2
    outside = ((total - values.double().square().sum(1)) / total).nan_to_num(nan=0.0).clamp_min(0)
    unknown = S.new_zeros(2, PACE, dtype=torch.float64)
    pace = torch.stack([unknown if job.pace is None else job.pace for job in jobs])
    reason = "non-finite values in the matrix, or singular values beyond the largest number of its dtype"
    columns = zip(*(x.unbind() for x in (S, residual, error, cluster, outside, pace)), strict=True)
    found = []
    for job, known, (s, r, e, c, o, p) in zip(jobs, directions, columns, strict=True):
        U, V = job.step.U, job.step.V
        found.append(
            _nan_state(job, reason)
            if known < 0
            else SubspaceState(U, s, V[:, :k].T, r, e, c, V, o, p, job.calls, job.seed, known)
        )
    return found


def _other_residuals(jobs: list[_Job], S: Tensor) -> list[Tensor]:
    """[k] of each: `||A^T u_i - s_i v_i||`, 0 where u_i is."""
    products = products_many([job.A for job in jobs], [job.step.U.double() for job in jobs], transposed=True)
    pairs = zip(products, jobs, S.double(), strict=True)
    return [(p - s * job.step.V[:, : len(s)]).norm(dim=0) for p, job, s in pairs]


def _vector_error(S: Tensor, residual: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """sin-theta bound (Wedin 1972) from residual over gap, and where the gap does not exceed the residual."""
    padded = torch.cat([S.new_full((len(S), 1), torch.inf), S, rest], 1)
    gap = torch.minimum(padded[:, :-2] - S, S - padded[:, 2:])
    distance = (gap - residual).clamp_min(0)
    cluster = gap <= 2 * residual
    error = torch.where(cluster, torch.ones_like(S), residual / distance.clamp_min(torch.finfo(S.dtype).tiny))
    return error.clamp_max(1.0), cluster


def _nan_state(job: _Job, reason: str) -> SubspaceState:
    """NaN figures with their reason; the next call on finite data starts cold."""
    like = torch.empty(0, dtype=job.dtype, device=job.A.device)
    nan = like.new_full((job.k,), torch.nan)
    return SubspaceState(
        U=like.new_full((job.A.shape[0], job.k), torch.nan),
        S=nan,
        Vh=like.new_full((job.k, job.A.shape[1]), torch.nan),
        residual=nan,
        vector_error=nan,
        cluster=torch.ones(job.k, dtype=torch.bool, device=job.A.device),
        block=like.new_zeros(job.A.shape[1], 0),
        outside=torch.full((), torch.nan, dtype=torch.float64, device=job.A.device),
        pace=torch.zeros(2, PACE, dtype=torch.float64, device=job.A.device),
        calls=job.calls,
        seed=job.seed,
        directions=0,
        reason=reason,
    )
