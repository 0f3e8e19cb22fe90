"""Two runs of the same benchmarks: which ratio to the baseline changed, and which change is a regression.

Milliseconds move with the machine's other work; the ratio to a baseline that ran in the same turns mostly does not.
A change counts when it is larger than CHANGE and the two ratios' quartile ranges do not overlap: the first keeps out
what moves from process to process (placement in memory, clocks), the second what moves from turn to turn. What moves
from minute to minute, other work on the machine above all, is kept out by `confirm`: a regression is one that is there
each time it is measured. Between two machines nothing of that holds, and a ratio that moved is "not comparable".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

#: Least change of a ratio that counts. Of 30 ratios of unchanged code, in quick runs on two cores that other work came
#: and went on, 28 stayed within this or within their spread; two moved by 19 % and 32 %, hence `confirm`.
CHANGE = 0.10
#: How often a regression is measured again before it is believed.
CONFIRMATIONS = 2

#: What makes two runs incomparable in milliseconds, and often in ratios.
MACHINE = ("cpu", "cores", "threads", "isa", "torch_isa", "blas", "gpu", "torch", "omp_wait_policy")
#: What makes it another machine: a ratio that moved with these says nothing of the code.
HARDWARE = ("cpu", "cores", "gpu")


@dataclass(frozen=True)
class Change:
    """`verdict` is "regression", "improvement", "same", "new", "gone", "broken" (no figure any more) or, of a ratio
    that moved between two machines, "not comparable".
    """

    benchmark: str
    case: str
    contender: str
    verdict: str
    before: dict | None = None
    after: dict | None = None

    @property
    def ratio(self) -> float | None:
        """Speed after over speed before."""
        if not self.before or not self.after:
            return None
        return self.after["median"] / self.before["median"]


def compare(before: dict, after: dict) -> list[Change]:
    """Every contender of ours in the benchmarks of `after`, in its order, then those that only `before` has."""
    changes, here = [], all(before["machine"].get(key) == after["machine"].get(key) for key in HARDWARE)
    for name, benchmark in after["benchmarks"].items():
        old = before["benchmarks"].get(name, {"cases": {}})
        for title, case in benchmark["cases"].items():
            old_results = old["cases"].get(title, {"results": {}})["results"]
            for contender, result in case["results"].items():
                if result["ours"]:
                    was = old_results.get(contender, {}).get("speed")
                    changes.append(_change(name, title, contender, was, result["speed"], here))
        if after["quick"] == before["quick"]:
            changes += [
                Change(name, title, contender, "gone", result["speed"], None)
                for title, case in old["cases"].items()
                for contender, result in case["results"].items()
                if result["ours"] and contender not in benchmark["cases"].get(title, {"results": {}})["results"]
            ]
    return changes


def confirm(before: dict, after: dict, measure_again: Callable[[str, str], dict]) -> tuple[list[Change], dict]:
    """The changes of `compare`, each regression measured again, and the run that they are of.

    That run is `after` with the better of a regression's measurements, and with whatever failed in any of them. `after`
    itself stays as it was measured: a best of three, saved, would be a bar that the next run misses.

    `measure_again(benchmark, title)` gives that case's entry anew.
    """
    after = copy.deepcopy(after)
    for _ in range(CONFIRMATIONS):
        worse = [change for change in compare(before, after) if change.verdict == "regression"]
        for name, title in dict.fromkeys((change.benchmark, change.case) for change in worse):
            again = measure_again(name, title)
            cases = after["benchmarks"][name]["cases"]
            results = cases[title]["results"]
            results |= {contender: new for contender, new in again["results"].items() if new["failed"]}
            for contender in (c.contender for c in worse if (c.benchmark, c.case) == (name, title)):
                new, old = again["results"].get(contender) or _missing(again), results[contender]
                if not new["speed"] or (old["speed"] and new["speed"]["median"] > old["speed"]["median"]):
                    results[contender] = new
    return compare(before, after), after


def regressions(changes: list[Change]) -> list[Change]:
    return [change for change in changes if change.verdict in ("regression", "broken")]


def report(changes: list[Change], before: dict, after: dict) -> str:
    """A line for each ratio that changed, a count of those that did not, and what differs between the machines."""
    lines = []
    for key in MACHINE:
        old, new = (run["machine"].get(key) for run in (before, after))
        if old != new:
            lines.append(f"NOTE: {key} differs ({old} before, {new} now); ratios may differ for that alone")
    moved = [change for change in changes if change.verdict != "same"]
    width = max((len(f"{c.benchmark}: {c.case}, {c.contender}") for c in moved), default=0)
    for change in moved:
        name = f"{change.benchmark}: {change.case}, {change.contender}"
        lines.append(
            f"{change.verdict:<14} {name:<{width}}  {_text(change.before)} -> {_text(change.after)}{_by(change)}"
        )
    same = len(changes) - len(moved)
    lines.append(f"{same} of {len(changes)} ratios unchanged (within {CHANGE:.0%}, or within their spread)")
    return "\n".join(lines)


def _missing(entry: dict) -> dict:
    """The result of a contender that a repeated case does not have."""
    why = entry["problem"] or "no result when measured again"
    return {"ours": True, "speed": None, "failed": True, "problem": why}


def _change(benchmark: str, case: str, contender: str, before: dict | None, after: dict | None, here: bool) -> Change:
    if before is None:
        verdict = "new"
    elif after is None:
        verdict = "broken"
    elif after["high"] < before["low"] and after["median"] < before["median"] / (1 + CHANGE):
        verdict = "regression" if here else "not comparable"
    elif after["low"] > before["high"] and after["median"] > before["median"] * (1 + CHANGE):
        verdict = "improvement" if here else "not comparable"
    else:
        verdict = "same"
    return Change(benchmark, case, contender, verdict, before, after)


def _text(speed: dict | None) -> str:
    return f"{speed['median']:.2f}x ({speed['low']:.2f} .. {speed['high']:.2f})" if speed else "no figure"


def _by(change: Change) -> str:
    return "" if change.ratio is None else f"  {change.ratio - 1:+.0%}"
