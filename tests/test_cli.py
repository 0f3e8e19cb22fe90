"""The command line: what a user types, and what a mistake, an interruption or a kill leaves behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrank import Evaluation, load_run
from fastrank.errors import InputError

pytest.importorskip("timm")
pytest.importorskip("sklearn")
cli = pytest.importorskip("fastrank.cli")

TINY = ["--model", "mlp", "--model-kwarg", "depth=1", "width=16", "--data", "digits", "--image-size", "8"]


@pytest.fixture
def fastrank(monkeypatch, capsys):
    """Runs one command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastrank", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return run


def start(*arguments, **options):
    """The same in a process of its own."""
    command = [sys.executable, "-m", "fastrank", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for_steps(path, count, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if len(load_run(path).steps) >= count:
                return
        except InputError:
            pass  # not there yet
        time.sleep(0.05)
    raise AssertionError(f"no {count} steps in {path}: {process.communicate()}")


def test_train_several_temperatures_then_report_and_export(fastrank, tmp_path):
    out = tmp_path / "runs"
    code, text, error = fastrank("train", *TINY, "--temperature", 1, 100, "--epochs", 1, "--samples-per-class", 30,
                                 "--batch-size", 100, "--layers", "1", "3", "--out", out)  # fmt: skip
    assert (code, error) == (0, "")
    runs = [out / "digits-mlp-T1-s0", out / "digits-mlp-T100-s0"]
    for T, path in zip((1, 100), runs, strict=True):
        run = load_run(path)
        assert run.status == "finished" and run.config["temperature"] == T and run.config["layers"] == ["1", "3"]
        assert run.config["model_kwargs"] == {"depth": 1, "width": 16}
        row = next(line.split() for line in text.splitlines() if line.split()[:1] == [str(T)])
        rank, accuracy = run.evaluation["solution_rank"]["rank"], run.evaluation["train_accuracy"]
        assert str(rank) in row and f"{100 * accuracy:.1f}" in row
        assert f"{path}\n" in text
    code, text, _ = fastrank("report", *runs, "--out", tmp_path / "report.html")
    assert code == 0 and Path(text.strip()) == tmp_path / "report.html" and (tmp_path / "report.html").stat().st_size
    code, text, _ = fastrank("export", runs[0], "--out", tmp_path / "figures")
    assert code == 0 and all(Path(line).is_file() for line in text.split())


def test_doctor(fastrank):
    code, text, _ = fastrank("doctor")
    assert code == 0 and "native core" in text


def test_help_shows_an_example_that_is_valid(fastrank):
    for command in ("train", "report", "compare", "export", "doctor", "bench"):
        code, text, _ = fastrank(command, "--help")
        flat = " ".join(text.replace("│", " ").split())
        assert code == 0 and f"Example: fastrank {command}" in flat
    assert "train" in fastrank()[1]


def test_the_example_of_train_runs_as_far_as_its_arguments(fastrank, monkeypatch):
    """All of it but the minutes of training: what reaches the harness is what the help says."""
    import fastrank.train as harness

    example = re.search(r"`fastrank (train .*)`", cli.train.__doc__).group(1)
    received = {}
    monkeypatch.setattr(harness, "train_all", lambda configs, out, **options: received.update(configs=configs) or [])
    monkeypatch.setattr(harness, "print_summary", lambda results: None)
    assert fastrank(*example.split())[0] == 0
    assert [config.temperature for config in received["configs"]] == [1.0, 100.0]
    assert {(config.model, config.data, config.epochs) for config in received["configs"]} == {
        ("resnet18", "glyphs", 10)
    }


def test_options_go_before_the_preset(fastrank, monkeypatch):
    import fastrank.train as harness

    received = []
    monkeypatch.setattr(harness, "train_all", lambda configs, out, **options: received.extend(configs) or [])
    monkeypatch.setattr(harness, "print_summary", lambda results: None)
    fastrank("train", "--preset", "paper-resnet", "--epochs", 3, "--milestones", 1, 2, "--weight-decay", 0.0)
    (config,) = received
    assert (config.model, config.lr, config.momentum) == ("resnet18_cifar", 0.1, 0.9)
    assert (config.epochs, config.milestones, config.weight_decay) == (3, (1, 2), 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --temperature -1", r"temperature: expected a number > 0 .*, got -1\.0"),
        ("train --temperature 1 nan", r"temperature: expected a number > 0 .*, got nan"),
        ("train --temperature hot", r"Invalid value for '--temperature'"),
        ("train --temperature 1 1", r"temperature: expected values that differ"),
        ("train --model resnet19", r"model: expected .* got 'resnet19'; did you mean .*resnet18"),
        (
            "train --data glyph",
            r"data: expected one of digits, glyphs, .*, folder:PATH, got 'glyph'; did you mean glyphs",
        ),
        ("train --data folder:/no/such/place", r"data: expected .* got /no/such/place, which does not exist"),
        ("train --preset paper", r"preset: expected one of .* got 'paper'"),
        ("train --model-kwarg depth", r"model_kwargs: expected key=value, got 'depth'"),
        ("train --epochs 0", r"epochs: expected a whole number >= 1, got 0"),
        ("train --rate 1", r"No such option: --rate"),
        ("trian", r"No such command 'trian'"),
        ("report", r"Missing argument"),
        (
            "bench gramm",
            r"name: expected one of tempered_ce, tempered_mse, gram, small_eigh, rank, svd, ufm, probes, tracking, "
            r"got 'gramm'",
        ),
        ("bench gram --gpu-check", r"names: expected none with --gpu-check, which runs them all, got gram"),
        ("report /no/such/run", r"path: expected a run directory, got /no/such/run"),
        ("export /no/such/run --out x", r"path: expected a run directory, got /no/such/run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(fastrank, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, text, error = fastrank(*arguments.split())
    assert code == 2 and text == ""
    assert re.match(rf"fastrank: {message}", error) and error.count("\n") == 1 and error.endswith("\n")
    assert not any(tmp_path.iterdir())


def test_an_output_that_cannot_be_used(fastrank, tmp_path):
    short = [*TINY, "--epochs", 1, "--track", "off"]
    (tmp_path / "file").write_text("")
    code, _, error = fastrank("train", *short, "--out", tmp_path / "file")
    assert code == 2 and re.fullmatch(r"fastrank: path: expected a directory that can be written, got .*\n", error)
    assert fastrank("train", *short, "--out", tmp_path / "runs")[0] == 0
    code, _, error = fastrank("train", *short, "--out", tmp_path / "runs")
    assert code == 2
    assert re.fullmatch(r"fastrank: out: expected a directory without this run, .*--resume continues it.*\n", error)
    assert fastrank("train", *short, "--out", tmp_path / "runs", "--resume")[0] == 0


def test_a_loss_that_is_not_finite(fastrank, tmp_path):
    code, _, error = fastrank("train", *TINY, "--lr", 1e30, "--out", tmp_path)
    assert code == 2 and error.count("\n") == 1
    assert re.match(r"fastrank: loss: expected a finite number, got (nan|inf) at step \d+ .*try a smaller --lr", error)


def test_a_bug_keeps_its_traceback(fastrank, monkeypatch):
    import fastrank.train as harness

    def broken(*arguments, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(harness, "train_all", broken)
    monkeypatch.setattr(sys, "argv", ["fastrank", "train"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ctrl_c_ends_with_one_line_130_and_a_checkpoint(tmp_path):
    arguments = ["train", *TINY, "--epochs", 4000, "--track", "off", "--out", tmp_path]
    path = tmp_path / "digits-mlp-T1-s0"
    with start(*arguments) as process:
        wait_for_steps(path, 5, process)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert re.fullmatch(r"fastrank: interrupted after step \d+, saved in .*; --resume continues\n", error)
    assert load_run(path).status == "interrupted" and (path / "checkpoint.pt").is_file()


def test_kill_leaves_every_finished_step_readable(tmp_path):
    path = tmp_path / "digits-mlp-T1-s0"
    with start("train", *TINY, "--epochs", 4000, "--layers", "3", "--out", tmp_path) as process:
        wait_for_steps(path, 20, process)
        seen = len(load_run(path).steps)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
    run = load_run(path)
    assert run.status == "interrupted" and len(run.steps) >= seen
    assert run.steps.tolist() == list(range(len(run.steps)))
    assert len(run.series("train/loss")[0]) == len(run.series("logits/rank")[0]) == len(run.steps)


def test_evaluate_stores_with_the_run_and_report_shows_it(fastrank, tmp_path):
    pytest.importorskip("scipy")
    fastrank("train", *TINY, "--epochs", 1, "--samples-per-class", 12, "--batch-size", 60,
             "--track", "off", "--out", tmp_path)  # fmt: skip
    run = tmp_path / "digits-mlp-T1-s0"
    before = load_run(run).evaluation
    code, text, error = fastrank("evaluate", run, "--ood", "digits", "--epochs", 2, "--probe-batch", 64,
                                 "--out", tmp_path / "all.json")  # fmt: skip
    assert (code, error) == (0, "") and "solution rank" in text and "adam" in text
    after = load_run(run)
    assert after.status == "finished" and after.evaluation["train_accuracy"] == before["train_accuracy"]
    assert after.evaluation["solution_rank"]["rank"] == before["solution_rank"]["rank"]
    assert after.evaluation["solution_rank"]["accuracy"] == before["train_accuracy"]
    assert after.evaluation["test_accuracy"] == before["test_accuracy"]
    found = Evaluation.load(tmp_path / "all.json")
    assert found.probes.kappa == after.evaluation["probes"]["kappa"] and list(found.ood) == ["digits"]
    assert fastrank("report", run, "--out", tmp_path / "report.html")[0] == 0
    assert "probes.kappa" in (tmp_path / "report.html").read_text()
    code, _, error = fastrank("evaluate", tmp_path)
    assert code == 2 and "checkpoint: expected a run directory with checkpoint.pt" in error
