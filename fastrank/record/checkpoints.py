"""Moves what a run's log has gathered into its database, beside the training instead of in a step."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

#: Bytes written after which it is done. SQLite would do as much in the commit that reaches 1,000 pages, and wait for
#: the disk there.
BYTES = 4 << 20
#: Where steps end sooner than the disk does, no moment comes in which all of the log is in the database and it can
#: begin anew. So it is looked at each time that so many bytes were written: has it grown to them, a commit waits.
MOST_BYTES = 64 << 20


class Checkpoints:
    """Checkpoints the WAL of `database` in a thread, by a connection of its own.

    No step depends on it: a commit is in the log, which survives a kill, before it is heard of here. What goes wrong is
    left to the next time, and to the writer, whose own commits meet the same disk.
    """

    def __init__(self, database: Path) -> None:
        self._database, self._log = database, database.with_name(f"{database.name}-wal")
        self._written = self._unchecked = 0
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def wrote(self, size: int, db: sqlite3.Connection) -> None:
        """After a commit of about `size` bytes by `db`."""
        self._written += size
        self._unchecked += size
        if self._unchecked > MOST_BYTES:
            self._unchecked = 0
            self._cut(db)
        if self._written > BYTES and not (self._thread is not None and self._thread.is_alive()):
            self._written = 0
            self._thread = threading.Thread(target=self._work, name="fastrank checkpoint", daemon=True)
            with suppress(RuntimeError):  # where no thread can be started, the log grows to MOST_BYTES
                self._thread.start()

    def close(self) -> None:
        """Waits for one that is under way."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _cut(self, db: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error, OSError):
            if self._log.stat().st_size <= MOST_BYTES:
                return
            (patience,) = db.execute("PRAGMA busy_timeout").fetchone()
            db.execute("PRAGMA busy_timeout = 0")  # for no reader
            try:
                with self._turn:
                    checkpoint(db, "TRUNCATE")
            finally:
                db.execute(f"PRAGMA busy_timeout = {patience}")

    def _work(self) -> None:
        with suppress(sqlite3.Error):
            db = sqlite3.connect(self._database, timeout=0, isolation_level=None)
            try:
                with self._turn:
                    checkpoint(db, "PASSIVE")
            finally:
                db.close()


def checkpoint(db: sqlite3.Connection, mode: str) -> None:
    db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
