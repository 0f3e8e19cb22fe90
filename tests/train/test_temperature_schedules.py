"""Temperature schedules of `fastrank train`: what is recorded, matched norms, and resuming in the middle."""

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("sklearn")

from fastrank import InputError, load_run
from fastrank.train import TrainConfig
from fastrank.train.loop import train

TINY = {"model": "mlp", "model_kwargs": {"depth": 1, "width": 16}, "data": "digits", "image_size": 8, "epochs": 2,
        "batch_size": 100, "samples_per_class": 40, "track": "logits", "lr": 0.01, "optimizer": "adam"}  # fmt: skip


def finished(path, **settings):
    result = train(TrainConfig(**{**TINY, **settings}), path, resume=True, device=torch.device("cpu"))
    return result, load_run(path)


def test_the_recorded_temperature_follows_the_schedule(tmp_path):
    settings = {"temperature": 100.0, "temperature_schedule": "linear", "temperature_end": 2.0}
    result, run = finished(tmp_path / "a", **settings)
    steps, T = run.series("train/T")
    np.testing.assert_allclose(T, 100 - 98 * steps / steps[-1], rtol=1e-12)
    norm, scaled = (run.series(f"logits/{key}")[1] for key in ("norm", "norm_over_T"))
    assert scaled == pytest.approx(norm / T, rel=1e-6)
    assert result.evaluation["temperature"] == 2.0
    assert result.evaluation["logits_norm_over_T"] == pytest.approx(result.evaluation["logits_norm"] / 2)
    assert result.config.name == "digits-mlp-T100-linear2-s0"


def test_matched_norms_start_alike(tmp_path):
    for init in (0.05, 0.5):
        kwargs = {"depth": 1, "width": 16, "init": init}
        result, run = finished(tmp_path / str(init), temperature_schedule="norm-matched", initial_norm=0.25,
                               model_kwargs=kwargs, batch_size=40, epochs=1, lr=1e-9)  # fmt: skip
        first = result.evaluation["first_logits_norm"]
        assert result.evaluation["temperature"] == pytest.approx(first / 0.25)
        # The network hardly moved: what was trained on had the norm asked for.
        assert run.series("logits/norm_over_T")[1].mean() / np.sqrt(40) == pytest.approx(0.25, rel=0.05)
    assert result.config.name == "digits-mlp-norm0.25-s0"


def test_a_resumed_schedule_goes_on_where_it_was(tmp_path, monkeypatch):
    settings = {"temperature": 50.0, "temperature_schedule": "cosine", "epochs": 2}
    whole, _ = finished(tmp_path / "whole", **settings)
    from fastrank.train import loop

    class Stop(Exception):
        pass

    saved = loop.save_checkpoint

    def save_and_stop(*arguments):
        saved(*arguments)
        raise Stop

    monkeypatch.setattr(loop, "save_checkpoint", save_and_stop)
    with pytest.raises(Stop):
        finished(tmp_path / "cut", **settings)
    monkeypatch.setattr(loop, "save_checkpoint", saved)
    resumed, run = finished(tmp_path / "cut", **settings)
    timings = {"overhead", "tracking_setup"}
    assert {k: v for k, v in resumed.evaluation.items() if k not in timings} == {
        k: v for k, v in whole.evaluation.items() if k not in timings
    }
    assert run.series("train/T")[1][-1] == 1.0


def test_mse_and_label_smoothing_change_what_is_trained(tmp_path):
    kinds = {"ce": {}, "mse": {"loss": "mse"}, "smooth": {"label_smoothing": 0.2}}
    runs = {name: finished(tmp_path / name, epochs=1, **settings)[1] for name, settings in kinds.items()}
    losses = {name: run.series("train/loss")[1][0] for name, run in runs.items()}
    assert losses["ce"] == pytest.approx(np.log(10), rel=0.1) and losses["smooth"] != losses["ce"]
    assert losses["mse"] == pytest.approx((0.9**2 + 9 * 0.01) / 10, rel=0.1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("temperature_schedule", {"temperature_schedule": "step"}), ("temperature_end", {"temperature_end": 0.0}),
        ("initial_norm", {"temperature_schedule": "norm-matched"}), ("initial_norm", {"initial_norm": 1.0}),
        ("initial_norm", {"temperature_schedule": "norm-matched", "initial_norm": -1.0}),
        ("loss", {"loss": "hinge"}), ("label_smoothing", {"label_smoothing": 1.0}), ("track", {"track": "act,all"}),
    ],
)  # fmt: skip
def test_mistakes_are_named(name, settings):
    with pytest.raises(InputError, match=f"^{name}: expected"):
        TrainConfig(**settings)
