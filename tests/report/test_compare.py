"""Runs side by side in text: the step that all have, what differs, ranks with their intervals."""

import pytest
from report.synthetic import write_run

from fastrank.errors import InputError
from fastrank.record import RunWriter, load_run
from fastrank.report import compare_runs, print_comparison


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "a", T=1, layers=4, steps=30), write_run(tmp_path / "b", T=100, layers=4, steps=20)]


def test_the_last_step_that_all_have(runs):
    found = compare_runs(runs)
    assert found.step == 19 and found.runs == ["a", "b"]
    assert found.settings == {"temperature": [1, 100], "lr": [0.1, 1.0]}
    for run, rank in zip(map(load_run, runs), found.figures["logits/rank"], strict=True):
        steps, values = run.series("logits/rank")
        assert rank == values[steps == 19]
    assert list(found.layers) == [
        key for key in load_run(runs[0]).keys if key.startswith("act/") and key.endswith("/rank")
    ]


def test_another_step_and_other_keys(runs):
    found = compare_runs(runs, step=7, figures=["logits/norm"], layers=["weight/fc/*"])
    assert found.step == 7 and list(found.figures) == ["logits/norm"]
    assert {key.rpartition("/")[0] for key in found.layers} == {"weight/fc"} and "weight/fc/stable_rank" in found.layers
    assert found.figures["logits/norm"][0] == load_run(runs[0]).series("logits/norm")[1][7]


def test_a_figure_that_one_run_lacks_and_an_open_interval(tmp_path, runs, capsys):
    for name, values in (
        ("c", {"logits/rank": 5.0, "logits/rank_lo": 4.0, "logits/rank_hi": 6.0}),
        ("d", {"x/y": 1.0}),
    ):
        with RunWriter(tmp_path / name, config={}) as writer:
            writer.log_step(0, values, {})
    found = compare_runs([tmp_path / "c", tmp_path / "d"], figures=["logits/rank", "x/y"])
    assert found.figures == {"logits/rank": [5.0, None], "x/y": [None, 1.0]}
    print_comparison(found)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["logits/rank", "5", "[4,", "6]", "-"] in lines and ["x/y", "-", "1"] in lines


def test_mistakes_are_named(tmp_path, runs):
    for wrong, message in (
        ({"paths": runs[:1]}, "runs: expected two run directories or more, got 1"),
        ({"paths": [runs[0], runs[0]]}, "runs: expected two run directories or more, got 1"),
        ({"paths": [runs[0], tmp_path / "none"]}, "path: expected a run directory"),
        ({"paths": runs, "step": -1}, "step: expected 0 or later"),
        ({"paths": runs, "layers": ["nope/*"]}, "layers: expected globs over keys such as"),
    ):
        with pytest.raises(InputError, match=message):
            compare_runs(**wrong)
