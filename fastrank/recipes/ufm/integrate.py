"""An adaptive integrator for many independent ODEs side by side, each with its own steps.

Dormand and Prince's 5(4) pair, with SciPy's tableau and SciPy's rule for the step. SciPy itself takes one step size for
the whole state: one stiff run would set everybody's steps, and a run's numbers would depend on its company.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Largest and smallest factor between steps, and the safety factor of the rule (Hairer, Norsett, Wanner, II.4).
GROW, SHRINK, SAFETY = 10.0, 0.2, 0.9
#: Steps between two recorded times after which a run is given up.
MOST_STEPS = 100_000
#: What the next step depends on, and the count of them.
STATE = ("y", "t", "slope", "h", "failed", "steps")


class Integrator:
    """State y [B, P] float64 at times t [B], advanced by `rate(y, runs) -> dy/dt` ([b, P] of the named runs)."""

    def __init__(self, rate: Callable[[Tensor, Tensor], Tensor], y: Tensor, rtol: float, atol: float) -> None:
        from scipy.integrate import RK45

        self.A = [torch.as_tensor(row[:i]).to(y) for i, row in enumerate(RK45.A)]
        self.B, self.E = torch.as_tensor(RK45.B).to(y), torch.as_tensor(RK45.E).to(y)
        self.rate, self.y, self.rtol, self.atol = rate, y.clone(), rtol, atol
        self.t = y.new_zeros(len(y))
        runs = torch.arange(len(y), device=y.device)
        self.slope = rate(self.y, runs)
        self.h = self._first_steps(runs)
        self.failed = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        self.steps = torch.zeros(len(y), dtype=torch.int64, device=y.device)

    def advance(self, until: float, active: Tensor) -> None:
        """Brings the runs of the mask `active` to the time `until`; one whose step vanishes is marked in `failed`."""
        for _ in range(MOST_STEPS):
            runs = (active & ~self.failed & (self.t < until)).nonzero().flatten()
            if not len(runs):
                return
            self._step(runs, until)
        self.failed[runs] = True

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in STATE}

    def restore(self, state: dict[str, Tensor]) -> None:
        for name in STATE:
            setattr(self, name, state[name])

    def _step(self, runs: Tensor, until: float) -> None:
        y, t, left = self.y[runs], self.t[runs], until - self.t[runs]
        clipped = self.h[runs] >= left
        h = torch.where(clipped, left, self.h[runs])[:, None]
        K = [self.slope[runs]]
        for row in self.A[1:]:
            K.append(self.rate(y + h * sum(a * k for a, k in zip(row, K, strict=True) if a), runs))
        new = y + h * sum(b * k for b, k in zip(self.B, K, strict=True) if b)
        K.append(self.rate(new, runs))
        gap = h * sum(e * k for e, k in zip(self.E, K, strict=True) if e)
        error = self._norm(gap, self._scale(y, new)).nan_to_num(nan=torch.inf)
        good = error < 1
        factor = (SAFETY * torch.exp(-0.2 * torch.log(error.clamp_min(1e-10)))).clamp(SHRINK, GROW)
        # A step that was cut to arrive on time says little about the next one's length.
        next_h = torch.where(clipped & good, torch.maximum(self.h[runs], h[:, 0] * factor), h[:, 0] * factor)
        kept = runs[good]
        self.y[kept], self.slope[kept] = new[good], K[-1][good]
        self.t[kept] = torch.where(clipped, torch.full_like(t, until), t + h[:, 0])[good]
        self.h[runs] = next_h
        self.steps[runs] += 1
        self.failed[runs] = ~(next_h > 1e-14 * t.clamp_min(1e-12))

    def _first_steps(self, runs: Tensor) -> Tensor:
        """Hairer, Norsett, Wanner, II.4, first two guesses."""
        scale = self._scale(self.y, self.y)
        size, speed = self._norm(self.y, scale), self._norm(self.slope, scale)
        h = torch.where((size < 1e-5) | (speed < 1e-5), torch.full_like(size, 1e-6), 0.01 * size / speed)
        turn = self._norm(self.rate(self.y + h[:, None] * self.slope, runs) - self.slope, scale) / h
        largest = torch.maximum(speed, turn)
        guess = torch.where(largest <= 1e-15, (h * 1e-3).clamp_min(1e-6), (0.01 / largest) ** 0.2)
        return torch.minimum(100 * h, guess)

    def _scale(self, y: Tensor, other: Tensor) -> Tensor:
        return self.atol + self.rtol * torch.maximum(y.abs(), other.abs())

    @staticmethod
    def _norm(y: Tensor, scale: Tensor) -> Tensor:
        return (y / scale).square().mean(1).sqrt()
