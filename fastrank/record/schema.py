"""What a run directory holds: `run.db`, its tables, and how the figures of one step are packed into one row.

A row of `steps` has two blobs, little-endian and without padding: the scalars as float64, then the arrays as float32,
both in the order of the row's layout. A layout (names and shapes) is stored once and shared by all steps that have it,
so a step with thousands of figures costs its bytes and nothing more. Everything else is JSON; nothing is executed or
unpickled on reading.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

DATABASE = "run.db"
LOCK = "writer.lock"
APPLICATION_ID = 0x66726E6B  # "frnk", in the SQLite header
SCHEMA_VERSION = 1

TABLES = (
    # One session per start and per resume; the last one describes the run.
    "CREATE TABLE sessions (id INTEGER PRIMARY KEY, started REAL NOT NULL, finished REAL, config TEXT NOT NULL,"
    " environment TEXT NOT NULL, git TEXT NOT NULL)",
    "CREATE TABLE layouts (id INTEGER PRIMARY KEY, keys TEXT NOT NULL UNIQUE)",
    # `scalars` stands before `arrays`, so that reading scalars never touches the pages of the arrays.
    "CREATE TABLE steps (step INTEGER PRIMARY KEY, layout INTEGER NOT NULL REFERENCES layouts,"
    " scalars BLOB NOT NULL, arrays BLOB NOT NULL)",
    "CREATE TABLE notes (step INTEGER NOT NULL, key TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (step, key, text))",
    "CREATE TABLE evaluation (id INTEGER PRIMARY KEY CHECK (id = 0), json TEXT NOT NULL)",
)


@dataclass(frozen=True)
class Layout:
    """The names of one step's figures, and the shapes of its arrays, in the order of their bytes."""

    scalars: tuple[str, ...]
    arrays: tuple[tuple[str, tuple[int, ...]], ...]

    def to_json(self) -> str:
        return json.dumps({"scalars": self.scalars, "arrays": self.arrays})

    @classmethod
    def from_json(cls, text: str) -> Layout:
        keys = json.loads(text)
        arrays = tuple((str(key), tuple(int(n) for n in shape)) for key, shape in keys["arrays"])
        return cls(tuple(str(key) for key in keys["scalars"]), arrays)

    @cached_property
    def columns(self) -> dict[str, int]:
        """key -> its place among the scalars"""
        return {key: index for index, key in enumerate(self.scalars)}

    @cached_property
    def places(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """key -> (offset in elements, shape) of an array in the `arrays` blob"""
        places, offset = {}, 0
        for key, shape in self.arrays:
            places[key] = (offset, shape)
            offset += prod(shape)
        return places

    @cached_property
    def array_elements(self) -> int:
        return sum(prod(shape) for _, shape in self.arrays)


def split_key(key: str) -> tuple[str, str, str]:
    """(kind, layer, metric): `act/fc/rank` -> act, fc, rank; `logits/norm` -> logits, "", norm; `x` -> "", "", x."""
    kind, slash, rest = key.partition("/")
    if not slash:
        return "", "", key
    layer, _, metric = rest.rpartition("/")
    return kind, layer, metric


def jsonable(value: Any) -> Any:
    """`value` in JSON's types: tensors and arrays become lists; paths, dtypes and other objects become text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return jsonable(value.tolist())
    return str(value)


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that can neither change nor create `path`; raises sqlite3.OperationalError where there is none."""
    return sqlite3.connect(path.absolute().as_uri() + "?mode=ro", uri=True, timeout=30, isolation_level=None)
