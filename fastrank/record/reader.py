"""`load_run`: everything a run directory holds, read-only, while it is written, after it ended or after a kill."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.record.schema import APPLICATION_ID, DATABASE, LOCK, SCHEMA_VERSION, Layout, read_only, split_key


class Note(NamedTuple):
    """A remark on one figure at one step."""

    step: int
    key: str
    text: str


class Segment(NamedTuple):
    """The steps that share one layout: `steps` [n] int64 ascending, `values` [n, number of scalars] float64."""

    layout: Layout
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, repr=False)
class Run:
    """One run as it was when it was loaded; load it again to see later steps.

    status: "running" (a live process writes it), "finished", or "interrupted" (killed, failed or stopped). config,
    environment, git: of the last session, which a resume starts. started: seconds since the epoch, of the first one.
    steps: [n] int64, every recorded step. spectra: the arrays. evaluation: the dataset-level figures, {} before them.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    git: dict[str, Any] | None
    status: str
    started: float
    steps: np.ndarray
    spectra: Spectra
    notes: list[Note]
    evaluation: dict[str, Any]
    segments: list[Segment]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def keys(self) -> list[str]:
        """The keys of all scalars, in order of first appearance (for layers: the network's order)."""
        return list(dict.fromkeys(key for segment in self.segments for key in segment.layout.scalars))

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps [n] int64, values [n] float64) of one scalar, at the steps at which it was recorded."""
        parts = [(s.steps, s.values[:, s.layout.columns[key]]) for s in self.segments if key in s.layout.columns]
        if not parts:
            raise KeyError(key)
        return _by_step(parts)

    @property
    def overhead(self) -> float | None:
        """What tracking adds to the training time, as a share; None without tracking. `setup_seconds` come on top.

        Steps that were not measured are taken to last as long as the others without tracking.
        """
        if not {"cost/track_ms", "cost/step_ms"} <= set(self.keys):
            return None
        (steps, track), (all_steps, whole) = self.series("cost/track_ms"), self.series("cost/step_ms")
        whole = whole[np.searchsorted(all_steps, steps)]
        known = np.isfinite(track) & np.isfinite(whole)
        rest = float((whole - track)[known].sum())
        measured = known.sum() / (1 + steps.max() - self._setups) if len(steps) else 0.0
        return float(track[known].sum()) / rest * float(measured) if rest > 0 else None

    @property
    def setup_seconds(self) -> float | None:
        """What the first measured steps took, one of each session: every spectrum was computed anew; None without."""
        return float(self.series("cost/setup_ms")[1].sum()) / 1e3 if self._setups else None

    @property
    def _setups(self) -> int:
        return len(self.series("cost/setup_ms")[0]) if "cost/setup_ms" in self.keys else 0

    @property
    def metrics(self):
        """A tidy pandas frame, one row per scalar and step: step, kind, layer, metric (categories), value."""
        pandas = require("pandas", "a frame of the metrics")
        long_steps = [np.repeat(s.steps, s.values.shape[1]) for s in self.segments] or [np.empty(0, np.int64)]
        order = np.argsort(np.concatenate(long_steps), kind="stable")
        frame = {"step": np.concatenate(long_steps)[order]}
        for field, column in enumerate(("kind", "layer", "metric")):
            names = [[split_key(key)[field] for key in s.layout.scalars] for s in self.segments]
            code = {name: code for code, name in enumerate(dict.fromkeys(chain.from_iterable(names)))}
            codes = [
                np.tile(np.array([code[name] for name in block], np.int32), len(s.steps))
                for block, s in zip(names, self.segments, strict=True)
            ] or [np.empty(0, np.int32)]
            frame[column] = pandas.Categorical.from_codes(np.concatenate(codes)[order], list(code))
        values = [s.values.reshape(-1) for s in self.segments] or [np.empty(0)]
        return pandas.DataFrame({**frame, "value": np.concatenate(values)[order]})

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status}, {len(self.steps)} steps)"


class Spectra(Mapping):
    """key -> (steps [n] int64, values [n, ...] float32), read from the file when asked for.

    Where the shape of a key changed between steps, the shorter arrays are padded with NaN.
    """

    def __init__(self, path: Path, layouts: dict[int, Layout], steps: dict[int, np.ndarray]) -> None:
        self._path, self._layouts, self._steps = path, layouts, steps
        self._layout_of = {int(step): id for id, block in steps.items() for step in block}

    def __getitem__(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        holders = [id for id, layout in self._layouts.items() if key in layout.places]
        if not holders:
            raise KeyError(key)
        shapes = [self._layouts[id].places[key][1] for id in holders]
        if len({len(shape) for shape in shapes}) > 1:
            raise InputError("key", "an array with one number of dimensions", f"{key!r} with shapes {shapes}")
        largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        with _reading(self._path.parent), closing(read_only(self._path)) as db:
            return _by_step([self._read(db, id, key, largest) for id in holders])

    def _read(self, db: sqlite3.Connection, id: int, key: str, largest: tuple[int, ...]) -> tuple:
        offset, shape = self._layouts[id].places[key]
        count, last = prod(shape), int(self._steps[id][-1])
        query = "SELECT step, substr(arrays, ?, ?) FROM steps WHERE layout = ? AND step <= ? ORDER BY step"
        rows = db.execute(query, [4 * offset + 1, 4 * count, id, last]).fetchall()
        values = np.frombuffer(b"".join(blob for _, blob in rows), "<f4").reshape(len(rows), *shape)
        if shape != largest:
            values = np.pad(
                values, [(0, 0), *((0, big - n) for n, big in zip(shape, largest, strict=True))], constant_values=np.nan
            )
        return np.array([step for step, _ in rows], np.int64), values

    def steps(self, key: str) -> np.ndarray:
        """[n] int64, the steps that have this array; reads nothing."""
        blocks = [self._steps[id] for id, layout in self._layouts.items() if key in layout.places]
        return np.sort(np.concatenate(blocks)) if blocks else np.empty(0, np.int64)

    def at(self, step: int) -> dict[str, np.ndarray]:
        """All arrays of one step, from one read; KeyError where it was not recorded, InputError where it is gone."""
        layout = self._layouts[self._layout_of[int(step)]]
        with _reading(self._path.parent), closing(read_only(self._path)) as db:
            row = db.execute("SELECT arrays FROM steps WHERE step = ?", [int(step)]).fetchone()
            flat = np.frombuffer(row[0], "<f4", layout.array_elements)
        return {key: flat[start : start + prod(shape)].reshape(shape) for key, (start, shape) in layout.places.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for layout in self._layouts.values() for key in layout.places))

    def __len__(self) -> int:
        return len(list(iter(self)))


def load_run(path: str | os.PathLike) -> Run:
    """Reads the run directory `path`; changes nothing in it and executes nothing from it.

    Raises InputError where `path` is no run, is damaged, or was written by another schema version.
    """
    path = Path(path)
    database = path / DATABASE
    if not database.is_file():
        what = "a directory without run.db" if path.is_dir() else "a file" if path.exists() else "missing"
        runs = sorted(run.parent.name for run in path.glob(f"*/{DATABASE}"))
        cure = f"it holds runs: {path}/{runs[0]}" + ", ..." * (len(runs) > 1) if runs else ""
        raise InputError("path", "a run directory", f"{path}, which is {what}", cure)
    live = _has_writer(path)  # asked first: a run that ends while it is read is then finished, not interrupted
    with _reading(path), closing(read_only(database)) as db:
        _check_header(db, path)
        db.execute("BEGIN")  # one snapshot for all that follows
        sessions = db.execute("SELECT started, finished, config, environment, git FROM sessions ORDER BY id").fetchall()
        evaluation = db.execute("SELECT json FROM evaluation").fetchone()
        notes = [Note(*row) for row in db.execute("SELECT step, key, text FROM notes ORDER BY step, rowid")]
        texts = dict(db.execute("SELECT id, keys FROM layouts"))
        rows: dict[int, list[tuple[int, bytes]]] = {}  # in order of first appearance
        for step, layout, scalars in db.execute("SELECT step, layout, scalars FROM steps ORDER BY step"):
            rows.setdefault(layout, []).append((step, scalars))
        layouts = {id: Layout.from_json(texts[id]) for id in rows}
        segments = {id: _segment(layouts[id], block) for id, block in rows.items()}
        config, environment, git = (json.loads(text) for text in sessions[-1][2:])
    finished = sessions[-1][1] is not None
    steps = {id: segment.steps for id, segment in segments.items()}
    return Run(
        path=path.resolve(),
        config=config,
        environment=environment,
        git=git,
        status="finished" if finished else "running" if live else "interrupted",
        started=sessions[0][0],
        steps=np.sort(np.concatenate(list(steps.values()) or [np.empty(0, np.int64)])),
        spectra=Spectra(database, layouts, steps),
        notes=notes,
        evaluation=json.loads(evaluation[0]) if evaluation else {},
        segments=list(segments.values()),
    )


def _check_header(db: sqlite3.Connection, path: Path) -> None:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if not tables:
        raise InputError("path", "a run directory", f"{path}, whose run ended before it began (run.db is empty)")
    if application != APPLICATION_ID:
        raise InputError("path", "a run directory", f"{path}, whose run.db fastrank did not write")
    if version != SCHEMA_VERSION:
        cure = f"read it with the fastrank that wrote it, or with a newer one than this, which reads {SCHEMA_VERSION}"
        raise InputError("path", f"a run of schema version {SCHEMA_VERSION}", f"{path} of version {version}", cure)


def _segment(layout: Layout, rows: list[tuple[int, bytes]]) -> Segment:
    width = 8 * len(layout.scalars)
    for step, blob in rows:
        if len(blob) != width:
            raise ValueError(f"step {step} has {len(blob)} bytes of scalars, its layout has {width}")
    values = np.frombuffer(b"".join(blob for _, blob in rows), "<f8").reshape(len(rows), len(layout.scalars))
    return Segment(layout, np.array([step for step, _ in rows], np.int64), values)


def _by_step(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of (steps [n], values [n, ...]) as one, in the order of the steps; equal steps keep their order."""
    if len(parts) == 1:
        return parts[0]
    steps = np.concatenate([steps for steps, _ in parts])
    order = np.argsort(steps, kind="stable")
    return steps[order], np.concatenate([values for _, values in parts])[order]


def _has_writer(path: Path) -> bool:
    """Whether a live process holds the run's lock."""
    try:
        with closing(read_only(path / LOCK)) as db:
            db.execute("PRAGMA busy_timeout = 0")
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    except sqlite3.DatabaseError:
        return False
    return False


@contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Turns whatever a damaged file raises into one InputError that names the run."""
    try:
        yield
    except InputError:
        raise
    except sqlite3.OperationalError as error:
        cure = "copy the run to a directory that you may write, and read it there" if "open" in str(error) else ""
        raise InputError("path", "a readable run", f"{directory} ({error})", cure) from None
    except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
        raise InputError("path", "an undamaged run", f"{directory} ({type(error).__name__}: {error})") from None
