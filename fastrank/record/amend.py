"""`add_evaluation`: dataset-level figures found later, beside those that a run has."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from fastrank.errors import InputError
from fastrank.record.reader import load_run
from fastrank.record.schema import DATABASE, jsonable


def add_evaluation(path: str | os.PathLike, evaluation: Mapping[str, Any]) -> None:
    """Sets the top-level entries of `evaluation` in the run `path`; its other figures, steps and sessions stay.

    Raises InputError where `path` is no run, is being written by a live process, or cannot be written.
    """
    run = load_run(path)
    if run.status == "running":
        raise InputError("path", "a run that nothing else writes", f"{path}, which a live writer has open", "wait")
    text = json.dumps(jsonable({**run.evaluation, **evaluation}))
    try:
        with closing(sqlite3.connect(Path(path) / DATABASE, timeout=30)) as db, db:
            db.execute("INSERT OR REPLACE INTO evaluation VALUES (0, ?)", [text])
    except sqlite3.Error as error:
        raise InputError("path", "a run that can be written", f"{path} ({error})") from None
