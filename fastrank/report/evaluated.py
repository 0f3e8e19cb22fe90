"""What a stored evaluation shows on the page: the curve of the solution rank, and the probes' accuracies by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def evaluated_content(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part "evaluated" of a run (see content.py); None where there is nothing to draw.

    evaluation: whatever a run holds; only what has the form of `Evaluation.to_dict` is read.
    """
    solution, probes, ood = (_mapping(evaluation.get(part)) for part in ("solution_rank", "probes", "ood"))
    ranks = {"before": _curve(solution), "after": _curve(_mapping(solution.get("after_softmax")))}
    threshold = _number(probes.get("threshold"))
    own = {how: _by_layer(probes.get(how), "kappa", probes.get(key), threshold) for how, key in
           (("adam", "kappa"), ("ridge", "ridge_kappa"))}  # fmt: skip
    others = {
        str(name): {how: _by_layer(found.get(part), "rho", found.get(key)) for how, part, key in
                    (("adam", "probes", "rho"), ("ridge", "ridge", "ridge_rho"))}
        for name, found in ((name, _mapping(one)) for name, one in ood.items())
    }  # fmt: skip
    found = {
        "ranks": _present(ranks),
        "probes": _present(own),
        "ood": {name: some for name, one in others.items() if (some := _present(one))},
    }
    return found if any(found.values()) else None


def _curve(rank: Mapping[str, Any]) -> dict[str, Any] | None:
    """At tolerance[i], relative to the largest singular value, the rank is rank[i]: those above it."""
    sigma = rank.get("sigma")
    if not isinstance(sigma, list) or not all(_number(s) is not None for s in sigma) or not sigma or sigma[0] <= 0:
        return None
    above = [s for s in sigma if s > 0]
    # Drawn as steps that hold to the left: just below sigma[i] the rank is i + 1.
    return {
        "tolerance": [float(f"{s / sigma[0]:.5g}") for s in above],
        "rank": list(range(1, len(above) + 1)),
        "at": _number(rank.get("rtol")),
        "found": _number(rank.get("rank")),
    }


def _by_layer(accuracies: Any, name: str, value: Any, threshold: float | None = None) -> dict[str, Any] | None:
    """mark: the layer that the figure `name` is read from, the first good enough or the best; null if none is."""
    accuracies = {str(layer): _number(one) for layer, one in _mapping(accuracies).items()}
    known = [one for one in accuracies.values() if one is not None]
    if not known:
        return None
    last = list(accuracies.values())[-1]
    goal = max(known) if threshold is None else threshold * last if last is not None else math.inf
    marks = [i for i, one in enumerate(accuracies.values()) if one is not None and one >= goal]
    complete = len(known) == len(accuracies)
    return {
        "layers": list(accuracies),
        "accuracies": list(accuracies.values()),
        "mark": marks[0] if marks and complete else None,
        name: _number(value),
    }


def _present(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if part is not None}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None
