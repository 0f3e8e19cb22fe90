"""`RunWriter`: appends the figures of one step in one transaction, so that a kill loses no finished step."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastrank.errors import InputError
from fastrank.record.checkpoints import Checkpoints
from fastrank.record.environment import environment, git_state
from fastrank.record.schema import APPLICATION_ID, DATABASE, LOCK, SCHEMA_VERSION, TABLES, Layout, jsonable

#: Bytes that a commit takes in the log beside its rows: a page or two that point to them.
PAGES = 8192


class RunWriter:
    """Writes one run directory; a context manager, one writer per run at a time.

    path: the run's directory, created with its parents. config: whatever the run should be reproduced from; values
    that JSON does not know are stored as text. resume: continue the run that `path` holds (`truncate` first where
    steps after the checkpoint exist).

    The database is in WAL mode with synchronous=NORMAL: a killed process loses nothing that `log_step` returned from,
    a power failure may lose the last steps but cannot corrupt the others. No step waits for the disk (`Checkpoints`).
    The directory must lie on a file system with working locks; readers on this machine see every finished step at once.

    Raises InputError where `path` cannot be written, holds a run already (resume=False), holds none (resume=True), or
    is being written by another live writer; OSError where a later write fails, the finished steps being kept.
    """

    def __init__(self, path: str | os.PathLike, config: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        if not isinstance(config, Mapping):
            raise InputError("config", "a dict", type(config).__name__)
        if resume and not (self.path / DATABASE).is_file():
            raise InputError("path", "a run to resume", f"{self.path}, which holds none", "start it without --resume")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error.strerror) from None
        self._pid = os.getpid()
        self._db = self._checkpoints = None
        self._lock = self._take_lock()
        try:
            self._db = sqlite3.connect(self.path / DATABASE, timeout=30, isolation_level=None)
            self._open(resume)
            layouts = self._db.execute("SELECT id, keys FROM layouts")
            self._layouts = {Layout.from_json(keys): id for id, keys in layouts}
            self._last = self._last_step()
            self._start_session(config)
            if self._wal:
                self._checkpoints = Checkpoints(self.path / DATABASE)
        except BaseException as error:
            if self._db is not None:
                self._db.close()
            self._lock.close()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise self._unwritable(getattr(error, "strerror", None) or error) from None
            raise

    def log_step(self, step: int, scalars: Mapping[str, float], arrays: Mapping[str, Any] | None = None) -> None:
        """Stores one step; when this returns, the step survives a kill.

        step: larger than every step so far. scalars: key -> number, stored as float64. arrays: key -> NumPy array or
        tensor of any shape, stored as float32 (a float64 beyond its range becomes inf or 0). Keys follow
        `<kind>/<layer>/<metric>` or `<kind>/<metric>`; the set may differ from step to step.
        """
        step = self._check_step(step)
        if step <= self._last:
            raise InputError("step", f"more than the last step, {self._last}", step)
        # A database without a name takes all that is written, and loses it.
        if not (self.path / DATABASE).exists():
            raise OSError(errno.ENOENT, "the run was removed while it was written", str(self.path))
        values = _scalars(scalars)
        blocks = {key: _float32(key, value) for key, value in (arrays or {}).items()}
        layout = Layout(tuple(scalars), tuple((key, block.shape) for key, block in blocks.items()))
        packed = b"".join(block.tobytes() for block in blocks.values())
        with self._transaction(values.nbytes + len(packed)):
            id = self._layouts.get(layout)
            if id is None:
                id = self._db.execute("INSERT INTO layouts (keys) VALUES (?)", [layout.to_json()]).lastrowid
            self._db.execute("INSERT INTO steps VALUES (?, ?, ?, ?)", [step, id, values.tobytes(), packed])
        self._layouts[layout] = id
        self._last = step

    def note(self, step: int, key: str, text: str) -> None:
        """Keeps a remark on a figure, such as why it is NaN; the same remark twice is one."""
        row = [self._check_step(step), _text(key), _text(text)]
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO notes VALUES (?, ?, ?)", row)

    def truncate(self, after_step: int) -> None:
        """Removes every step and note later than `after_step`, as a resume from a checkpoint of that step must."""
        with self._transaction():
            self._db.execute("DELETE FROM steps WHERE step > ?", [after_step])
            self._db.execute("DELETE FROM notes WHERE step > ?", [after_step])
        self._last = self._last_step()

    def set_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Stores (or replaces) the run's dataset-level figures: nested dicts and lists of numbers and text."""
        if not isinstance(evaluation, Mapping):
            raise InputError("evaluation", "a dict", type(evaluation).__name__)
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO evaluation VALUES (0, ?)", [json.dumps(jsonable(evaluation))])

    def close(self, finished: bool = True) -> None:
        """Ends the session; finished=False marks the run as interrupted. A second call does nothing."""
        if self._db is None:
            return
        try:
            if finished:
                with self._transaction():
                    self._db.execute(
                        "UPDATE sessions SET finished = ? WHERE id = (SELECT max(id) FROM sessions)", [time.time()]
                    )
            self._leave_wal()
        finally:
            self._db.close()
            self._lock.close()
            self._db = None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close(finished=kind is None)

    def _open(self, resume: bool) -> None:
        """Creates the tables of a new run, or checks those of the run to resume."""
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if tables and application != APPLICATION_ID:
            raise InputError("path", "a run directory", f"{self.path / DATABASE}, which fastrank did not write")
        if tables and not resume:
            cure = "pass --resume (resume=True, to `watch` resume=state) to continue it, or choose another path"
            raise InputError("path", "a directory that holds no run", self.path, cure)
        if resume and not tables:  # killed before its tables were made
            raise InputError("path", "a run to resume", f"{self.path}, which holds none", "start it without --resume")
        if tables and version != SCHEMA_VERSION:
            raise InputError("path", f"a run of schema version {SCHEMA_VERSION}", f"{self.path} of version {version}")
        # Refused on some network file systems, where the rollback journal stays; it is as safe, only slower.
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        self._wal = mode == "wal"
        self._db.execute("PRAGMA wal_autocheckpoint = 0")  # `Checkpoints` does it
        self._db.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            with self._transaction():
                for statement in TABLES:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _start_session(self, config: Mapping[str, Any]) -> None:
        facts = [json.dumps(jsonable(item)) for item in (config, environment(), git_state(Path.cwd()))]
        with self._transaction():
            self._db.execute(
                "INSERT INTO sessions (started, config, environment, git) VALUES (?, ?, ?, ?)", [time.time(), *facts]
            )

    def _take_lock(self) -> sqlite3.Connection:
        """Holds an exclusive SQLite lock on an empty file: the system drops it with the process, however it ends."""
        lock = sqlite3.connect(self.path / LOCK, timeout=0, isolation_level=None)
        try:
            lock.execute("PRAGMA journal_mode = MEMORY")  # nothing is ever written: no journal beside the empty file
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            lock.close()
            if "locked" in str(error):
                got = f"{self.path}, which a live writer has open"
                raise InputError("path", "a run that nothing else writes", got, "wait for it or end it") from None
            raise self._unwritable(error) from None
        return lock

    def _leave_wal(self) -> None:
        """Folds the log into `run.db`, so that a finished run is one file, readable from read-only media too."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        self._db.execute("PRAGMA busy_timeout = 200")
        with suppress(sqlite3.Error):  # a reader has it open: the log stays beside the file, and nothing is lost
            self._db.execute("PRAGMA journal_mode = DELETE")

    @contextmanager
    def _transaction(self, size: int = 0) -> Iterator[None]:
        """size: bytes that its rows hold, where these are many."""
        if self._db is None:
            raise RuntimeError(f"the writer of {self.path} is closed")
        if os.getpid() != self._pid:
            raise RuntimeError(f"the writer of {self.path} belongs to process {self._pid}, not to its fork")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
            if self._checkpoints is not None:
                self._checkpoints.wrote(size + PAGES, self._db)
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise self._os_error(error) from None
            raise

    def _last_step(self) -> int:
        (last,) = self._db.execute("SELECT max(step) FROM steps").fetchone()
        return -1 if last is None else last

    def _check_step(self, step: int) -> int:
        try:
            if not isinstance(step, bool) and int(step) == step and 0 <= step < 2**63:
                return int(step)
        except (TypeError, ValueError, OverflowError):
            pass
        raise InputError("step", "an integer >= 0", repr(step))

    def _unwritable(self, reason: object) -> InputError:
        return InputError("path", "a directory that can be written", f"{self.path} ({reason})", "choose another path")

    def _os_error(self, error: sqlite3.Error) -> OSError:
        text = str(error)
        code = errno.ENOSPC if "full" in text else errno.EROFS if "readonly" in text else errno.EIO
        return OSError(code, f"the run cannot be written ({text}); its finished steps are kept", str(self.path))


def _scalars(scalars: Mapping[str, float]) -> np.ndarray:
    """[len(scalars)] little-endian float64"""
    for key, value in scalars.items():
        if not isinstance(key, str) or not key:
            raise InputError("scalars", "non-empty text as every key", repr(key))
        if isinstance(value, str):
            raise InputError(f"scalars[{key!r}]", "a number", repr(value))
    try:
        return np.fromiter(map(float, scalars.values()), "<f8", len(scalars))
    except (TypeError, ValueError, RuntimeError):
        key, value = next((key, value) for key, value in scalars.items() if not _is_number(value))
        raise InputError(f"scalars[{key!r}]", "a number", repr(value)) from None


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _float32(key: str, value: Any) -> np.ndarray:
    """A tensor or array, on any device and of any real dtype, as little-endian float32 of the same shape."""
    if not isinstance(key, str) or not key:
        raise InputError("arrays", "non-empty text as every key", repr(key))
    if isinstance(value, torch.Tensor) and not value.is_complex():
        value = value.detach().to("cpu", torch.float32).numpy()  # NumPy has no bfloat16
    value = np.asarray(value)
    if value.dtype.kind not in "biuf":
        raise InputError(f"arrays[{key!r}]", "real numbers", f"dtype {value.dtype}")
    with np.errstate(over="ignore"):
        return value.astype("<f4")


def _text(value: str) -> str:
    """Text that SQLite can store: a lone surrogate becomes its escape."""
    return str(value).encode("utf-8", "backslashreplace").decode()
