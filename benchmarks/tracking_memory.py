"""Memory that tracking adds to a training on the CPU: the largest that its process had, untracked and with each preset.

    python benchmarks/tracking_memory.py [MODEL ...]     models of bench_tracking.py: "MLP 8x2048" (Linux only)

Every run is a process of its own, the runs take turns, and the median of REPEATS counts. `RSS` is what the system
reports as the peak. It counts pages that were given back with MADV_FREE, which the system takes when it wants them, and
pages of files, such as the code of torch; `own` leaves out both, looked at after every forward, backward, optimizer
step and tracked step. Shares are of the untracked process's RSS.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench_tracking import CASES, Step, Tracked, Training

REPEATS, STEPS = 3, 25
PRESETS = ("untracked", "light", "default")


def main(models: list[str]) -> None:
    cases = {case.model: case for case in CASES if case.every == 1 and "cpu" in case.devices}
    for model in models or ["resnet18", "MLP 8x2048"]:
        if model not in cases:
            raise SystemExit(f"MODEL: expected one of {', '.join(cases)}, got {model!r}")
        peaks = {preset: [] for preset in PRESETS}
        for _ in range(REPEATS):
            for preset in PRESETS:
                command = [sys.executable, __file__, "--one", model, preset]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                peaks[preset].append(tuple(map(float, out.split())))
        medians = {preset: [statistics.median(x) for x in zip(*peaks[preset], strict=True)] for preset in PRESETS}
        print(cases[model].title)
        for preset, (rss, own) in medians.items():
            more = [x - y for x, y in zip((rss, own), medians["untracked"], strict=True)]
            shares = [extra / medians["untracked"][0] for extra in more]
            print(f"  {preset:<10} RSS {rss:6.0f} MB {shares[0]:+7.1%}   own {own:6.0f} MB {shares[1]:+7.1%}")


def one(case: Step, preset: str) -> None:
    """Trains, and prints the two peaks in MB."""
    import torch

    torch.manual_seed(0)
    model, x = case.network()
    y = torch.randint(case.classes, (case.batch,))
    training = Training(model, x, y) if preset == "untracked" else Tracked(model, x, y, preset, 1)
    del model  # it trains a copy
    own = []
    training.model.register_forward_hook(lambda *_: own.append(own_memory()))
    training.optimizer.register_step_pre_hook(lambda *_: own.append(own_memory()))
    training.optimizer.register_step_post_hook(lambda *_: own.append(own_memory()))
    for _ in range(STEPS):
        training()
        own.append(own_memory())
    print(_kilobytes("status", "VmHWM") / 1e3, max(own) / 1e3)


def own_memory() -> int:
    """Kilobytes that nobody else can have."""
    return _kilobytes("status", "RssAnon") - _kilobytes("smaps_rollup", "LazyFree")


def _kilobytes(file: str, name: str) -> int:
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.argv[1:2] == ["--one"]:
        one(next(case for case in CASES if case.model == sys.argv[2] and case.every == 1), sys.argv[3])
    else:
        main(sys.argv[1:])
