"""Effects with intervals, and the verdict that follows from them by one rule.

Each effect claims a sign. It is held where the whole 95 % interval lies on the claimed side of its null value, not
held where no value of the interval reaches the smallest effect that would matter (`margin`; the null value itself by
default), and not conclusive otherwise, or where a network that it compares did not train. The recipe's claim is held
where all its counting effects are (an intersection-union test, which needs no correction for their number), not held
where one is not held, and not conclusive otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastrank.extras import require
from fastrank.recipes.recipe import Column, Study

HELD, NOT_HELD, OPEN = "held", "not held", "not conclusive"
LEVEL = 0.95


@dataclass(frozen=True)
class Effect:
    """One comparison.

    name: what is compared, in words. claimed: ">" or "<", the side of `null` on which the claim puts it. value, lo, hi:
    the estimate and its 95 % interval. n: how many independent repetitions (seeds) carry it. method: of the interval.
    margin: the smallest distance from `null` that would matter. counts: whether it decides the verdict. spoiled: why it
    cannot be judged.
    """

    name: str
    claimed: str
    value: float
    lo: float
    hi: float
    n: int
    method: str
    null: float = 0.0
    margin: float = 0.0
    counts: bool = True
    spoiled: str = ""

    @property
    def verdict(self) -> str:
        if self.spoiled or not (math.isfinite(self.lo) and math.isfinite(self.hi)):
            return OPEN
        sign = 1 if self.claimed == ">" else -1
        near, far = sorted((sign * (self.lo - self.null), sign * (self.hi - self.null)))
        if far <= self.margin:
            return NOT_HELD
        return HELD if near > 0 else OPEN


def decide(effects: Sequence[Effect]) -> str:
    """The verdict on a claim from its counting effects; not conclusive where there is none."""
    verdicts = [effect.verdict for effect in effects if effect.counts]
    if NOT_HELD in verdicts:
        return NOT_HELD
    return HELD if verdicts and set(verdicts) == {HELD} else OPEN


def mean_interval(values: Sequence[float], half_widths: Sequence[float] | float = 0.0) -> tuple[float, float, float]:
    """(mean, lo, hi) of independent values by Student's t, widened by the mean of their own errors; n = 1 has none."""
    values = np.asarray(values, np.float64)
    n, mean = len(values), float(np.mean(values))
    if n < 2 or not np.isfinite(values).all():
        return mean, math.nan, math.nan
    t = require("scipy.stats", "intervals").t.ppf((1 + LEVEL) / 2, n - 1)
    reach = float(t * values.std(ddof=1) / math.sqrt(n) + np.mean(half_widths))
    return mean, mean - reach, mean + reach


def of_values(name: str, claimed: str, values: Sequence[float], *, half_widths=0.0, **fields) -> Effect:
    """The mean of one number per seed, by Student's t."""
    mean, lo, hi = mean_interval(values, half_widths)
    return Effect(name, claimed, mean, lo, hi, len(values), fields.pop("method", "t over seeds"), **fields)


def difference(study: Study, column: str | Column, a: str, b: str, claimed: str, **fields) -> Effect:
    """`column` at label a minus label b, paired by seed (the same seed draws the same weights and order of data)."""
    values = study.values(a, column) - study.values(b, column)
    errors = study.half_widths(a, column) + study.half_widths(b, column)
    spoiled = "; ".join(filter(None, map(study.untrained, (a, b))))
    name = f"{study.column(column).name}: {a} minus {b}"
    return of_values(name, claimed, values, half_widths=errors, method="paired t over seeds", spoiled=spoiled, **fields)


def slope(
    study: Study, column: str, x: Sequence[float], labels: Sequence[str], claimed: str, per: str, **fields
) -> Effect:
    """The least-squares slope of `column` over x (one per label), one a seed; `per` names the unit of x."""
    y = np.stack([study.values(label, column) for label in labels])
    errors = np.stack([study.half_widths(label, column) for label in labels])
    x = np.asarray(x, np.float64) - np.mean(x)
    weights = x / (x @ x)
    spoiled = "; ".join(filter(None, map(study.untrained, labels)))
    return of_values(
        f"{column} per {per}, {labels[0]} to {labels[-1]}", claimed, weights @ y, half_widths=np.abs(weights) @ errors,
        method="slope per seed, t over seeds", spoiled=spoiled, **fields,
    )  # fmt: skip


def proportion(name: str, claimed: str, successes: int, n: int, null: float, **fields) -> Effect:
    """A share of n independent trials, with the exact interval of Clopper and Pearson (1934)."""
    stats = require("scipy.stats", "intervals")
    interval = stats.binomtest(successes, n).proportion_ci(LEVEL, method="exact")
    return Effect(name, claimed, successes / n, interval.low, interval.high, n, "Clopper-Pearson", null, **fields)


def correlation(name: str, claimed: str, x: Sequence[float], y: Sequence[float], **fields) -> Effect:
    """Pearson's r over points, with the interval of Fisher's transformation (1921); needs four points."""
    stats = require("scipy.stats", "intervals")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Effect(name, claimed, math.nan, math.nan, math.nan, len(x), "Fisher", **fields)
    found = stats.pearsonr(x, y)
    interval = found.confidence_interval(LEVEL)
    return Effect(name, claimed, float(found.statistic), interval.low, interval.high, len(x), "Fisher", **fields)
