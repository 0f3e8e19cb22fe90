"""`fastrank bench --gpu-check`: the whole verdict on a machine with a GPU, in under ten minutes.

Builds what is missing, then tests, sanitizers, benchmarks, predictions and a tracked training run, each a stage of its
own; one report, named by device, in Markdown and JSON. With `device="cpu"` the same stages run where they can without a
GPU, which tries this file, not the kernels.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import machine
import torch
import verdict
from fastrank.kernels import backend
from runner import BENCHMARKS
from stages import Objection, Stage, run_all

from fastrank.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
#: Seconds of the whole check.
TOTAL = 590.0
NO_GPU = "a CPU run of the check"


def run(device: str = "auto", out: Path = Path("runs/gpu-check"), echo=print) -> int:
    """Runs every stage, writes `out`/<device>.md and .json, and returns 1 if a stage failed, else 0.

    Raises:
        InputError: no CUDA device (and device is not "cpu").
    """
    if device != "cpu":
        if not torch.cuda.is_available():
            built = (
                f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU-only build of torch"
            )
            raise InputError("gpu-check", "a machine with an NVIDIA GPU that torch sees", f"none; {built}")
        device = "cuda" if device == "auto" else device
    facts = machine.describe(device)
    echo(machine.summary(facts))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        verdicts = run_all(stages(device, Path(scratch)), ROOT, TOTAL, echo)
    document = {
        "schema": 1,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": facts,
        "stages": [vars(v) for v in verdicts],
    }
    path = out / f"{machine.slug(device)}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(verdict.render(document))
    echo(f"report: {path.with_suffix('.md')}")
    return 1 if any(v.status == "fail" for v in verdicts) else 0


def stages(device: str, scratch: Path) -> list[Stage]:
    """In order of what must hold first; `scratch` is for what they hand over."""
    python, gpu = sys.executable, device != "cpu"
    test = (python, "-m", "pytest", "-rs", "-p", "no:cacheprovider")
    where = {"FASTRANK_TEST_DEVICE": device}
    kinds = ("tempered_ce", "both_losses", "gram", "tracking")
    conformity = [f"tests/device/test_{kind}.py" for kind in kinds]
    skip_gpu = "" if gpu else NO_GPU
    return [
        build(gpu),
        Stage("conformity", "every op against float64, on the device", (*test, *conformity), 150, "", where, tested),
        Stage(
            "streams", "no waits for the device, CUDA graphs, streams", (*test, "tests/device/test_streams.py"),
            60, "", where, tested,
        ),
        *(sanitizer(tool, device, skip_gpu) for tool in ("memcheck", "racecheck")),
        *(
            Stage(
                f"bench {name}", "quick benchmarks, answers checked",
                (python, "-m", "fastrank", "bench", name, "--quick", "--device", device, "--json",
                 str(scratch / f"{name}.json")),
                75, read=benched(name, scratch / f"{name}.json"),
            )
            for name in BENCHMARKS
        ),
        Stage(
            "prediction", "the cost model's time of each kernel against the device's",
            (python, "benchmarks/predict.py", device, str(scratch / "prediction.json")), 60,
            read=predicted(scratch / "prediction.json"),
        ),
        Stage(
            "training", "a small ResNet trained and tracked on the device, from the command line",
            (python, "-m", "fastrank", "train", "--model", "resnet10t", "--data", "glyphs", "--temperature", "100",
             "--epochs", "1", "--samples-per-class", "10", "--track", "default", "--device", device,
             "--out", str(scratch / "runs")),
            90, read=trained(scratch / "runs"),
        ),
    ]  # fmt: skip


def build(gpu: bool) -> Stage:
    """Reinstalls with CUDA where the native core lacks it."""
    core = backend.core()
    skip = ""
    if not gpu:
        skip = NO_GPU
    elif core is not None and core.cuda:
        skip = "the native core already has its CUDA kernels"
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ".")
    return Stage("build", "the native core with CUDA", command, 240, skip, {"FASTRANK_CUDA": "ON"})


def sanitizer(tool: str, device: str, skip: str) -> Stage:
    """compute-sanitizer over one small call of every op; torch's caching allocator would hide an overrun from it."""
    path = shutil.which("compute-sanitizer") or next(
        (str(p) for p in sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"), reverse=True)), ""
    )
    skip = skip or ("" if path else "compute-sanitizer not found (it comes with the CUDA toolkit)")
    about = {"memcheck": "every access in bounds and aligned", "racecheck": "no race in shared memory"}[tool]
    command = (path, "--tool", tool, "--error-exitcode", "9", sys.executable, "tests/device_calls.py", device)
    return Stage(tool, about, command, 120, skip, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, sanitized)


def tested(output: str) -> tuple[str, dict]:
    """pytest's last line; a run in which nothing passed is no pass."""
    lines = [line for line in output.splitlines() if re.search(r"\b\d+ (passed|failed|skipped|error)", line)]
    counts = {
        kind: int(number)
        for number, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1] if lines else "")
    }
    if not counts.get("passed"):
        raise Objection("no test passed")
    return ", ".join(f"{number} {kind}" for kind, number in counts.items()), counts


def sanitized(output: str) -> tuple[str, dict]:
    found = re.findall(r"(ERROR SUMMARY: .*|RACECHECK SUMMARY: .*)", output)
    if not found:
        raise Objection("the sanitizer gave no summary")
    return found[-1].strip(), {}


def benched(name: str, path: Path):
    def read(output: str) -> tuple[str, dict]:
        if not path.is_file():
            raise Objection("no figures were written")
        entry = json.loads(path.read_text())
        cases = entry["benchmarks"][name]["cases"].values()
        timed = sum(1 for case in cases if any(r["ours"] and r["seconds"] for r in case["results"].values()))
        if not timed:
            raise Objection("no case was timed")
        return f"{timed} of {len(cases)} cases timed, every answer within its budget", entry

    return read


def predicted(path: Path):
    def read(output: str) -> tuple[str, dict]:
        found = json.loads(path.read_text())
        ratios = sorted(k["measured"] / k["predicted"] for k in found["kernels"] if k["measured"])
        if not ratios:
            raise Objection("no kernel was measured")
        return f"measured / predicted {ratios[0]:.2f} .. {ratios[-1]:.2f} over {len(ratios)} kernels", found

    return read


def trained(folder: Path):
    def read(output: str) -> tuple[str, dict]:
        from fastrank import load_run

        (path,) = folder.iterdir()
        run = load_run(path)
        metrics = run.metrics
        tracked = metrics[metrics.metric == "rank"]
        if run.status != "finished" or not len(tracked):
            raise Objection(f"the run is {run.status} with {len(tracked)} ranks")
        bad = int(tracked.value.isna().sum())
        if bad:
            raise Objection(f"{bad} of {len(tracked)} ranks are NaN")
        share = run.series("cost/share")[1]
        figures = {"steps": len(run.steps), "ranks": len(tracked), "share": float(sorted(share)[len(share) // 2])}
        return f"{figures['steps']} steps, {figures['ranks']} ranks, tracking adds {figures['share']:+.0%}", figures

    return read
