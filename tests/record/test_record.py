"""The run database: what was written comes back, whatever happened to the process that wrote it."""

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

import fastrank
from fastrank.errors import InputError
from fastrank.record import RunWriter, load_run
from fastrank.record.schema import DATABASE, SCHEMA_VERSION, split_key

HOSTILE = [
    "a/<script>alert(1)</script>/b",
    "act/'; DROP TABLE steps; --/rank",
    "act/a\nb\0c/rank",
    "act/\ud800/rank",
    "x",
    "act/ü漢/rank",
]


def write(path, steps=5, **arguments):
    with RunWriter(path, {"model": "mlp"}, **arguments) as writer:
        for step in range(steps):
            writer.log_step(
                step, {"act/fc/rank": step, "train/loss": 1 / (step + 1)}, {"act/fc/sigma": np.arange(3.0) + step}
            )
    return load_run(path)


def test_what_was_written_comes_back(tmp_path):
    config = {
        "model": "resnet18",
        "T": 100,
        "nested": {"path": Path("/data"), "betas": (0.9, 0.99), "dtype": torch.float32},
    }
    evaluation = {
        "train_accuracy": 0.99,
        "solution_rank": {"rank": 11, "lo": 10, "hi": 12, "definition": "sigma > tol"},
    }
    with RunWriter(tmp_path / "deep" / "run", config) as writer:
        writer.log_step(
            3, {"act/a/rank": 4, "logits/norm": torch.tensor(2.5)}, {"act/a/sigma": torch.tensor([3.0, 1.0])}
        )
        writer.log_step(7, {"act/a/rank": np.int64(5), "logits/norm": 3.5}, {"act/a/sigma": np.array([9.0, 2.0])})
        writer.note(7, "act/a/rank", "one row was inf")
        writer.note(7, "act/a/rank", "one row was inf")
        writer.set_evaluation({"train_accuracy": 0})
        writer.set_evaluation(evaluation)
    run = load_run(tmp_path / "deep" / "run")
    assert (run.name, run.status, run.steps.tolist()) == ("run", "finished", [3, 7])
    assert run.config == {
        "model": "resnet18",
        "T": 100,
        "nested": {"path": "/data", "betas": [0.9, 0.99], "dtype": "torch.float32"},
    }
    assert run.evaluation == evaluation
    assert run.notes == [(7, "act/a/rank", "one row was inf")]
    assert run.keys == ["act/a/rank", "logits/norm"]
    steps, values = run.series("logits/norm")
    assert steps.tolist() == [3, 7] and values.tolist() == [2.5, 3.5]
    steps, values = run.spectra["act/a/sigma"]
    assert steps.tolist() == [3, 7] and values.tolist() == [[3, 1], [9, 2]]
    assert run.spectra.at(7)["act/a/sigma"].tolist() == [9, 2]
    assert run.environment["torch"] == torch.__version__ and run.environment["cpus"] == os.cpu_count()
    assert abs(run.started - time.time()) < 3600


def test_numbers_round_trip_bit_for_bit(tmp_path):
    """Scalars to float64's last bit, NaN and infinities included; arrays to float32's."""
    scalars = {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": -0.0, "e": 5e-324, "f": 0.1, "g": 2**53}
    arrays = {
        "h": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 0.1]),
        "i": np.array([1e300]),
        "j": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16, requires_grad=True),
        "k": np.zeros((0, 4)),
        "l": 2.0,
    }
    with RunWriter(tmp_path, {}) as writer:
        writer.log_step(0, scalars, arrays)
    run = load_run(tmp_path)
    for key, value in scalars.items():
        assert run.series(key)[1].tobytes() == np.array([value], "<f8").tobytes()
    assert run.spectra["h"][1].tobytes() == arrays["h"].astype("<f4").tobytes()
    assert run.spectra["i"][1].tolist() == [[np.inf]]
    assert run.spectra["j"][1][0, 0] == 1.5 and np.isnan(run.spectra["j"][1][0, 1])
    assert run.spectra["k"][1].shape == (1, 0, 4) and run.spectra["l"][1].tolist() == [2.0]


def test_layout_may_change_between_steps(tmp_path):
    with RunWriter(tmp_path, {}) as writer:
        for step in range(6):
            extra = {"align/fc/max": step / 10} if step % 2 else {}
            sigma = np.full(2 if step < 3 else 4, step, float)
            writer.log_step(step, {"act/fc/rank": step, **extra}, {"act/fc/sigma": sigma})
    run = load_run(tmp_path)
    assert run.steps.tolist() == list(range(6))
    assert run.series("act/fc/rank")[1].tolist() == list(range(6))
    assert run.series("align/fc/max")[0].tolist() == [1, 3, 5]
    steps, sigma = run.spectra["act/fc/sigma"]
    assert steps.tolist() == list(range(6)) and sigma[:, 0].tolist() == list(range(6))
    assert np.isnan(sigma[:3, 2:]).all() and not np.isnan(sigma[3:]).any()
    with sqlite3.connect(tmp_path / DATABASE) as db:
        assert db.execute("SELECT count(*) FROM layouts").fetchone() == (4,)


def test_layers_keep_the_order_of_their_first_appearance(tmp_path):
    layers = ["stem", "layer2", "layer1", "head"]
    with RunWriter(tmp_path, {}) as writer:
        writer.log_step(
            0, {f"act/{layer}/rank": 1 for layer in layers}, {f"act/{layer}/sigma": [1.0] for layer in layers}
        )
        writer.log_step(1, {"act/new/rank": 1, "act/stem/rank": 1})
    run = load_run(tmp_path)
    assert run.keys == [f"act/{layer}/rank" for layer in [*layers, "new"]]
    assert list(run.spectra) == [f"act/{layer}/sigma" for layer in layers] and len(run.spectra) == 4
    assert list(run.metrics["layer"].cat.categories) == [*layers, "new"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(tmp_path, name):
    path = tmp_path / "a?mode=rw#%00 'b"
    with RunWriter(path, {name: name}) as writer:
        writer.log_step(0, {name: 1.0}, {name: [2.0]})
        writer.note(0, name, name)
        writer.set_evaluation({name: [name]})
    run = load_run(path)
    assert run.config == {name: name} and run.evaluation == {name: [name]} and run.keys == [name]
    assert run.series(name)[1].tolist() == [1.0] and run.spectra[name][1].tolist() == [[2.0]]
    assert run.notes[0].text == name.encode("utf-8", "backslashreplace").decode()


def test_metrics_is_a_tidy_frame(tmp_path):
    frame = write(tmp_path / "a", steps=2).metrics
    assert frame.columns.tolist() == ["step", "kind", "layer", "metric", "value"]
    rows = frame.astype(object).values.tolist()
    assert rows == [
        [0, "act", "fc", "rank", 0],
        [0, "train", "", "loss", 1],
        [1, "act", "fc", "rank", 1],
        [1, "train", "", "loss", 0.5],
    ]
    with RunWriter(tmp_path / "b", {}):
        pass
    empty = load_run(tmp_path / "b")
    assert empty.metrics.columns.tolist() == frame.columns.tolist() and len(empty.metrics) == 0
    assert empty.steps.tolist() == [] and empty.keys == [] and len(empty.spectra) == 0


def test_key_grammar():
    assert split_key("act/layer1.0/rank") == ("act", "layer1.0", "rank")
    assert split_key("align/mean_max") == ("align", "", "mean_max")
    assert split_key("act/a/b/rank") == ("act", "a/b", "rank")
    assert split_key("loss") == ("", "", "loss")


# ---- sessions: status, resume, truncate, second writers


def test_status_follows_the_writer(tmp_path):
    writer = RunWriter(tmp_path, {"epochs": 1})
    writer.log_step(0, {"a": 1})
    assert load_run(tmp_path).status == "running"
    writer.close(finished=False)
    assert load_run(tmp_path).status == "interrupted"
    with RunWriter(tmp_path, {"epochs": 2}, resume=True) as writer:
        assert load_run(tmp_path).status == "running"
        writer.log_step(1, {"a": 2})
    run = load_run(tmp_path)
    assert (run.status, run.config, run.steps.tolist()) == ("finished", {"epochs": 2}, [0, 1])
    with pytest.raises(KeyboardInterrupt), RunWriter(tmp_path, {}, resume=True):
        raise KeyboardInterrupt
    assert load_run(tmp_path).status == "interrupted"


def test_truncate_removes_later_steps_and_lets_them_be_written_again(tmp_path):
    write(tmp_path)
    with RunWriter(tmp_path, {}, resume=True) as writer:
        writer.note(1, "a", "stays")
        writer.note(4, "a", "goes")
        writer.truncate(after_step=2)
        assert load_run(tmp_path).steps.tolist() == [0, 1, 2]
        with pytest.raises(InputError, match="more than the last step, 2"):
            writer.log_step(2, {"a": 1})
        writer.log_step(3, {"act/fc/rank": 30}, {"act/fc/sigma": [7.0]})
    run = load_run(tmp_path)
    assert run.series("act/fc/rank")[1].tolist() == [0, 1, 2, 30]
    assert [note.text for note in run.notes] == ["stays"]


def test_a_finished_run_is_one_plain_file(tmp_path):
    """No log is left beside it, so that it opens from read-only media."""
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.db", "writer.lock"]
    immutable = sqlite3.connect(f"file:{tmp_path / DATABASE}?immutable=1", uri=True)
    assert immutable.execute("SELECT count(*) FROM steps").fetchone() == (5,)


def test_a_run_is_not_overwritten(tmp_path):
    write(tmp_path)
    with pytest.raises(InputError, match=r"path: expected a directory that holds no run.*--resume"):
        RunWriter(tmp_path, {})
    assert load_run(tmp_path).status == "finished"


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(InputError, match="path: expected a run to resume"):
        RunWriter(tmp_path / "none", {}, resume=True)
    assert not (tmp_path / "none").exists()
    sqlite3.connect(tmp_path / DATABASE).close()
    (tmp_path / DATABASE).touch()  # as a kill before the tables were made leaves it
    with pytest.raises(InputError, match="path: expected a run to resume"):
        RunWriter(tmp_path, {}, resume=True)
    assert len(write(tmp_path).steps) == 5


def test_a_second_live_writer_is_refused(tmp_path):
    with RunWriter(tmp_path, {}) as writer:
        for resume in (False, True):
            with pytest.raises(InputError, match="a live writer"):
                RunWriter(tmp_path, {}, resume=resume)
        code = f"from fastrank.record import RunWriter; RunWriter({str(tmp_path)!r}, {{}}, resume=True)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode != 0 and "a live writer" in other.stderr
        writer.log_step(0, {"a": 1})
    assert load_run(tmp_path).steps.tolist() == [0]


def test_a_fork_can_neither_write_nor_end_the_run(tmp_path):
    """Data loader workers are forks: they inherit the writer, and die with it open."""
    with RunWriter(tmp_path, {}) as writer:
        writer.log_step(0, {"a": 1})
        child = os.fork()
        if child == 0:
            try:
                writer.log_step(1, {"a": 2})
            except RuntimeError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert load_run(tmp_path).status == "running"
        writer.log_step(1, {"a": 3})
    assert load_run(tmp_path).series("a")[1].tolist() == [1, 3]


# ---- bad input


@pytest.mark.parametrize("step", [1.5, -1, True, "3", None, float("nan"), float("inf"), 2**63])
def test_bad_steps(tmp_path, step):
    with RunWriter(tmp_path, {}) as writer, pytest.raises(InputError, match="step: expected an integer"):
        writer.log_step(step, {"a": 1})


@pytest.mark.parametrize(
    ("scalars", "arrays", "message"),
    [
        ({"a": "1.0"}, {}, r"scalars\['a'\]: expected a number"),
        ({"a": 1, "b": None}, {}, r"scalars\['b'\]: expected a number, got None"),
        ({"a": torch.ones(2)}, {}, r"scalars\['a'\]: expected a number"),
        ({3: 1.0}, {}, "scalars: expected non-empty text as every key"),
        ({"": 1.0}, {}, "scalars: expected non-empty text as every key"),
        ({}, {"a": np.array(["x"])}, r"arrays\['a'\]: expected real numbers"),
        ({}, {"a": torch.ones(2, dtype=torch.complex64)}, r"arrays\['a'\]: expected real numbers"),
        ({}, {4: np.ones(2)}, "arrays: expected non-empty text as every key"),
    ],
)
def test_bad_figures_leave_no_step(tmp_path, scalars, arrays, message):
    with RunWriter(tmp_path, {}) as writer:
        with pytest.raises(InputError, match=message):
            writer.log_step(0, scalars, arrays)
        writer.log_step(0, {"a": 1})
    assert load_run(tmp_path).keys == ["a"]


def test_config_and_evaluation_are_dicts(tmp_path):
    with pytest.raises(InputError, match="config: expected a dict, got list"):
        RunWriter(tmp_path, [])
    with RunWriter(tmp_path, {}) as writer, pytest.raises(InputError, match="evaluation: expected a dict, got float"):
        writer.set_evaluation(1.0)


def test_unwritable_directories(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(InputError, match="path: expected a directory that can be written"):
            RunWriter(path, {})
    (tmp_path / "run" / DATABASE).mkdir(parents=True)
    with pytest.raises(InputError, match="path: expected a directory that can be written"):
        RunWriter(tmp_path / "run", {})


def test_a_live_run_is_three_files_and_a_lock(tmp_path):
    with RunWriter(tmp_path, {}) as writer:
        writer.log_step(0, {"a": 1})
        assert {path.name for path in tmp_path.iterdir()} <= {"run.db", "run.db-wal", "run.db-shm", "writer.lock"}


def test_a_closed_writer_says_so(tmp_path):
    writer = RunWriter(tmp_path, {})
    writer.close()
    writer.close()
    with pytest.raises(RuntimeError, match="is closed"):
        writer.log_step(0, {"a": 1})


def damage(path: Path, how: str) -> None:
    database = path / DATABASE
    if how == "garbage":
        database.write_bytes(random.Random(0).randbytes(8192))
    elif how == "cut":
        database.write_bytes(database.read_bytes()[:5000])
    elif how == "empty":
        database.write_bytes(b"")
    else:
        with sqlite3.connect(database) as db:
            db.execute(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("garbage", "undamaged run"),
        ("cut", "undamaged run"),
        ("empty", "run.db is empty"),
        ("PRAGMA user_version = 99", rf"schema version {SCHEMA_VERSION}, got .* of version 99"),
        ("PRAGMA application_id = 5", "did not write"),
        ("UPDATE steps SET scalars = x'00' WHERE step = 2", "undamaged run.*step 2 has 1 bytes"),
        ("UPDATE layouts SET keys = '[]'", "undamaged run"),
        ("UPDATE sessions SET config = '{'", "undamaged run"),
        ("DELETE FROM layouts", "undamaged run"),
        ("DELETE FROM sessions", "undamaged run"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path, how, message):
    write(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(InputError, match=message):
        load_run(tmp_path)


def test_damaged_arrays_are_named(tmp_path):
    run = write(tmp_path)
    damage(tmp_path, "UPDATE steps SET arrays = x'0000' WHERE step = 2")
    with pytest.raises(InputError, match="undamaged run"):
        run.spectra["act/fc/sigma"]
    with pytest.raises(InputError, match="undamaged run"):
        run.spectra.at(2)
    assert run.spectra.at(1)["act/fc/sigma"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "got"), [("none", "missing"), ("file", "a file"), (".", "a directory without run.db")]
)
def test_what_is_no_run(tmp_path, path, got):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"path: expected a run directory, got .*which is {got}"):
        load_run(tmp_path / path)


def test_missing_keys_are_key_errors(tmp_path):
    run = write(tmp_path)
    for read in (run.series, run.spectra.__getitem__, run.spectra.at):
        with pytest.raises(KeyError):
            read(99)


# ---- what happens to the process


def write_forever(path, resume, say):
    """Steps one after another; `say(step)` after each. Never returns."""
    with RunWriter(path, {"a": 1}, resume=resume) as writer:
        for step in count(writer._last + 1):
            scalars = {f"act/{i}/rank": step + i for i in range(300)}
            writer.log_step(step, scalars, {f"act/{i}/sigma": np.full(15, step) for i in range(60)})
            say(step)


class Writing:
    """A process (a fork: importing torch anew takes seconds) that writes until it is killed."""

    def __init__(self, path, resume):
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                write_forever(path, resume, lambda step: os.write(write, b"%d\n" % step))
            finally:
                os._exit(1)
        os.close(write)
        self.said = os.fdopen(read)
        self.first = int(self.said.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.said.closed:
            self.kill()

    def alive(self):
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def kill(self):
        """Ends it at once and returns every step of which it said that it was written."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        with self.said:
            return [self.first, *(int(line) for line in self.said)]


def test_kill_at_random_moments_loses_no_finished_step(tmp_path):
    rng, run = random.Random(0), None
    for _ in range(15):
        with Writing(tmp_path, resume=run is not None) as writing:
            assert writing.first == (len(run.steps) if run else 0)
            time.sleep(rng.uniform(0, 0.2))
            said = writing.kill()
        run = load_run(tmp_path)
        assert run.status == "interrupted"
        # Killed between COMMIT and saying so, one step more may be there.
        assert run.steps.tolist() in (list(range(said[-1] + 1)), list(range(said[-1] + 2)))
        assert np.array_equal(run.series("act/299/rank")[1], run.steps + 299)
        assert np.array_equal(run.spectra["act/59/sigma"][1][:, 14], run.steps)
    with sqlite3.connect(tmp_path / DATABASE) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_reading_while_another_process_writes(tmp_path):
    seen = 0
    with Writing(tmp_path, resume=False) as writing:
        while seen < 200:
            run = load_run(tmp_path)
            assert run.status == "running"
            assert run.steps.tolist() == list(range(len(run.steps))) and len(run.steps) >= seen
            # The arrays are read later than the scalars, and still belong to the steps of this Run.
            assert np.array_equal(run.spectra["act/3/sigma"][0], run.steps)
            seen = len(run.steps)
        assert writing.alive()
        assert writing.kill()[-1] >= seen - 1


def test_a_full_disk_is_an_os_error_and_keeps_the_finished_steps(tmp_path):
    said_read, said_write = os.pipe()
    error_read, error_write = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        try:
            write_forever(tmp_path, False, lambda step: os.write(said_write, b"%d\n" % step))
        except OSError as error:
            os.write(error_write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(said_write), os.close(error_write)
    with os.fdopen(said_read) as said, os.fdopen(error_read) as error:
        said, error = [int(line) for line in said], error.read()
    assert "cannot be written" in error and "finished steps are kept" in error and str(tmp_path) in error
    run = load_run(tmp_path)
    assert len(said) > 3 and run.steps.tolist() == said
    assert run.status == "interrupted"


def test_a_failed_step_leaves_the_writer_usable(tmp_path):
    with RunWriter(tmp_path, {}) as writer:
        writer.log_step(0, {"a": 1})
        (pages,) = writer._db.execute("PRAGMA page_count").fetchone()
        writer._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(OSError, match="full") as caught:
            writer.log_step(1, {"b": 1}, {"c": np.ones(100_000)})
        assert str(tmp_path) in str(caught.value)
        writer._db.execute(f"PRAGMA max_page_count = {pages + 1000}")
        writer.log_step(1, {"b": 2}, {"c": np.ones(100_000)})
    run = load_run(tmp_path)
    assert run.steps.tolist() == [0, 1] and run.series("b")[1].tolist() == [2]


def test_a_step_is_written_whole_or_not_at_all(tmp_path):
    """The row is refused after its new layout was stored: neither may stay."""
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON steps BEGIN SELECT RAISE(ABORT, 'refused'); END"
    with RunWriter(tmp_path, {}) as writer:
        writer._db.execute(refuse)
        with pytest.raises(OSError, match="refused"):
            writer.log_step(0, {"a": 1})
        assert writer._db.execute("SELECT count(*) FROM layouts").fetchone() == (0,)
        writer._db.execute("DROP TRIGGER refuse")
        writer.log_step(0, {"a": 2})
    assert load_run(tmp_path).series("a")[1].tolist() == [2]


def test_git_state(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert write(tmp_path / "0").git is None
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    clean = write(tmp_path / "1").git
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert write(tmp_path / "2").git == {"commit": clean["commit"], "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert write(tmp_path / "3").git is None


def test_a_run_is_data_only(tmp_path):
    """Everything that is not numbers is JSON: nothing in the file needs, or gets, unpickling."""
    write(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as db:
        for table, columns in {"sessions": "config, environment, git", "layouts": "keys"}.items():
            for row in db.execute(f"SELECT {columns} FROM {table}"):
                for text in row:
                    json.loads(text)
        assert {kind for (kind,) in db.execute("SELECT DISTINCT typeof(scalars) FROM steps")} == {"blob"}


def test_a_run_that_is_removed_while_it_is_written_is_said_and_training_goes_on(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    with fastrank.watch(model, metrics="light", log=tmp_path / "run") as w:
        for step in range(3):
            model(torch.randn(5, 4))
            if step == 1:
                shutil.rmtree(tmp_path / "run")
                with pytest.warns(RuntimeWarning, match="the run was removed while it was written"):
                    w.step()
            else:
                w.step()
