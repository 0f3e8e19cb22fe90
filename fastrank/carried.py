"""Spectra of matrices that change little from step to step, weights above all, without computing each anew.

A singular value moves by at most the 2-norm of what was added to the matrix (Weyl 1912). So the exact spectrum of an
earlier copy, the anchor, holds today within `||X - anchor||_F`, which takes one read of both. The leading values come
from today's subspace; whatever is reported, its bound is counted from the anchor's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastrank.kernels import buffers
from fastrank.kernels.rsvd import distances_many
from fastrank.ranks import rank_counts
from fastrank.spectra import Spectrum, Stack, nan_spectrum, spectrum
from fastrank.subspace import SubspaceState

#: Below this smaller side an exact spectrum takes about a millisecond, and nothing is won.
SMALLEST_SIDE = 128
#: An anchor of a matrix with smaller side k is renewed after k / RENEW steps at the earliest. An exact spectrum takes
#: as long as some k / 12 steps of its subspace (51 ms for 512 x 4608, 1.1 s for 2048 x 2048; a step's is estimated from
#: its operations, 1.6 and 6 ms), so that renewing should cost about as much as following.
RENEW = 16
#: It is renewed when the rank's interval opened, or at the latest when the matrix moved by this share of its norm: the
#: figures of the whole spectrum (such as its effective rank) are the anchor's, scaled to today's norm.
DRIFT = 0.1
#: It is renewed at once where the matrix moved by so much of its norm, and where it was zero or not finite. On a CPU
#: only: a GPU would have to be waited for.
ABRUPT = 0.5


@dataclass(frozen=True)
class Anchor:
    """A copy of a matrix, its exact spectrum, the step of both, and the width of its rank's interval then."""

    matrix: Tensor
    spectrum: Spectrum
    step: int
    width: Tensor

    def state_dict(self) -> dict:
        s = self.spectrum
        fields = {name: getattr(s, name) for name in s.__dataclass_fields__}
        return {"matrix": self.matrix, "spectrum": fields, "step": self.step, "width": self.width}

    @classmethod
    def from_state_dict(cls, state: dict) -> Anchor:
        return cls(state["matrix"], Spectrum(**state["spectrum"]), state["step"], state["width"])

    def fits(self, X: Tensor) -> bool:
        A, known = self.matrix, not self.spectrum.reason
        return known and A.shape == X.shape and A.device == X.device and A.dtype == X.dtype

    def outdated(self, step: int, width: float, drift: float) -> bool:
        """From the figures of the last step: whether an exact spectrum would now say more, and is due."""
        says_more = not (width <= float(self.width) and drift <= DRIFT)
        return says_more and step - self.step >= min(self.matrix.shape) // RENEW


@dataclass(frozen=True)
class Carried:
    """A spectrum, the anchor it rests on, and how far the matrix is from that, as a share of the anchor's norm."""

    spectrum: Spectrum
    anchor: Anchor
    drift: Tensor


def carried_spectra(jobs: list[tuple[Tensor, SubspaceState, Anchor | None]], step: int) -> list[Carried]:
    """Spectra of matrices X [n, d], each with today's subspace and its anchor; exact and a new anchor without one, and
    where X jumped.

    No version counter is trusted. Whoever writes to X unseen, through `.data` or from another process: an anchor is the
    copy that its spectrum was computed from, and a bound is counted from the distance of X as it is read here. The
    subspace may be of an X before that; it is an estimate, and no bound rests on it.
    """
    old = [i for i, (_, _, anchor) in enumerate(jobs) if anchor is not None]
    apart = distances([jobs[i][0] for i in old], [jobs[i][2].matrix for i in old]) if old else ()
    groups: dict[tuple, list[tuple[int, Tensor]]] = {}
    found: dict[int, Carried] = {}
    for i, numbers in zip(old, apart, strict=True):
        X, top, anchor = jobs[i]
        if X.device.type == "cpu" and not float(numbers[1]) and not bool(X.any()):
            found[i] = Carried(_of_zeros(X), anchor, numbers[0] / anchor.spectrum.sigma.norm())
        elif not (X.device.type == "cpu" and _abrupt(float(numbers[0]), anchor)):
            groups.setdefault((top.k, len(anchor.spectrum.sigma), anchor.matrix.device), []).append((i, numbers))
    for members in groups.values():
        here, numbers = zip(*members, strict=True)
        found |= zip(here, _carried([jobs[i] for i in here], *torch.stack(numbers).unbind(1)), strict=True)
    new = [i for i in range(len(jobs)) if i not in found]
    copies = [jobs[i][0].clone() for i in new]
    exact = spectrum(copies)
    if not old:  # the set-up: no step will take as much memory again
        buffers.drop_idle()
    found |= {i: _anchored(copy, s, step) for i, copy, s in zip(new, copies, exact, strict=True)}
    return [found[i] for i in range(len(jobs))]


def _abrupt(moved: float, anchor: Anchor) -> bool:
    """Whether the anchor says little of a matrix that is so far from it. One that is not finite now will be back."""
    return moved < math.inf and not moved <= ABRUPT * float(anchor.spectrum.sigma.norm())


def _of_zeros(X: Tensor) -> Spectrum:
    zeros = torch.zeros(min(X.shape), dtype=torch.float64)
    return Spectrum(zeros, zeros, torch.zeros((), dtype=torch.float64), *X.shape, X.dtype, False, "gram64")


def _anchored(copy: Tensor, s: Spectrum, step: int) -> Carried:
    _, lo, hi = rank_counts(s)
    return Carried(s, Anchor(copy, s, step, hi - lo), s.sigma.new_zeros(()))


def _carried(jobs: list[tuple[Tensor, SubspaceState, Anchor]], moved: Tensor, norm: Tensor) -> list[Carried]:
    """Of m matrices with spectra of one length; moved, norm: [m]."""
    old = Stack([anchor.spectrum for _, _, anchor in jobs])
    drift, apart = moved / old.sigma.norm(dim=1), moved[:, None]
    # Two estimates of the leading values, each with its error: the subspace's, off by its residual at most where it has
    # settled, and the anchor's. Their mean goes by the inverse squares; no value is less than the subspace has of it.
    subspace = torch.stack([top.S for _, top, _ in jobs]).double()
    residual = torch.stack([top.residual for _, top, _ in jobs]).double()
    k = subspace.shape[1]
    weight = residual**2 / (residual**2 + (old.bound[:, :k] + apart) ** 2)
    leading, tail = torch.lerp(subspace, torch.maximum(subspace, old.sigma[:, :k]), weight), old.sigma[:, k:]
    # What the leading values leave of today's norm, in the proportions of the anchor's tail.
    rest, size = (norm**2 - leading.square().sum(1)).clamp_min(0).sqrt()[:, None], tail.norm(dim=1, keepdim=True)
    # Of a tail of zeros nothing is known: evenly.
    shares = torch.where(size > 0, tail / size, max(tail.shape[1], 1) ** -0.5)
    # A subspace that has not settled may be below the tail's first.
    sigma = torch.cat([leading, rest * shares], 1).sort(1, descending=True).values
    bound = (sigma - old.sigma).abs() + old.bound + apart
    columns = zip(jobs, *(x.unbind() for x in (sigma, bound, old.zero_bound + moved, drift)), strict=True)
    return [Carried(_with_values(job, *values), job[2], drift) for job, *values, drift in columns]


def _with_values(job: tuple[Tensor, SubspaceState, Anchor], sigma: Tensor, bound: Tensor, zero: Tensor) -> Spectrum:
    X, top, anchor = job
    if top.reason or anchor.spectrum.reason:
        reason = top.reason or "the weight was not finite when its spectrum was last computed"
        return nan_spectrum(*X.shape, X.dtype, False, X.device, reason)
    return replace(anchor.spectrum, sigma=sigma, bound=bound, zero_bound=zero)


def distances(X: list[Tensor], Y: list[Tensor]) -> Tensor:
    """[m, 2] float64: upper bounds of `||X - Y||_F` of each pair, and `||X||_F`."""
    found = distances_many(X, Y)
    infos = [torch.finfo(torch.promote_types(x.dtype, torch.float32)) for x in X]
    # What the kernel may be short of.
    relative = found.new_tensor([1 + 8 * info.eps for info in infos])
    vanished = found.new_tensor([(x.numel() * info.tiny) ** 0.5 for x, info in zip(X, infos, strict=True)])
    return torch.stack([found[:, 0] * relative + vanished, found[:, 1]], 1)
