"""What the page shows, as one JSON-ready dict: the figures of each run, thinned out for display only.

The page's scripts draw this and nothing else, so its shape is stated here:

    {"generated", "version", "runs": [{
        "name", "path", "status", "T", "steps": count, "last": last step, "started",
        "evaluation", "config", "environment", "git": {dotted key: value},
        "overhead": tracking share or null, "setup": seconds of the first measured step or null,
        "costs": [[source, ms, share, MB]], the dearest first, of `w.cost(by="source")`,
        "notes": [{"key", "text", "count", "first", "last"}],
        "lines":    {key: {"steps": [n], "values": [n]}},                        scalars without a layer
        "maps":     {kind: {"layers": [L], "steps": [n], "metrics": {metric: [L][n]}, "uncertain": {metric: share}}},
        "vectors":  {kind: {"layers": [L], "steps": [n], "values": [L][k][n]}},  one-dimensional arrays (sigma)
        "cosines":  {"layers": [L], "steps": [n], "values": [L][n][k][k]} or null,
        "evaluated": {                                                           of `fastrank evaluate`, or null
            "ranks":  {"before" or "after": {"tolerance": [C], "rank": [C], "at", "found"}},
            "probes": {"adam" or "ridge": {"layers": [L], "accuracies": [L], "kappa"}},
            "ood":    {name: {"adam" or "ridge": {"layers": [L], "accuracies": [L], "rho"}}}}}]}

A missing or non-finite number is null. A row of a map that holds one number at every step is stored as [number].
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np

import fastrank
from fastrank.record import Run
from fastrank.record.schema import jsonable, split_key
from fastrank.report.evaluated import evaluated_content

# The page must open fast however many runs it compares: each kind of figure has a share of numbers to spend, and the
# steps shown per series follow from it (6.5, 6.5 and 5 bytes per number at most, 7 MB together).
MAP_NUMBERS, VECTOR_NUMBERS, COSINE_NUMBERS = 400_000, 400_000, 350_000
MAP_STEPS, VECTOR_STEPS, COSINE_STEPS = 400, 400, 30
FEWEST_STEPS = 4
COST_ROWS = 300
BOUNDS = ("_lo", "_hi")


def page_content(runs: list[Run]) -> dict[str, Any]:
    """The page's dict (see above) for `runs`, in their order."""
    series = sum(1 for run in runs for key in run.keys if split_key(key)[1] and not key.endswith(BOUNDS))
    vectors, cosines = (
        sum(math.prod(shape) for run in runs for shape in of(run).values()) for of in (_vectors, _cosines)
    )
    limits = [
        min(most, max(FEWEST_STEPS, numbers // max(1, used)))
        for most, numbers, used in (
            (MAP_STEPS, MAP_NUMBERS, series),
            (VECTOR_STEPS, VECTOR_NUMBERS, vectors),
            (COSINE_STEPS, COSINE_NUMBERS, cosines),
        )
    ]
    return {
        "generated": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "version": fastrank.__version__,
        "runs": [_run_content(run, name, *limits) for run, name in zip(runs, run_names(runs), strict=True)],
    }


def _run_content(run: Run, name: str, map_steps: int, vector_steps: int, cosine_steps: int) -> dict[str, Any]:
    config = flatten(run.config)
    return {
        "name": name,
        "path": str(run.path),
        "status": run.status,
        "T": config.get("temperature", config.get("T", config.get("watch.T"))),
        "steps": len(run.steps),
        "last": int(run.steps[-1]) if len(run.steps) else None,
        "started": datetime.fromtimestamp(run.started).astimezone().strftime("%Y-%m-%d %H:%M"),
        "evaluation": flatten(run.evaluation),
        "config": config,
        "environment": flatten(run.environment),
        "git": flatten(run.git or {}),
        "overhead": _number(run.overhead, 4) if run.overhead is not None else None,
        "setup": _number(run.setup_seconds, 3) if run.setup_seconds is not None else None,
        "costs": _costs(run),
        "notes": _notes(run),
        "lines": {key: _line(run, key) for key in run.keys if not split_key(key)[1]},
        "maps": _maps(run, map_steps),
        "vectors": _by_kind(run, vector_steps),
        "cosines": _arrays(run, _cosines(run), cosine_steps, 2) if _cosines(run) else None,
        "evaluated": evaluated_content(run.evaluation),
    }


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, ready to be shown: lists and non-finite numbers become text."""
    flat: dict[str, Any] = {}
    for key, item in jsonable(value).items():
        if isinstance(item, dict) and item:
            flat.update(flatten(item, f"{prefix}{key}."))
        elif isinstance(item, (list, dict)):
            flat[prefix + key] = ", ".join(map(str, item)) if item else "none"
        elif isinstance(item, float) and not math.isfinite(item):
            flat[prefix + key] = str(item)
        else:
            flat[prefix + key] = item
    return flat


def thin(steps: np.ndarray, most: int) -> np.ndarray:
    """[<= most] indices into `steps`, evenly spaced, the first and the last among them."""
    if len(steps) <= most:
        return np.arange(len(steps))
    return np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))


def numbers(values: np.ndarray, digits: int) -> list:
    """Nested lists of `values` with `digits` significant digits; integers as such, non-finite ones as None."""
    if values.ndim > 1:
        return [numbers(row, digits) for row in values]
    return [_number(value, digits) for value in values.tolist()]


def _number(value: float, digits: int) -> int | float | None:
    if not math.isfinite(value):
        return None
    rounded = value if value == int(value) else float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded


def run_names(runs: Iterable[Run]) -> list[str]:
    """Directory names, with the parent's where two runs share one."""
    names = [run.name for run in runs]
    return [
        f"{run.path.parent.name}/{name}" if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def _notes(run: Run) -> list[dict[str, Any]]:
    """The same remark at many steps is one line; the table of costs that `watch` leaves is none."""
    groups: dict[tuple[str, str], list[int]] = {}
    for step, key, text in run.notes:
        if key == "cost":
            continue
        groups.setdefault((key, text), []).append(step)
    return [
        {"key": key, "text": text, "count": len(steps), "first": min(steps), "last": max(steps)}
        for (key, text), steps in groups.items()
    ][:200]


def _costs(run: Run) -> list[list]:
    """What each layer and figure cost, as the watcher left it at its end; nothing where it was killed."""
    texts = [text for _, key, text in run.notes if key == "cost"]
    try:
        sources = json.loads(texts[-1]) if texts else {}
        rows = [
            [source, *(_number(float(cost[name]), 3) for name in ("ms", "share", "MB"))]
            for source, cost in sources.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError):  # a note of somebody else's
        return []
    return sorted(rows, key=lambda row: -(row[1] or 0))[:COST_ROWS]


def _line(run: Run, key: str) -> dict[str, list]:
    steps, values = run.series(key)
    chosen = thin(steps, MAP_STEPS)
    return {"steps": steps[chosen].tolist(), "values": numbers(values[chosen], 5)}


def _maps(run: Run, most: int) -> dict[str, Any]:
    """Scalars of layers, as one matrix [layers, steps] per kind and metric."""
    kinds: dict[str, dict[str, dict[str, str]]] = {}
    for key in run.keys:
        kind, layer, metric = split_key(key)
        if layer:
            kinds.setdefault(kind, {}).setdefault(metric, {})[layer] = key
    return {kind: _map(run, metrics, most) for kind, metrics in kinds.items()}


def _map(run: Run, metrics: dict[str, dict[str, str]], most: int) -> dict[str, Any]:
    layers = list(dict.fromkeys(layer for keys in metrics.values() for layer in keys))
    series = {key: run.series(key) for keys in metrics.values() for key in keys.values()}
    steps = np.unique(np.concatenate([steps for steps, _ in series.values()]))
    steps = steps[thin(steps, most)]
    rows = {
        metric: [_row(numbers(_on(steps, *series[keys[layer]]), 4)) if layer in keys else [None] for layer in layers]
        for metric, keys in metrics.items()
        if not metric.endswith(BOUNDS)
    }
    uncertain = {}
    for metric, keys in metrics.items():
        low, high = metrics.get(metric + "_lo", {}), metrics.get(metric + "_hi", {})
        pairs = [(series[low[layer]][1], series[high[layer]][1]) for layer in keys if layer in low and layer in high]
        known = [(lo != hi)[np.isfinite(lo) & np.isfinite(hi)] for lo, hi in pairs]
        if sum(map(len, known)):
            uncertain[metric] = float(np.mean(np.concatenate(known)))
    return {"layers": layers, "steps": steps.tolist(), "metrics": rows, "uncertain": uncertain}


def _row(values: list) -> list:
    return values[:1] if values.count(values[0]) == len(values) else values


def _on(steps: np.ndarray, own: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values`, known at the steps `own`, at `steps`; NaN where unknown."""
    at = np.searchsorted(own, steps).clip(max=len(own) - 1)
    return np.where(own[at] == steps, values[at], np.nan)


def _shapes(run: Run, dimensions: int) -> dict[str, tuple[int, ...]]:
    """The largest shape of each array that has `dimensions`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in (item for segment in run.segments for item in segment.layout.arrays):
        known = shapes.get(key, shape)
        if len(known) == len(shape):
            shapes[key] = tuple(map(max, known, shape))
    return {key: shape for key, shape in shapes.items() if len(shape) == dimensions and math.prod(shape)}


def _vectors(run: Run) -> dict[str, tuple[int, ...]]:
    return _shapes(run, 1)


def _cosines(run: Run) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in _shapes(run, 2).items() if split_key(key)[::2] == ("align", "cosines")}


def _by_kind(run: Run, most: int) -> dict[str, Any]:
    kinds: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in _vectors(run).items():
        kinds.setdefault(split_key(key)[0], {})[key] = shape
    return {kind: _arrays(run, shapes, most, 3) for kind, shapes in kinds.items()}


def _arrays(run: Run, shapes: dict[str, tuple[int, ...]], most: int, digits: int) -> dict[str, Any]:
    """The arrays `shapes` names, by layer and step; vectors with the steps last, as they are drawn."""
    steps = np.unique(np.concatenate([run.spectra.steps(key) for key in shapes]))
    steps = steps[thin(steps, most)]
    values = {key: np.full((len(steps), *shape), np.nan) for key, shape in shapes.items()}
    for place, step in enumerate(steps):
        for key, array in run.spectra.at(step).items():
            if key in values and array.ndim == len(shapes[key]):  # a key may have had other sizes at other steps
                corner = tuple(slice(min(pair)) for pair in zip(array.shape, shapes[key], strict=True))
                values[key][(place, *corner)] = array[corner]
    names = []
    for key in shapes:
        _, layer, metric = split_key(key)
        names.append(layer if layer and metric in ("sigma", "cosines") else f"{layer} {metric}".strip())
    blocks = [block.T if block.ndim == 2 else block for block in values.values()]
    return {"layers": names, "steps": steps.tolist(), "values": [numbers(block, digits) for block in blocks]}
