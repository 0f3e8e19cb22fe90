"""The benchmark of a training's memory runs, and names what it does not know."""

import sys

import pytest
import tracking_memory
from bench_tracking import Step

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what /proc tells")


@pytest.mark.parametrize("preset", tracking_memory.PRESETS)
def test_peaks_of_a_training(capsys, monkeypatch, preset):
    monkeypatch.setattr(tracking_memory, "STEPS", 2)
    tracking_memory.one(Step(model="MLP 2x6", batch=5, classes=3, where="a test"), preset)
    rss, own = map(float, capsys.readouterr().out.split())
    assert 0 < own < rss


def test_an_unknown_model_is_named():
    with pytest.raises(SystemExit, match=r"^MODEL: expected one of resnet10t, .*, got 'resnet19'"):
        tracking_memory.main(["resnet19"])
