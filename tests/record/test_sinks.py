"""Sinks: every one holds what the run database holds, survives a kill, and takes nothing down when it fails."""

import io
import json
import math
import os
import signal
import struct
import sys

import numpy as np
import pytest
import torch
from watched_loop import Records, assert_same, by_hand, small_batches, small_net

import fastrank
from fastrank import InputError, RunWriter, load_run
from fastrank.record import export_run
from fastrank.sinks import CSV, Console, Parquet, Sinks, TensorBoard, WandB, open_log


def watched(log, steps=4, **options):
    return by_hand(small_net(), small_batches(steps), also=log, **options)


def frames(folder, format):
    pandas = pytest.importorskip("pandas", reason="needs pandas: pip install 'fastrank[report]'")
    read = pandas.read_csv if format == "csv" else pandas.read_parquet
    options = {"keep_default_na": False, "na_values": {"value": ["nan"]}} if format == "csv" else {}
    return [read(folder / f"{name}.{format}", **options) for name in ("metrics", "spectra")]


def assert_same_tables(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert list(a.columns) == list(b.columns) and len(a) == len(b) > 0
        for column in a.columns:
            if column == "value":
                dtype = "float32" if "key" in a.columns else "float64"  # spectra are stored as float32
                np.testing.assert_array_equal(a[column].astype(dtype), b[column].astype(dtype))
            else:
                assert a[column].tolist() == b[column].tolist()


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_tables_are_those_of_export(tmp_path, format):
    sink = CSV(tmp_path / "streamed") if format == "csv" else Parquet(tmp_path / "streamed", flush_every=3)
    watched([tmp_path / "run", sink], metrics="full")
    export_run(tmp_path / "run", tmp_path / "exported", format)
    assert_same_tables(frames(tmp_path / "streamed", format), frames(tmp_path / "exported", format))


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_killed_process_keeps_what_was_flushed_and_a_resume_replaces_its_tail(tmp_path, format):
    def scalars(step, session):
        return {"act/a, b/rank": float(step), "logits/norm": session + step / 3, "train/loss": math.nan}

    def arrays(step, session):
        return {"act/a, b/sigma": np.float64([session, step, 1 / 3])}

    def open_sink(resume):
        return CSV(tmp_path, resume) if format == "csv" else Parquet(tmp_path, resume, flush_every=2)

    child = os.fork()
    if child == 0:
        try:
            sink = open_sink(False)
            for step in range(5):
                sink.log_step(step, scalars(step, 0), arrays(step, 0))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    metrics, spectra = frames(tmp_path, format)
    kept = 5 if format == "csv" else 4  # the last part was not full
    assert metrics["step"].unique().tolist() == spectra["step"].unique().tolist() == list(range(kept))
    with pytest.raises(InputError, match=r"^path: expected a directory without these tables"):
        open_sink(False)
    if format == "csv":  # as a kill amid the write of step 10 would leave it
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write("1")
    sink = open_sink(True)
    for step in (3, 7):
        sink.log_step(step, scalars(step, 1), arrays(step, 1))
    sink.close()
    metrics, spectra = frames(tmp_path, format)
    norms = metrics[metrics["metric"] == "norm"]
    assert norms["step"].tolist() == [0, 1, 2, 3, 7]
    assert norms["value"].tolist() == [0.0, 1 / 3, 2 / 3, 2.0, 1 + 7 / 3]
    assert metrics["layer"].tolist()[::3] == ["a, b"] * 5 and metrics["value"].isna().sum() == 5
    assert metrics["step"].tolist() == spectra["step"].tolist() == np.repeat([0, 1, 2, 3, 7], 3).tolist()
    assert spectra["value"].tolist()[9:12] == [1.0, 3.0, pytest.approx(np.float32(1 / 3), rel=1e-7)]


def test_notes_are_a_table_of_their_own(tmp_path):
    sink = CSV(tmp_path, spectra=False)
    sink.note(2, "act/a", 'not finite: "inf", nan')
    sink.close()
    assert (tmp_path / "notes.csv").read_text() == 'step,key,text\n2,act/a,"not finite: ""inf"", nan"\n'
    assert not (tmp_path / "spectra.csv").exists()


def test_tensorboard_has_every_scalar_and_the_shape_of_spectra(tmp_path):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'fastrank[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = watched(TensorBoard(tmp_path / "tb", spectra_every=2))
    everything = dict.fromkeys(("scalars", "histograms", "tensors"), 0)
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance=everything)
    events.Reload()
    for key in records[0][1] | records[1][1]:
        found = [(event.step, event.value) for event in events.Scalars(key)]
        wanted = [(step, scalars[key]) for step, scalars, _ in records if key in scalars]
        assert found == [(step, pytest.approx(value, rel=1e-6, nan_ok=True)) for step, value in wanted]
    bars = events.Histograms("act/1/sigma/spectrum")
    assert [event.step for event in bars] == [0, 2]
    assert bars[1].histogram_value.bucket == pytest.approx(records[2][2]["act/1/sigma"])
    assert bars[1].histogram_value.bucket_limit[0] - bars[1].histogram_value.min == 1.0
    (note,) = events.Tensors("notes/watch/text_summary")
    assert json.loads(note.tensor_proto.string_val[0])["layers"] == ["0", "1", "2", "3", "4"]


class FakeRun:
    """What `WandB` calls of a W&B run."""

    def __init__(self):
        self.logged, self.axes, self.summary, self.finished = [], {}, {}, []

    def define_metric(self, name, step_metric=None, hidden=None):
        self.axes[name] = step_metric

    def log(self, figures):
        self.logged.append(figures)

    def finish(self, exit_code):
        self.finished.append(exit_code)


def test_wandb_gets_one_log_a_step_on_an_axis_of_its_own():
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install 'fastrank[wandb]'")
    run = FakeRun()
    records = watched(WandB(run, spectra_every=3))
    assert [figures["fastrank/step"] for figures in run.logged] == [0, 1, 2, 3]
    for figures, (_, scalars, _) in zip(run.logged, records, strict=True):
        assert scalars.items() <= figures.items() or any(math.isnan(v) for v in scalars.values())
    spectra = [{k: v for k, v in figures.items() if isinstance(v, wandb.Histogram)} for figures in run.logged]
    assert [bool(found) for found in spectra] == [True, False, False, True]
    assert spectra[3]["act/1/sigma/spectrum"].histogram == pytest.approx(records[3][2]["act/1/sigma"].tolist())
    kinds = ("act", "weight", "grad", "align", "logits", "train", "cost")
    assert run.axes == {"fastrank/step": None, **{f"{kind}/*": "fastrank/step" for kind in kinds}}
    assert json.loads(run.summary["notes/watch"].removeprefix("step 0: "))["every"] == 1
    assert run.finished == []  # the user's run stays open


def test_wandb_can_be_given_fewer_steps():
    pytest.importorskip("wandb", reason="needs wandb: pip install 'fastrank[wandb]'")
    run = FakeRun()
    watched(WandB(run, every=3), metrics="light")
    assert [figures["fastrank/step"] for figures in run.logged] == [0, 3]
    with pytest.raises(InputError, match=r"^every: expected a whole number >= 1, got 0"):
        WandB(run, every=0)


def test_wandb_offline_run_holds_the_figures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install 'fastrank[wandb]'")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    records = watched(WandB(project="p", mode="offline", dir=tmp_path), steps=2, metrics="light")
    wandb.teardown()  # its process writes the file out when it ends
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history = [record.history for record in wandb_records(file) if record.HasField("history")]
    assert len(history) == 2
    for found, (step, scalars, _) in zip(history, records, strict=True):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found.item}
        assert items["fastrank/step"] == step
        assert all(items[key] == scalars[key] for key in scalars if math.isfinite(scalars[key]))


def wandb_records(file):
    """The records of W&B's log: LevelDB's format, in blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""


def test_console_is_one_line_that_ends_at_the_last_step():
    rich = pytest.importorskip("rich.console", reason="needs rich: pip install 'fastrank[train]'")
    plain, live = io.StringIO(), io.StringIO()
    calm = Console(seconds=3600, console=rich.Console(file=plain, width=60))
    eager = Console(seconds=0, console=rich.Console(file=live, width=400, force_terminal=True))
    records = watched([calm, eager])
    first, last = plain.getvalue().splitlines()
    assert first.startswith("step 0 · loss ") and last.startswith("step 3 · loss ")
    ranks = [v for k, v in records[-1][1].items() if k.startswith("weight/") and k.endswith("/rank")]
    assert f"weight rank {min(ranks):.0f} / {sorted(ranks)[1]:.0f} / {max(ranks):.0f}" in last
    assert all(f"step {step} · " in live.getvalue() for step in range(4))


def test_a_function_and_a_list_of_anything(tmp_path):
    seen, records = [], Records()
    expected = watched([lambda *record: seen.append(record), records, tmp_path / "run"])
    assert_same(seen, expected, but=())
    assert_same(records, expected, but=())
    run = load_run(tmp_path / "run")
    assert run.status == "finished" and run.config["watch"]["every"] == 1
    assert records.notes[0][:2] == (0, "watch") and "watch" not in [note.key for note in run.notes]


def test_a_failing_sink_is_named_once_and_the_others_go_on(tmp_path):
    closed = []

    class Full(Records):
        def log_step(self, step, scalars, arrays):
            if step == 1:
                raise OSError("no space left")
            super().log_step(step, scalars, arrays)

        def close(self, finished):
            closed.append(finished)

    def broken(step, scalars, arrays):
        raise KeyError("mine")

    full = Full()
    with pytest.warns(RuntimeWarning) as warned:
        expected = watched([broken, full, tmp_path / "run"])
    messages = [str(w.message) for w in warned]
    assert len(messages) == 2 and "broken failed" in messages[0] and "KeyError: 'mine'" in messages[0]
    assert messages[1] == "fastrank: Full failed and gets no more figures: OSError: no space left"
    assert [step for step, *_ in full] == [0] and closed == [False]
    run = load_run(tmp_path / "run")
    assert run.status == "finished" and run.steps.tolist() == [0, 1, 2, 3] and len(expected) == 4
    assert [(note.step, note.key) for note in run.notes] == [(0, "log"), (1, "log"), (3, "cost")]


def test_sinks_that_fail_otherwise_leave_training_alone():
    class Odd(Records):
        def note(self, step, key, text):
            raise ValueError("no notes")

        def close(self):
            """Takes no `finished`."""

    class Unclosed(Records):
        def close(self, finished):
            raise OSError("late")

    torch.manual_seed(3)
    with pytest.warns(RuntimeWarning) as warned:
        watched([Odd(), Unclosed()], steps=1)
    assert ["Odd failed" in str(w.message) for w in warned] == [True, False]
    assert "Unclosed could not be closed: OSError: late" in str(warned[1].message)


def test_a_writer_that_is_handed_in_stays_open(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        watched(writer)
        writer.set_evaluation({"test": 1.0})
    assert load_run(tmp_path / "run").evaluation == {"test": 1.0}


@pytest.mark.parametrize("log", [3, "", [3], ["ok", 3], TensorBoard, [CSV], {"a": 1}, [["nested"]]])
def test_what_is_no_log_is_said_before_anything_is_made(tmp_path, monkeypatch, log):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^log: expected a path, a sink"):
        open_log(log, {}, {})
    assert not list(tmp_path.iterdir())


def test_no_sink_is_no_log_and_closing_twice_is_harmless(tmp_path):
    assert open_log(None, {}, {}) is None and open_log([], {}, {}) is None
    sinks = open_log([tmp_path / "run"], {}, {})
    assert isinstance(sinks, Sinks)
    sinks.close()
    sinks.close(finished=False)
    assert load_run(tmp_path / "run").status == "finished"


def test_when_one_cannot_be_opened_the_others_are_closed(tmp_path):
    with pytest.raises(InputError, match=r"^path: "):
        open_log([tmp_path / "a", tmp_path / "a"], {}, {})
    assert load_run(tmp_path / "a").status == "interrupted"


@pytest.mark.parametrize(
    ("module", "sink", "extra"),
    [("tensorboard", TensorBoard, "tensorboard"), ("wandb", WandB, "wandb"), ("pyarrow", Parquet, "report")],
)
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, module, sink, extra):
    pytest.importorskip("pandas", reason="needs pandas: pip install 'fastrank[report]'")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module} .*pip install 'fastrank\[{extra}\]'"):
        sink(tmp_path) if sink is not WandB else sink()


def test_watch_takes_what_open_log_takes(tmp_path):
    model = small_net()
    with pytest.raises(InputError, match=r"^log: "):
        fastrank.watch(model, log=[tmp_path / "run", 3])
    assert not (tmp_path / "run").exists()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
