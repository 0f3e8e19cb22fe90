"""A run of benchmarks as a JSON document: written, read back and checked.

{"schema": 1, "date", "quick", "seconds", "device", "machine": {...}, "peaks": {"copy": bytes/s, "fp32": ...},
 "benchmarks": {name: {"about", "peers": {name: version or why not},
    "cases": {title: {"where", "error_unit", "baseline", "problem",
       "results": {contender: {"ours", "error", "budget", "problem", "failed", "read", "written", "flops",
          "seconds", "wall", "speed": each {"median", "low", "high", "samples"} or null}}}}}}}
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from fastrank.errors import InputError

SCHEMA = 1
#: Where --save puts runs, and where --against looks for a name.
SAVED = Path(__file__).parent / "out"


def write(run: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(run), indent=1, allow_nan=False) + "\n")
    return path


def read(source: str) -> dict:
    """The run in file `source`, or saved under that name; InputError where there is none."""
    path = Path(source)
    if not path.is_file():
        path = saved(source)
    try:
        run = json.loads(path.read_text())
    except FileNotFoundError:
        names = sorted(p.stem for p in SAVED.glob("*.json"))
        raise InputError(
            "against",
            "a file, or a name given to --save before",
            repr(source),
            f"saved here: {', '.join(names) or 'none'}",
        ) from None
    except (ValueError, UnicodeDecodeError):
        raise InputError("against", "a JSON file that --save or --json wrote", str(path)) from None
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        got = run.get("schema") if isinstance(run, dict) else type(run).__name__
        raise InputError("against", f"a run with schema {SCHEMA}", f"{path} with {got}", "save it again")
    _check(run, path)
    return run


def only(run: dict, part: str | None) -> dict:
    """The run with the cases alone whose title contains `part`."""
    if not part:
        return run
    benchmarks = {
        name: benchmark | {"cases": {title: case for title, case in benchmark["cases"].items() if part in title}}
        for name, benchmark in run["benchmarks"].items()
    }
    return run | {"benchmarks": benchmarks}


def saved(name: str) -> Path:
    return SAVED / f"{name}.json"


def _check(run: dict, path: Path) -> None:
    """Raises InputError unless everything is there that a comparison reads: better now than after the measurement."""

    def need(parent, key: str, kind: type, where: str):
        found = parent.get(key) if isinstance(parent, dict) else None
        if not isinstance(found, kind):
            raise InputError("against", f"a run with {where}", f"{path} without", "save it again")
        return found

    need(run, "date", str, "a date")
    need(run, "quick", bool, "quick")
    need(run, "machine", dict, "a machine")
    for name, benchmark in need(run, "benchmarks", dict, "benchmarks").items():
        for title, case in need(benchmark, "cases", dict, f"cases of {name}").items():
            for contender, result in need(case, "results", dict, f"results of {name}: {title}").items():
                where = f"{name}: {title}, {contender}"
                need(result, "ours", bool, f"ours of {where}")
                if "speed" not in result or result["speed"] is not None:
                    speed = need(result, "speed", dict, f"a speed of {where}")
                    for key in ("median", "low", "high"):
                        if not need(speed, key, int | float, f"a {key} speed of {where}") > 0:
                            raise InputError("against", f"a {key} speed > 0 of {where}", f"{path} with {speed[key]}")


def _finite(value):
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
