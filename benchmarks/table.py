"""One case's outcomes as aligned text."""

from __future__ import annotations

import math

from harness import Outcome, Spread


def table(outcomes: dict[str, Outcome]) -> str:
    """Milliseconds (median, quartiles), speed over the baseline (with quartiles), error, GB/s and GFLOP/s reached.

    On a GPU also the time from call to call. A contender without a figure, or one that is wrong, says why.
    """
    width = max(map(len, outcomes))
    walls = any(outcome.wall for outcome in outcomes.values())
    head = f"  {'':{width}}  {'median ms':>10}  {'quartiles ms':>21}  {'speed':>8}  {'quartiles':>15}"
    lines = [head + (f"  {'wall ms':>9}" if walls else "") + f"  {'error':>8}  {'GB/s':>6}  {'GFLOP/s':>8}"]
    for name, outcome in outcomes.items():
        if outcome.seconds is None:
            lines.append(f"  {name:{width}}  {outcome.problem}")
            continue
        t, speed = outcome.seconds, outcome.speed
        line = f"  {name:{width}}  {_ms(t.median):>10}  {_range(t, _ms):>21}  "
        line += f"{_times(speed.median):>8}  {_range(speed, _times):>15}" if speed else f"{'':8}  {'':15}"
        if walls:
            line += f"  {_ms(outcome.wall.median) if outcome.wall else '':>9}"
        line += f"  {outcome.error:8.1e}" if math.isfinite(outcome.error) else f"  {'':8}"
        rates = achieved(outcome)
        line += f"  {rates[0] / 1e9:6.1f}  {rates[1] / 1e9:8.1f}" if rates else ""
        lines.append(line.rstrip())
    return "\n".join(lines)


def achieved(outcome: Outcome) -> tuple[float, float] | None:
    """(bytes/s, FLOP/s) by the cost model's count of the algorithm, for the contenders that it describes."""
    moved, flops = outcome.read + outcome.written, sum(outcome.flops.values())
    if not outcome.seconds or not moved:
        return None
    return moved / outcome.seconds.median, flops / outcome.seconds.median


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.4f}" if value < 1 else f"{value:.3f}" if value < 100 else f"{value:.0f}"


def _times(value: float) -> str:
    return f"{value:.2f}x" if value < 100 else f"{value:.0f}x"


def _range(spread: Spread, text) -> str:
    return f"{text(spread.low)} .. {text(spread.high)}" if spread.samples > 1 else "one sample"
