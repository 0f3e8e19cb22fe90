"""Runs the stages of a check one after another, each a process of its own with a time limit, and keeps what they say.

A stage that fails, hangs or dies does not stop the ones after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: Lines of a failed stage's output that go into the report.
TAIL = 25


@dataclass(frozen=True)
class Stage:
    """`command` runs in `folder`; exit code 0 is a pass unless `read` objects.

    Attributes:
        name, about: for the report. limit: seconds.
        skip: why it cannot run here; then it does not.
        environment: added to this process's.
        read: (output) -> (one line for the report, figures for the JSON); raises `Objection` where an exit code of 0
            is no pass, such as a test run in which nothing ran.
    """

    name: str
    about: str
    command: tuple[str, ...]
    limit: float
    skip: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    read: Callable[[str], tuple[str, dict]] = lambda output: ("", {})


class Objection(Exception):
    """What a stage printed shows that it did not pass."""


@dataclass
class Verdict:
    """`status` is "pass", "fail" or "skipped"; `reason` says why, or what was found."""

    name: str
    about: str
    status: str
    reason: str
    seconds: float = 0.0
    tail: str = ""
    figures: dict = field(default_factory=dict)


def run_all(stages: Iterable[Stage], folder: Path, total: float, echo=print) -> list[Verdict]:
    """Every stage's verdict; those that `total` seconds leave no time for fail, saying so."""
    deadline, verdicts = time.monotonic() + total, []
    for stage in stages:
        left = deadline - time.monotonic()
        if stage.skip:
            verdict = Verdict(stage.name, stage.about, "skipped", stage.skip)
        elif left < 1:
            verdict = Verdict(
                stage.name, stage.about, "fail", f"not run: the {total:.0f} s of the whole check were over"
            )
        else:
            verdict = run_stage(stage, folder, min(stage.limit, left))
        verdicts.append(verdict)
        echo(f"{verdict.status:<8} {verdict.seconds:6.1f} s  {verdict.name}: {verdict.reason}")
    return verdicts


def run_stage(stage: Stage, folder: Path, limit: float) -> Verdict:
    """Runs one stage; its whole process group is gone when this returns."""
    start = time.monotonic()
    environment = os.environ | stage.environment
    try:
        process = subprocess.Popen(
            stage.command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Verdict(stage.name, stage.about, "fail", f"does not start: {error}")
    try:
        output, _ = process.communicate(timeout=limit)
        reason = _ending(process.returncode)
    except subprocess.TimeoutExpired:
        _kill(process)
        output, _ = process.communicate()
        reason = f"stopped after {limit:.0f} s"
    finally:
        _kill(process)
    seconds, figures, found = time.monotonic() - start, {}, ""
    try:
        found, figures = stage.read(output)
    except Objection as objection:
        reason = reason or str(objection)
    except Exception as error:  # a report that cannot be read is a failure of the stage, not of the check
        reason = reason or f"its output cannot be read ({type(error).__name__}: {error})"
    if not reason:
        return Verdict(stage.name, stage.about, "pass", found, seconds, figures=figures)
    said = f"{reason}; {found}" if found else reason
    return Verdict(stage.name, stage.about, "fail", said, seconds, "\n".join(output.splitlines()[-TAIL:]), figures)


def _ending(code: int) -> str:
    if code == 0:
        return ""
    if code > 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
