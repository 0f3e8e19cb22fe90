"""`CSV` and `Parquet`: the tables of `fastrank export`, written while the run goes on."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.record.export import ROWS_AT_ONCE, replacing, write_parquet
from fastrank.record.schema import split_key

METRICS = ("step", "kind", "layer", "metric", "value")
SPECTRA = ("step", "key", "index", "value")
NOTES = ("step", "key", "text")


class CSV:
    """A sink that appends to metrics.csv, spectra.csv and notes.csv in a directory, with the columns of `export_run`.

    Each step is one write to each file: a killed process loses no step that was logged.

    Args:
        path: the directory, made if missing.
        resume: go on with the tables that `path` holds; rows of the first step to come, and of later ones, are dropped.
        spectra: write spectra.csv too: some 15 numbers a matrix and step, and 225 a layer for its alignment.

    Raises InputError where `path` cannot be written, or holds tables already (resume=False).
    """

    def __init__(self, path: str | os.PathLike, resume: bool = False, spectra: bool = True) -> None:
        self.path = _directory(path, "metrics.csv", resume)
        columns = {"metrics": METRICS, "notes": NOTES} | ({"spectra": SPECTRA} if spectra else {})
        self._files = {name: self.path / f"{name}.csv" for name in columns}
        self._columns, self._first = columns, True
        for name, file in self._files.items():
            if not file.exists():
                file.write_bytes(_lines([columns[name]]))
        self._handles = {name: file.open("ab", buffering=0) for name, file in self._files.items()}

    def log_step(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        if self._first:
            self._drop_from(step)
        self._handles["metrics"].write(_lines((step, *split_key(key), repr(float(v))) for key, v in scalars.items()))
        if "spectra" in self._handles and arrays:
            self._handles["spectra"].write(b"".join(_block(step, key, array) for key, array in arrays.items()))

    def note(self, step: int, key: str, text: str) -> None:
        self._handles["notes"].write(_lines([(step, key, text)]))

    def close(self, finished: bool = True) -> None:
        for handle in self._handles.values():
            handle.close()

    def _drop_from(self, step: int) -> None:
        """Before the first step of a session: whatever the tables hold of it, of later ones, or of half a line."""
        self._first = False
        for name in set(self._files) - {"notes"}:
            self._handles[name].close()
            with (
                replacing(self._files[name]) as partial,
                self._files[name].open("rb") as old,
                partial.open("wb") as new,
            ):
                new.write(old.readline())
                new.writelines(row for row in old if row.endswith(b"\n") and int(row.partition(b",")[0]) < step)
            self._handles[name] = self._files[name].open("ab", buffering=0)


class Parquet:
    """A sink that writes metrics.parquet and spectra.parquet, directories of parts that read as one table.

    Every part is complete when it appears: a killed process loses at most the `flush_every` steps since the last one.

    Args:
        path: the directory, made if missing.
        resume: go on with the tables that `path` holds; rows of the first step to come, and of later ones, are dropped.
        flush_every: steps in a part.

    Raises InputError as `CSV`; ImportError without pandas or pyarrow.
    """

    def __init__(self, path: str | os.PathLike, resume: bool = False, flush_every: int = 100) -> None:
        self._pandas = require("pandas", "the Parquet sink")
        require("pyarrow", "the Parquet sink")
        if isinstance(flush_every, bool) or not isinstance(flush_every, int) or flush_every < 1:
            raise InputError("flush_every", "a whole number of steps >= 1", repr(flush_every))
        self.path = _directory(path, "metrics.parquet", resume)
        self._flush_every, self._first, self._rows = flush_every, True, 0
        self._steps: list[tuple[int, dict[str, float], dict[str, np.ndarray]]] = []
        for name in ("metrics", "spectra"):
            (self.path / f"{name}.parquet").mkdir(exist_ok=True)

    def log_step(self, step: int, scalars: dict[str, float], arrays: dict[str, Any]) -> None:
        if self._first:
            self._drop_from(step)
        blocks = {key: np.array(array, np.float32).reshape(-1) for key, array in arrays.items()}
        self._steps.append((step, dict(scalars), blocks))
        self._rows += len(scalars) + sum(block.size for block in blocks.values())
        if len(self._steps) >= self._flush_every or self._rows >= ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write the steps since the last part as a part of their own."""
        if not self._steps:
            return
        part = f"step-{self._steps[0][0]:012d}.parquet"
        for name, frame in (("metrics", self._metrics()), ("spectra", self._spectra())):
            with replacing(self.path / f"{name}.parquet" / part) as partial:
                write_parquet(partial, [frame])
        self._steps, self._rows = [], 0

    def close(self, finished: bool = True) -> None:
        self.flush()

    def _metrics(self):
        keys = [key for _, scalars, _ in self._steps for key in scalars]
        counts = [len(scalars) for _, scalars, _ in self._steps]
        frame = {"step": np.repeat(np.array([step for step, *_ in self._steps], np.int64), counts)}
        parts = {key: split_key(key) for key in dict.fromkeys(keys)}
        for place, column in enumerate(("kind", "layer", "metric")):
            frame[column] = self._categories([parts[key][place] for key in keys])
        values = [value for _, scalars, _ in self._steps for value in scalars.values()]
        return self._pandas.DataFrame({**frame, "value": np.array(values, np.float64)})

    def _spectra(self):
        blocks = [(step, key, block) for step, _, arrays in self._steps for key, block in arrays.items()]
        counts = [block.size for _, _, block in blocks]
        return self._pandas.DataFrame(
            {
                "step": np.repeat(np.array([step for step, _, _ in blocks], np.int64), counts),
                "key": self._categories([key for _, key, _ in blocks], counts),
                "index": np.concatenate([np.arange(n, dtype=np.int32) for n in counts] or [np.empty(0, np.int32)]),
                "value": np.concatenate([block for _, _, block in blocks] or [np.empty(0, np.float32)]),
            }
        )

    def _categories(self, texts: list[str], counts: list[int] | int = 1):
        """A column of `texts`, each repeated as `counts` says, stored as numbers and the few texts there are."""
        code = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        codes = np.repeat(np.array([code[text] for text in texts], np.int32), counts)
        return self._pandas.Categorical.from_codes(codes, list(code))

    def _drop_from(self, step: int) -> None:
        self._first = False
        for file in sorted(self.path.glob("*.parquet/step-*.parquet")):
            frame = self._pandas.read_parquet(file)
            if not len(frame) or frame["step"].iloc[-1] >= step:
                kept = frame[frame["step"] < step]
                file.unlink()
                if len(kept):
                    with replacing(file) as partial:
                        write_parquet(partial, [kept])


def _directory(path: str | os.PathLike, table: str, resume: bool) -> Path:
    path = Path(path)
    if (path / table).exists() and not resume:
        raise InputError("path", "a directory without these tables", path / table, "resume=True goes on with them")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("path", "a directory that can be written", f"{path} ({error.strerror or error})") from None
    return path


def _block(step: int, key: str, array: Any) -> bytes:
    """The lines of one array; there may be ten thousand a step, so the constant part is made once."""
    start = _lines([(step, key)])[:-1].decode()
    # Nine digits give every float32 back, which is what the run database keeps too.
    values = np.asarray(array, np.float32).reshape(-1).tolist()
    return "".join([f"{start},{index},{value:.9g}\n" for index, value in enumerate(values)]).encode()


def _lines(rows) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
