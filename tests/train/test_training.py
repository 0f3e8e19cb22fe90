"""A run: what it records, that it is a function of its seed, and that stopping it loses nothing."""

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastrank import load_run
from fastrank.errors import InputError
from fastrank.train import Interrupted, TrainConfig, train_all
from fastrank.train.checkpoint import FILE, load_checkpoint, save_checkpoint
from fastrank.train.progress import Progress

pytest.importorskip("timm")
pytest.importorskip("sklearn")
pytest.importorskip("rich")

# Batch normalisation, dropout, momentum and augmentation: everything that carries state from step to step. 4 steps an
# epoch, 8 in all.
CONFIG = TrainConfig(
    model="resnet10t", model_kwargs={"channels": [8, 8, 8, 8], "stem_width": 8, "drop_rate": 0.5}, data="digits",
    temperature=10.0, epochs=2, batch_size=20, lr=0.05, augment="cifar", image_size=8, samples_per_class=8, seed=5,
    layers=("layer4.0.act2", "fc"),
)  # fmt: skip


def run(out, config=CONFIG, **options):
    return train_all([config], out, **options)[0]


def figures(path):
    """Everything recorded but times: {key: (steps, values)}, and the spectra."""
    loaded = load_run(path)
    scalars = {key: loaded.series(key) for key in loaded.keys if not key.startswith("cost/")}
    return scalars, {key: loaded.spectra[key] for key in loaded.spectra}


def assert_same_run(left, right):
    for first, second in zip(figures(left), figures(right), strict=True):
        assert first.keys() == second.keys()
        for key in first:
            for a, b in zip(first[key], second[key], strict=True):
                np.testing.assert_array_equal(a, b, err_msg=key)
    one, two = load_checkpoint(left)["model"], load_checkpoint(right)["model"]
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    return run(tmp_path_factory.mktemp("whole"))


def after_steps(monkeypatch, count, act):
    """Call `act` when `count` steps of a run are done."""
    step, done = Progress.step, []

    def counting(self, loss, figures):
        step(self, loss, figures)
        done.append(loss)
        if len(done) == count:
            act()

    monkeypatch.setattr(Progress, "step", counting)


def test_a_run_records_every_step_and_its_evaluation(whole):
    loaded = load_run(whole.path)
    assert whole.path.name == "digits-resnet10t-T10-s5"
    assert loaded.status == "finished" and loaded.steps.tolist() == list(range(8))
    assert {"train/loss", "train/accuracy", "train/lr", "logits/rank", "act/layer4.0.act2/rank"} <= set(loaded.keys)
    assert loaded.config["temperature"] == 10.0 and loaded.config["model_kwargs"] == CONFIG.model_kwargs
    assert loaded.evaluation == whole.evaluation
    assert whole.evaluation["solution_rank"]["samples"] == 80 and whole.evaluation["overhead"] > 0


def test_evaluation_equals_plain_torch(whole):
    """Rank, norm and accuracies of the whole splits from the checkpoint's weights, computed without fastrank."""
    from fastrank.train.data import load_data
    from fastrank.train.models import build_model

    data = load_data(CONFIG)
    model = build_model(CONFIG.model, 10, 1, 8, CONFIG.model_kwargs).eval()
    model.load_state_dict(load_checkpoint(whole.path)["model"])
    with torch.no_grad():
        logits, test_logits = model(data.train.tensors[0]), model(data.test.tensors[0])
    found = whole.evaluation
    rank = found["solution_rank"]
    assert rank["lo"] <= int(torch.linalg.matrix_rank(logits)) <= rank["hi"]
    # Batches of another size change float32 convolutions by a few roundings of the largest logit.
    assert found["logits_norm"] == pytest.approx(float(logits.double().norm()), rel=1e-5)
    assert found["logits_norm_over_T"] == pytest.approx(found["logits_norm"] / 10)
    assert found["train_accuracy"] == float((logits.argmax(1) == data.train.tensors[1]).double().mean())
    assert found["test_accuracy"] == float((test_logits.argmax(1) == data.test.tensors[1]).double().mean())


def test_the_seed_decides_everything(whole, tmp_path):
    assert_same_run(whole.path, run(tmp_path / "again").path)
    other = run(tmp_path / "other", replace(CONFIG, seed=6))
    assert (figures(other.path)[0]["train/loss"][1] != figures(whole.path)[0]["train/loss"][1]).all()


def test_tracking_does_not_change_the_training(whole, tmp_path):
    untracked = run(tmp_path, replace(CONFIG, track="off"))
    loss, accuracy = (figures(untracked.path)[0][f"train/{key}"][1] for key in ("loss", "accuracy"))
    np.testing.assert_array_equal(loss, figures(whole.path)[0]["train/loss"][1])
    np.testing.assert_array_equal(accuracy, figures(whole.path)[0]["train/accuracy"][1])
    assert untracked.evaluation["overhead"] is None


@pytest.mark.parametrize("track", ["light", "off"])
def test_the_schedule_of_a_run_is_that_of_watch(tmp_path, track):
    found = run(tmp_path, replace(CONFIG, track=track, every="log:1,epoch:4"))
    assert load_run(found.path).steps.tolist() == [0, 1, 3, 7]


def test_a_budget_reaches_the_watcher(tmp_path):
    found = load_run(run(tmp_path, replace(CONFIG, track="light", budget="50%")).path)
    assert found.steps.tolist()[:3] == [0, 1, 2] and found.series("budget/interval")[1][0] >= 1


@pytest.mark.parametrize(
    ("number", "steps"), [(signal.SIGINT, 3), (signal.SIGINT, 4), (signal.SIGINT, 6), (signal.SIGTERM, 3)]
)
def test_interrupted_and_resumed_equals_uninterrupted(whole, tmp_path, monkeypatch, number, steps):
    handler = signal.getsignal(number)
    # A signal between two steps is seen after the next one, or at once where an epoch's checkpoint is due anyway.
    last = 3 if steps == 4 else steps
    with monkeypatch.context() as patch:
        after_steps(patch, steps, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=f"^interrupted after step {last}, saved in .*; --resume continues$"):
            run(tmp_path)
    path = tmp_path / CONFIG.name
    assert load_run(path).status == "interrupted" and load_run(path).steps.tolist() == list(range(last + 1))
    assert signal.getsignal(number) == handler
    torch.manual_seed(99)  # what the process did meanwhile must not matter
    resumed = run(tmp_path, resume=True)
    assert_same_run(whole.path, resumed.path)
    times = {"overhead", "tracking_setup"}
    assert {k: v for k, v in resumed.evaluation.items() if k not in times} == {
        k: v for k, v in whole.evaluation.items() if k not in times
    }


@pytest.mark.parametrize("steps", [2, 6], ids=["before a checkpoint", "after one"])
def test_a_crash_between_checkpoints_is_made_good_by_resume(whole, tmp_path, monkeypatch, steps):
    def crash():
        raise RuntimeError("power failure")

    with monkeypatch.context() as patch:
        after_steps(patch, steps, crash)
        with pytest.raises(RuntimeError, match=r"power failure"):
            run(tmp_path)
    assert load_run(tmp_path / CONFIG.name).steps.tolist() == list(range(steps))
    assert (tmp_path / CONFIG.name / FILE).exists() == (steps > 4)
    assert_same_run(whole.path, run(tmp_path, resume=True).path)


def test_resume_starts_what_is_missing_and_leaves_what_is_finished(tmp_path):
    hot = replace(CONFIG, temperature=50.0, epochs=1, track="off")
    cold = replace(hot, temperature=1.0)
    first = run(tmp_path, cold)
    written = (first.path / FILE).stat().st_mtime_ns
    results = train_all([cold, hot], tmp_path, resume=True)
    assert results[0].evaluation == first.evaluation and (first.path / FILE).stat().st_mtime_ns == written
    assert load_run(results[1].path).status == "finished"


def test_resume_with_other_settings_is_refused(tmp_path):
    path = run(tmp_path, replace(CONFIG, epochs=1, track="off")).path
    with pytest.raises(InputError, match=r"^lr: expected 0\.05, with which .* began, got 0\.1; resume with the same"):
        run(tmp_path, replace(CONFIG, epochs=1, track="off", lr=0.1), resume=True)
    assert load_run(path).status == "finished"


def test_every_input_is_checked_before_anything_is_written(tmp_path, whole):
    good = replace(CONFIG, track="off", epochs=1)
    for config, message in (
        (replace(good, model="resnet_10t"), "^model: .*did you mean .*resnet10t"),
        (good, "^temperature: expected values that differ"),
    ):
        with pytest.raises(InputError, match=message):
            train_all([good, config], tmp_path)
    with pytest.raises(InputError, match=r"^workers: expected"):
        run(tmp_path, good, workers=-1)
    with pytest.raises(InputError, match=r"^device: expected .*'tpu9'"):
        run(tmp_path, good, device="tpu9")
    with pytest.raises(InputError, match=r"^batch_size: expected at most the 80 training samples, got 81"):
        run(tmp_path, replace(good, batch_size=81))
    with pytest.raises(InputError, match=r"^layers: expected"):
        run(tmp_path, replace(CONFIG, layers=("layer9*",)))
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"^out: expected a directory without this run, .*--resume continues it"):
        run(whole.path.parent)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_steps(tmp_path):
    exploding = replace(CONFIG, lr=1e30, augment="none")
    with pytest.raises(
        InputError, match=r"^loss: expected a finite number, got (nan|inf) at step [1-7] .*smaller --lr"
    ):
        run(tmp_path, exploding)
    loaded = load_run(tmp_path / exploding.name)
    assert loaded.status == "interrupted" and len(loaded.steps) >= 1
    assert np.isfinite(loaded.series("train/loss")[1]).all()
    assert all(torch.isfinite(v).all() for v in (load_checkpoint(loaded.path) or {"model": {}})["model"].values())


def test_checkpoint_is_replaced_whole_and_runs_no_code(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    with pytest.raises(Exception, match=r"pickle"):
        save_checkpoint(tmp_path, {"step": threading.Lock()})
    assert [file.name for file in tmp_path.iterdir()] == [FILE] and load_checkpoint(tmp_path)["step"] == 1

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": 1, "payload": Payload()}, tmp_path / FILE)
    with pytest.raises(InputError, match=r"^checkpoint: expected a file that fastrank wrote"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()
    (tmp_path / FILE).write_bytes(b"PK\3\4 truncated")
    with pytest.raises(InputError, match=r"^checkpoint: expected a file that fastrank wrote"):
        load_checkpoint(tmp_path)
