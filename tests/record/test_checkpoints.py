"""A run's log is moved into its database beside the steps, and does not grow without end."""

import sqlite3
import threading
import time

import numpy as np
import pytest

from fastrank.record import checkpoints, load_run
from fastrank.record.writer import RunWriter

MIB = 1 << 20
BLOCK = {"weight/a/sigma": np.arange(MIB // 4, dtype=np.float32)}


def soon(ready) -> bool:
    end = time.monotonic() + 30
    while not ready() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(ready())


@pytest.fixture
def calls(monkeypatch):
    """The threads that checkpointed, in order."""
    found, real = [], checkpoints.checkpoint

    def noted(db, mode):
        real(db, mode)
        found.append(threading.current_thread())

    monkeypatch.setattr(checkpoints, "checkpoint", noted)
    return found


def test_steps_leave_the_log_to_another_thread(tmp_path, calls):
    with RunWriter(tmp_path, {}) as writer:
        assert writer._db.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
        for step in range(5):
            writer.log_step(step, {}, BLOCK)
        assert soon(lambda: calls) and threading.current_thread() not in calls
        assert (tmp_path / "run.db").stat().st_size > 4 * MIB  # the steps are in the database itself
    assert not any(thread.is_alive() for thread in calls)
    run = load_run(tmp_path)
    assert run.steps.tolist() == list(range(5)) and run.status == "finished"


def test_the_log_does_not_grow_without_end(tmp_path):
    with RunWriter(tmp_path, {}) as writer:
        sizes = []
        for step in range(160):  # faster than any disk
            writer.log_step(step, {}, BLOCK)
            sizes.append((tmp_path / "run.db-wal").stat().st_size)
        assert max(sizes) < 2 * checkpoints.MOST_BYTES + 8 * MIB
        assert writer._db.execute("PRAGMA busy_timeout").fetchone() == (30_000,)
    assert len(load_run(tmp_path).steps) == 160


def test_nothing_waits_where_the_log_stays_short(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(checkpoints, "MOST_BYTES", 8 * MIB)
    with RunWriter(tmp_path, {}) as writer:
        for step in range(20):
            writer.log_step(step, {}, BLOCK)
            if step % 4 == 3:
                assert soon(lambda done=step // 4: len(calls) > done)
        assert threading.current_thread() not in calls


def test_a_reader_does_not_hold_a_step_up(tmp_path, monkeypatch):
    waits, real = [], checkpoints.checkpoint

    def noted(db, mode):
        waits.append((mode, *db.execute("PRAGMA busy_timeout").fetchone()))
        real(db, mode)

    monkeypatch.setattr(checkpoints, "checkpoint", noted)
    monkeypatch.setattr(checkpoints, "MOST_BYTES", 8 * MIB)
    with RunWriter(tmp_path, {}) as writer:
        writer.log_step(0, {}, BLOCK)
        reader = sqlite3.connect(tmp_path / "run.db", isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM steps").fetchone() == (1,)
        for step in range(1, 20):
            writer.log_step(step, {}, BLOCK)
        assert ("TRUNCATE", 0) in waits and {wait for _, wait in waits} == {0}  # ms
        assert reader.execute("SELECT count(*) FROM steps").fetchone() == (1,)
        reader.close()
    assert load_run(tmp_path).steps.tolist() == list(range(20))


def test_a_checkpoint_that_fails_is_left_to_the_next(tmp_path, monkeypatch):
    tries = []

    def broken(db, mode):
        tries.append(mode)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(checkpoints, "checkpoint", broken)
    with RunWriter(tmp_path, {}) as writer:
        for count in (1, 2):
            for step in range(5 * count - 5, 5 * count):
                writer.log_step(step, {}, BLOCK)
            assert soon(lambda count=count: len(tries) >= count)
    assert load_run(tmp_path).steps.tolist() == list(range(10))
