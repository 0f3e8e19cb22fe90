"""`export_run`: a run as plain tables, for pandas, R, a spreadsheet or a plotting notebook."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.record.reader import Run, load_run

FORMATS = ("csv", "parquet")
ROWS_AT_ONCE = 500_000  # long tables go out in pieces: a run's arrays may be larger than memory


def export_run(path: str | os.PathLike, out: str | os.PathLike, format: str = "csv") -> list[Path]:
    """Writes the run `path` into the directory `out` and returns the files, which replace older ones of their name.

    metrics.<format>: step, kind, layer, metric, value. spectra.<format>: step, key, index, value, where `index` counts
    the elements of the array in row-major order (cosines [15, 15]: index = 15*i + j). config.json: name, status,
    config, environment, git, evaluation and notes; a NaN in it is null, as JSON has none.

    Raises InputError for an unknown format, a path that is no run, or an `out` that cannot be written.
    """
    if format not in FORMATS:
        raise InputError("format", " or ".join(FORMATS), repr(format))
    run, out = load_run(path), Path(out)
    require("pandas", "export")
    if format == "parquet":
        require("pyarrow", "export to Parquet")
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / f"metrics.{format}", out / f"spectra.{format}", out / "config.json"]
        write = _write_csv if format == "csv" else write_parquet
        for file, pieces in zip(files, ([run.metrics], _spectra(run)), strict=False):
            with replacing(file) as partial:
                write(partial, pieces)
        with replacing(files[2]) as partial:
            partial.write_text(json.dumps(finite(_facts(run)), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError("out", "a directory that can be written", f"{out} ({error.strerror or error})") from None
    return files


def _facts(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "status": run.status,
        "config": run.config,
        "environment": run.environment,
        "git": run.git,
        "evaluation": run.evaluation,
        "notes": [note._asdict() for note in run.notes],
    }


def _spectra(run: Run) -> Iterator[Any]:
    """Frames of (step, key, index, value) with ROWS_AT_ONCE rows or little more; at least one, for the header."""
    pandas = require("pandas", "export")
    keys = list(run.spectra)
    code = {key: index for index, key in enumerate(keys)}

    def frame(blocks: list[tuple[int, str, np.ndarray]]):
        counts = [block.size for _, _, block in blocks]
        codes = np.repeat(np.array([code[key] for _, key, _ in blocks], np.int32), counts)
        return pandas.DataFrame(
            {
                "step": np.repeat(np.array([step for step, _, _ in blocks], np.int64), counts),
                "key": pandas.Categorical.from_codes(codes, keys),
                "index": np.concatenate([np.arange(n, dtype=np.int32) for n in counts] or [np.empty(0, np.int32)]),
                "value": np.concatenate([block.reshape(-1) for _, _, block in blocks] or [np.empty(0, np.float32)]),
            }
        )

    blocks, rows = [], 0
    for step in run.steps:
        for key, block in run.spectra.at(step).items():
            blocks.append((int(step), key, block))
            rows += block.size
        if rows >= ROWS_AT_ONCE:
            yield frame(blocks)
            blocks, rows = [], 0
    yield frame(blocks)


def _write_csv(file: Path, frames) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as handle:
        for number, frame in enumerate(frames):
            frame.to_csv(handle, index=False, header=number == 0, na_rep="nan")


def write_parquet(file: Path, frames) -> None:
    arrow, parquet = require("pyarrow", "export to Parquet"), require("pyarrow.parquet", "export to Parquet")
    writer = None
    try:
        for frame in frames:
            table = arrow.Table.from_pandas(frame, preserve_index=False)
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A file beside `file` that takes its place only when it is complete."""
    partial = file.with_name(file.name + ".partial")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """`value` without the numbers that JSON does not have: NaN and infinities become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
