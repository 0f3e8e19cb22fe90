"""The stage runner: a stage that fails, hangs, dies or says nothing fails with a reason, and the rest still runs."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from stages import Objection, Stage, run_all, run_stage


def stage(code, limit=30.0, **options):
    return Stage("name", "about", (sys.executable, "-c", code), limit, **options)


def run(one, tmp_path, limit=30.0):
    return run_stage(one, tmp_path, limit)


def test_a_pass_with_what_it_found(tmp_path):
    one = stage(
        "import os; print(os.environ['X'], os.getcwd())",
        environment={"X": "7"},
        read=lambda out: (out.strip(), {"a": 1}),
    )
    verdict = run(one, tmp_path)
    assert (verdict.status, verdict.reason, verdict.figures) == ("pass", f"7 {tmp_path}", {"a": 1})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('why'); raise SystemExit(3)", "exit code 3"),
        ("import os, signal; print('why', flush=True); os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("import time; print('why', flush=True); time.sleep(60)", "stopped after 1 s"),
    ],
)
def test_failures_keep_their_output(tmp_path, code, reason):
    start = time.monotonic()
    verdict = run(stage(code), tmp_path, 1.0 if "sleep" in code else 30.0)
    assert verdict.status == "fail" and verdict.reason.startswith(reason) and "why" in verdict.tail
    assert time.monotonic() - start < 30


def test_a_stopped_stage_takes_its_children_along(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    verdict = run(stage(code), tmp_path, 2.0)
    pid = int(verdict.tail.split()[0])
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


def test_exit_code_0_is_no_pass_where_the_reader_objects_or_cannot_read(tmp_path):
    def objects(output):
        raise Objection("nothing ran")

    assert run(stage("", read=objects), tmp_path).reason == "nothing ran"
    verdict = run(stage("", read=lambda output: json.loads("{")), tmp_path)
    assert verdict.status == "fail" and verdict.reason.startswith("its output cannot be read (JSONDecodeError")


def test_one_failing_stage_does_not_stop_the_others(tmp_path):
    lines = []
    missing = Stage("missing", "about", ("/no/such/program",), 5)
    skipped = stage("raise SystemExit(1)", skip="no such tool here")
    verdicts = run_all([missing, stage("raise SystemExit(1)"), skipped, stage("")], tmp_path, 60, lines.append)
    assert [v.status for v in verdicts] == ["fail", "fail", "skipped", "pass"]
    assert "does not start" in verdicts[0].reason and verdicts[2].reason == "no such tool here"
    assert len(lines) == 4 and lines[2].startswith("skipped") and "no such tool here" in lines[2]


def test_what_the_whole_check_has_no_time_for_is_a_failure(tmp_path):
    verdicts = run_all([stage("import time; time.sleep(60)"), stage("")], tmp_path, 1.5, lambda line: None)
    assert [v.status for v in verdicts] == ["fail", "fail"]
    assert (
        "stopped after" in verdicts[0].reason and verdicts[1].reason == "not run: the 2 s of the whole check were over"
    )
