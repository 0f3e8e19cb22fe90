"""Runs benchmarks, prints their tables, and saves, compares and draws what came of it: `fastrank bench`."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import time
from pathlib import Path

import compare as comparison
import machine
import peers
import results
import torch
from harness import Benchmark, Case, Problem, measure
from table import table

from fastrank.errors import InputError

#: Name -> what it measures. A new benchmark is a file bench_<name>.py and an entry here.
BENCHMARKS = {
    "tempered_ce": "the tempered cross-entropy against eager torch, torch.compile, Liger, quack, cut-cross-entropy",
    "tempered_mse": "the tempered squared error against eager torch and torch.compile",
    "gram": "Gram matrices of tall, wide and channel data against torch, BLAS syrk and CuPy",
    "small_eigh": "eigenvalues and counts of many symmetric matrices against LAPACK",
    "rank": "spectra and ranks against torch.linalg and scipy",
    "svd": "top singular triplets, cold and warm, against torch.linalg.svd, svd_lowrank, scipy and scikit-learn",
    "ufm": "many deep linear networks as one batch against a loop over small modules and torch.func",
    "probes": "linear probes of all layers together against one layer after another",
    "tracking": "what tracking adds to a training step, against torch.linalg in hooks",
}
SECONDS, QUICK_SECONDS = 0.6, 0.08


def run(
    names: list[str] | None = None,
    *,
    quick: bool = False,
    device: str = "auto",
    threads: int | None = None,
    seconds: float | None = None,
    case: str | None = None,
    json: Path | None = None,
    save: str | None = None,
    against: str | None = None,
    plots: Path | None = None,
    echo=print,
) -> int:
    """Exit code of `fastrank bench`: 1 where a check failed or a ratio regressed on the machine of the saved run.

    Args:
        names: of BENCHMARKS; all if empty. quick: the cases that are marked so, for less time.
        device: "auto" (CUDA where it is), "cpu", "cuda", "cuda:1". threads: torch's; its own choice if None.
        seconds: per contender and case. case: only titles that contain this.
        json: a file for the results. save: a name for them, under benchmarks/out. against: a file or saved name.
        plots: a directory for one roofline picture per benchmark.
    """
    chosen = [load(name) for name in names or BENCHMARKS]
    device = _device(device)
    before = results.only(results.read(against), case) if against else None
    if save and not save.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InputError("save", "a name of letters, digits, '.', '-' and '_'", repr(save))
    if threads is not None and threads < 1:
        raise InputError("threads", "a whole number >= 1", threads)
    if seconds is not None and not seconds > 0:
        raise InputError("seconds", "a number > 0", seconds)
    if not any(_runs(c, device, quick, case) for benchmark in chosen for c in benchmark.cases):
        shown = f"part of a title that --list shows for {device}{' with *' if quick else ''}"
        raise InputError("case", shown, repr(case))
    if threads is not None:
        torch.set_num_threads(threads)
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    facts = machine.describe(device)
    echo(machine.summary(facts))
    start, span = time.perf_counter(), 0.1 if quick else 0.5
    peaks = machine.peaks(device, span)
    document = {
        "schema": results.SCHEMA,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": seconds,
        "device": device,
        "machine": facts,
        "benchmarks": {b.name: run_one(b, device, quick, seconds, case, echo) for b in chosen},
    }
    document["peaks"] = peaks = machine.higher(peaks, machine.peaks(device, span))
    rates = ", ".join(f"{name} {rate / 1e9:.0f} {_unit(name)}" for name, rate in peaks.items())
    echo(f"\n{time.perf_counter() - start:.0f} s; this machine's peaks, measured before and after: {rates}")
    changes, confirmed = [], document
    if before:

        def again(name: str, title: str) -> dict:
            echo(f"\n{title} got worse: once more")
            entry = run_one(load(name), device, quick, seconds, title, echo)
            return entry["cases"][title]

        changes, confirmed = comparison.confirm(before, document, again)
        echo("\nagainst the run of " + before["date"] + "\n" + comparison.report(changes, before, document))
    # What is kept is the first measurement; what failed in a later one fails the run too.
    failed = list(dict.fromkeys(failures(document) + failures(confirmed)))
    return _conclude(document, failed, changes, json, save, plots, echo)


def load(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise InputError("name", f"one of {', '.join(BENCHMARKS)}", repr(name))
    return importlib.import_module(f"bench_{name}").BENCHMARK


def listing() -> str:
    """Every benchmark with its cases; those of --quick are marked."""
    lines = []
    for name, what in BENCHMARKS.items():
        lines += ["", f"{name}: {what}"]
        for case in load(name).cases:
            where = "" if len(case.devices) > 1 else f", {case.devices[0]} only"
            lines.append(f"  {'*' if case.quick else ' '} {case.title}  ({case.where}{where})")
    return "\n".join([*lines[1:], "", "* also with --quick"])


def run_one(benchmark: Benchmark, device: str, quick: bool, seconds: float, only: str | None, echo=print) -> dict:
    """All chosen cases of one benchmark as the document's entry; a case that cannot be prepared is reported."""
    kind = torch.device(device).type
    echo(f"\n== {benchmark.name}: {' '.join(benchmark.about.split())}")
    present = {name: peers.status(name, kind) for name in benchmark.peers}
    for name, what in present.items():
        echo(f"   {name}: {what}")
    if benchmark.compiled and quick:
        echo("   torch.compile: left out by --quick")
    cases = {}
    for case in benchmark.cases:
        if not _runs(case, device, quick, only):
            continue
        echo(f"\n{benchmark.name}: {case.title}  ({case.where})")
        entry = {"where": case.where, "error_unit": "", "baseline": "", "problem": "", "results": {}}
        cases[case.title] = entry
        try:
            problem = benchmark.prepare(case, device)
        except torch.OutOfMemoryError as error:
            entry["problem"] = f"not enough memory: {str(error).splitlines()[0]}"
            echo(f"  {entry['problem']}")
            continue
        if quick:
            kept = {name: c for name, c in problem.contenders.items() if not c.slow}
            problem = Problem(kept, problem.error_unit)
        outcomes = measure(problem, device, seconds)
        entry |= {
            "error_unit": problem.error_unit,
            "baseline": next(iter(outcomes)),
            "results": {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()},
        }
        echo(table(outcomes))
        del problem
    return {"about": benchmark.about, "peers": present, "cases": cases}


def _runs(case: Case, device: str, quick: bool, only: str | None) -> bool:
    return torch.device(device).type in case.devices and (case.quick or not quick) and (only or "") in case.title


def failures(document: dict) -> list[str]:
    return [
        f"{name}: {title}, {contender}: {result['problem']}"
        for name, benchmark in document["benchmarks"].items()
        for title, case in benchmark["cases"].items()
        for contender, result in case["results"].items()
        if result["failed"]
    ]


def _conclude(
    document: dict,
    failed: list[str],
    changes: list,
    json: Path | None,
    save: str | None,
    plots: Path | None,
    echo,
) -> int:
    if json:
        echo(f"results: {results.write(document, json)}")
    if save:
        echo(f"saved: {results.write(document, results.saved(save))}")
    if plots:
        from plot import draw

        for path in draw(document, plots):
            echo(f"picture: {path}")
    for line in failed:
        echo(f"FAILED {line}")
    return 1 if failed or comparison.regressions(changes) else 0


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise InputError("device", "auto, cpu, cuda or cuda:N", repr(device)) from None
    if kind.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("device", "one that torch sees", f"{device!r} and no CUDA device here")
        if (kind.index or 0) >= torch.cuda.device_count():
            raise InputError("device", f"one of {torch.cuda.device_count()} CUDA devices", repr(device))
    elif kind.type != "cpu":
        raise InputError("device", "auto, cpu, cuda or cuda:N", repr(device))
    return device


def _unit(peak: str) -> str:
    return "GB/s" if peak.startswith("copy") else "GFLOP/s"
