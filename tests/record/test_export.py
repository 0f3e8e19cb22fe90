"""Exported tables hold the run's figures, in both formats."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from fastrank.errors import InputError
from fastrank.record import RunWriter, export, export_run, load_run

NAME = 'act/a,"b"\nc/<i>'


@pytest.fixture
def path(tmp_path):
    with RunWriter(tmp_path / "run", {"model": "mlp", "lr": float("inf")}) as writer:
        for step in range(4):
            scalars = {f"{NAME}/rank": step, "train/loss": float("nan") if step == 2 else 0.1 * step}
            writer.log_step(
                step, scalars, {f"{NAME}/sigma": [1 / 3, np.nan, np.inf], "align/a/cosines": np.eye(2) * step}
            )
        writer.note(2, "train/loss", "diverged")
    return tmp_path / "run"


@pytest.mark.parametrize("format", ["csv", "parquet"])
@pytest.mark.parametrize("rows_at_once", [1, 10**6])
def test_export_round_trip(path, tmp_path, format, rows_at_once, monkeypatch):
    monkeypatch.setattr(export, "ROWS_AT_ONCE", rows_at_once)
    files = export_run(path, tmp_path / "out" / "deep", format)
    assert [file.name for file in files] == [f"metrics.{format}", f"spectra.{format}", "config.json"]
    assert sorted(files) == sorted((tmp_path / "out" / "deep").iterdir())
    read = {
        "csv": lambda file: pd.read_csv(file, keep_default_na=False, na_values=["nan"]),
        "parquet": pd.read_parquet,
    }[format]
    run, metrics, spectra = load_run(path), read(files[0]), read(files[1])

    expected = run.metrics
    assert metrics.columns.tolist() == expected.columns.tolist()
    for column in ("step", "kind", "layer", "metric"):
        assert metrics[column].tolist() == expected[column].tolist()
    np.testing.assert_array_equal(metrics["value"].to_numpy(), expected["value"].to_numpy())

    assert spectra.columns.tolist() == ["step", "key", "index", "value"]
    for key in run.spectra:
        steps, values = run.spectra[key]
        rows = spectra[spectra["key"] == key].sort_values(["step", "index"])
        np.testing.assert_array_equal(rows["value"].to_numpy(np.float32), values.reshape(-1))
        assert rows["step"].tolist() == np.repeat(steps, values[0].size).tolist()
        assert rows["index"].tolist() == list(range(values[0].size)) * len(steps)

    facts = json.loads(files[2].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert facts["config"] == {"model": "mlp", "lr": None} and facts["status"] == "finished"
    assert facts["notes"] == [{"step": 2, "key": "train/loss", "text": "diverged"}]


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_export_of_a_run_without_steps_has_the_columns(tmp_path, format):
    with RunWriter(tmp_path / "run", {}):
        pass
    metrics, spectra, _ = export_run(tmp_path / "run", tmp_path / "out", format)
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}[format]
    assert read(metrics).columns.tolist() == ["step", "kind", "layer", "metric", "value"]
    assert read(spectra).columns.tolist() == ["step", "key", "index", "value"] and len(read(spectra)) == 0


def test_bad_input(path, tmp_path):
    with pytest.raises(InputError, match="format: expected csv or parquet, got 'xlsx'"):
        export_run(path, tmp_path / "out", "xlsx")
    with pytest.raises(InputError, match="path: expected a run directory"):
        export_run(tmp_path, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="out: expected a directory that can be written"):
        export_run(path, tmp_path / "file")


def test_without_pandas_the_figures_can_still_be_read(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it were not installed
    run = load_run(path)
    assert run.series("train/loss")[0].tolist() == [0, 1, 2, 3] and len(run.spectra["align/a/cosines"][1]) == 4
    for use in (lambda: run.metrics, lambda: export_run(path, tmp_path / "out")):
        with pytest.raises(ImportError, match=r"needs pandas .*pip install 'fastrank\[report\]'"):
            use()


def test_parquet_names_what_it_lacks(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow .*pip install 'fastrank\[report\]'"):
        export_run(path, tmp_path / "out", "parquet")
