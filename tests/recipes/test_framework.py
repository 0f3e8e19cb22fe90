"""Recipes: jobs that run once, results from run directories alone, verdicts by the stated rule, the gallery."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("timm")

from fastrank.errors import InputError
from fastrank.recipes import FILES, Column, Recipe, Scale, find_recipe, recompute, reproduce
from fastrank.recipes.effects import (
    HELD,
    NOT_HELD,
    OPEN,
    Effect,
    correlation,
    decide,
    difference,
    mean_interval,
    proportion,
    slope,
)
from fastrank.recipes.execute import plan_jobs
from fastrank.recipes.figures import panels
from fastrank.recipes.recipe import evaluated, rank_column
from fastrank.recipes.training import recipe_facts
from fastrank.record import RunWriter, load_run

#: What the made-up recipe "measures" at each label: x plus noise of the seed.
NOISE = (0.0, 1.0, -1.0, 0.5)


def made_up(**changes):
    """A recipe whose runs hold given numbers; `ran` counts the runs of each job."""
    ran = []

    def run(jobs, device):
        for job in jobs:
            ran.append((job.label, job.seed))
            with RunWriter(job.path, recipe_facts(job)) as writer:
                x, noise = job.settings["x"], NOISE[job.seed]
                writer.log_step(0, {"a/x": x + noise})
                writer.set_evaluation({
                    "x": x + noise, "rank": {"rank": 10 * x, "lo": 10 * x - 1, "hi": 10 * x + 1},
                    "train_accuracy": job.settings.get("accuracy", 1.0),
                })  # fmt: skip

    def draw(study):
        figure, axes = panels()
        axes[0, 0].plot(study.series(study.labels[0], "a/x")[1])
        return figure

    fields = {
        "name": "made-up", "claim": "x <rises>", "source": "nowhere", "rule": "b exceeds a",
        "scales": {"quick": Scale({"a": {"x": 1}, "b": {"x": 5}}, 3, "nothing")},
        "columns": (Column("x", evaluated("x")), rank_column("rank", "rank"), Column("none", evaluated("no", "such"))),
        "run": run, "effects": lambda study: [difference(study, "x", "b", "a", ">")], "draw": draw,
    }  # fmt: skip
    return Recipe(**{**fields, **changes}), ran


def test_runs_what_is_missing_and_computes_from_run_directories(tmp_path):
    recipe, ran = made_up()
    first = reproduce(recipe, seeds=2, out=tmp_path)
    assert ran == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert (first.verdict, first.seeds) == (HELD, (0, 1))
    assert first.table["b"]["x"].mean == 5.5 and first.table["b"]["x"].n == 2
    assert first.table["a"]["rank"].text == "10 ± 0 [9, 11]" and math.isnan(first.table["a"]["none"].mean)
    folder = tmp_path / "made-up" / "quick"
    stored = (folder / "result.json").read_text()
    assert json.loads(stored)["table"]["a"]["none"]["mean"] is None
    for name in ("table.csv", "figure.png", "figure.pdf"):
        assert (folder / name).stat().st_size > 100
    # More seeds: only theirs are run. The result comes again from the directories, and from nothing else.
    reproduce(recipe, seeds=3, out=tmp_path)
    assert ran[4:] == [("a", 2), ("b", 2)]
    reproduce(recipe, seeds=2, out=tmp_path)
    assert len(ran) == 6 and (folder / "result.json").read_text() == stored
    with RunWriter(folder / "b-s0", load_run(folder / "b-s0").config, resume=True) as writer:
        writer.set_evaluation({"x": -50.0, "rank": {"rank": 1, "lo": 1, "hi": 1}, "train_accuracy": 1.0})
    changed = recompute(folder, lambda name: recipe)
    assert len(ran) == 6 and changed.table["b"]["x"].mean == -22.0 and changed.verdict == OPEN
    page = (tmp_path / "index.html").read_text()
    assert "x &lt;rises&gt;" in page and "data:image/png;base64," in page and "not-conclusive" in page
    assert "http://" not in page and "https://" not in page


def test_an_interrupted_job_is_run_again_and_a_foreign_run_is_refused(tmp_path):
    recipe, ran = made_up()
    job = plan_jobs(recipe, "quick", 1, tmp_path)[0]
    RunWriter(job.path, recipe_facts(job)).close(finished=False)
    with pytest.raises(InputError, match="path: expected a directory that holds no run"):
        reproduce(recipe, seeds=1, out=tmp_path)  # this recipe's `run` does not resume: it was asked to
    assert ran == [("a", 0)]
    other, _ = made_up(scales={"quick": Scale({"a": {"x": 2}, "b": {"x": 5}}, 3, "nothing")})
    with pytest.raises(InputError, match=r"out: .*this recipe's settings \(a\)"):
        reproduce(other, seeds=1, out=tmp_path)
    with pytest.raises(RuntimeError, match="left 2 runs unfinished"):
        reproduce(replace(recipe, run=lambda jobs, device: None), seeds=[3], out=tmp_path)


def test_what_was_changed_after_a_first_look_is_marked(tmp_path):
    plain, _ = made_up(name="plain")
    changed, _ = made_up(revised="The rule was <other>.")
    for recipe in (plain, changed):
        reproduce(recipe, seeds=2, out=tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("Changed after a first look.") == 1 and "The rule was &lt;other&gt;." in page
    summary = {row.split("#")[1].split('"')[0]: "*" in row for row in page.split("<tr>") if 'href="#' in row}
    assert summary == {"made-up-quick": True, "plain-quick": False}
    revised = {name for name in FILES if find_recipe(name).revised}
    of_rules = {"logits-norm", "vgg-norm", "ufm-codes", "mse", "gradient-rank"}
    of_seeds = {"temperature-sweep", "orthodev", "ood-detection", "alignment", "init-norm"}
    assert revised == of_rules | of_seeds


def test_wrong_arguments_are_named(tmp_path):
    recipe, _ = made_up()
    with pytest.raises(InputError, match="scale: expected one of quick for made-up, got 'full'"):
        reproduce(recipe, "full", out=tmp_path)
    for seeds in (0, -1, [], [-1], [0.5], ["a"], 3.0):
        with pytest.raises(InputError, match="seeds: expected at least one"):
            reproduce(recipe, seeds=seeds, out=tmp_path)
    with pytest.raises(InputError, match="did you mean softmax-rank"):
        find_recipe("softmax")
    with pytest.raises(InputError, match="a recipe's directory"):
        recompute(tmp_path, find_recipe)


def test_what_did_not_train_is_said_and_judges_nothing(tmp_path):
    recipe, _ = made_up(scales={"quick": Scale({"a": {"x": 1}, "b": {"x": 5, "accuracy": 0.5}}, 3, "nothing")})
    result = reproduce(recipe, out=tmp_path)
    assert result.verdict == OPEN and result.effects[0].lo > 0
    assert result.notes == ("b did not train: train accuracy 50% in 3 of 3 seeds",) == (result.effects[0].spoiled,)


@pytest.mark.parametrize(
    ("claimed", "lo", "hi", "margin", "verdict"),
    [
        (">", 0.1, 2, 0, HELD), ("<", -2, -0.1, 0, HELD), (">", -1, 2, 0, OPEN), ("<", -1, 2, 0, OPEN),
        (">", -2, -1, 0, NOT_HELD), ("<", 1, 2, 0, NOT_HELD), (">", 0, 0, 0, NOT_HELD), (">", 0, 1, 0, OPEN),
        (">", -1, 0.4, 0.5, NOT_HELD), (">", 0.1, 0.4, 0.5, NOT_HELD), (">", 0.1, 0.6, 0.5, HELD),
        (">", math.nan, math.nan, 0, OPEN), (">", 1, math.inf, 0, OPEN),
    ],
)  # fmt: skip
def test_verdict_of_an_effect(claimed, lo, hi, margin, verdict):
    effect = Effect("e", claimed, (lo + hi) / 2, lo, hi, 3, "t", margin=margin)
    assert effect.verdict == verdict
    assert replace(effect, spoiled="did not train").verdict == OPEN
    assert replace(effect, lo=lo + 8, hi=hi + 8, null=8.0).verdict == verdict


def test_verdict_of_a_claim():
    held, not_held = Effect("h", ">", 1, 0.5, 2, 3, "t"), Effect("n", ">", -1, -2, -0.5, 3, "t")
    unsure = Effect("u", ">", 0, -1, 1, 3, "t")
    assert [decide(e) for e in ([], [held], [held, unsure], [unsure, not_held])] == [OPEN, HELD, OPEN, NOT_HELD]
    assert decide([held, replace(not_held, counts=False)]) == HELD
    assert decide([replace(held, counts=False)]) == OPEN


def test_intervals_against_textbook_values(tmp_path):
    mean, lo, hi = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2 and hi - mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6) and lo == pytest.approx(4 - hi)
    assert mean_interval([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])[2] == pytest.approx(hi + 0.5)
    assert all(math.isnan(x) for x in mean_interval([1.0])[1:])
    assert all(math.isnan(x) for x in mean_interval([1.0, math.nan])[1:])
    share = proportion("p", ">", 10, 10, 0.5)
    assert share.lo == pytest.approx(0.025**0.1) and share.hi == 1  # all of n: lo^n = 2.5 %
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    r = correlation("r", ">", x, x + rng.normal(size=50))
    z, reach = math.atanh(r.value), 1.959964 / math.sqrt(47)
    assert (r.lo, r.hi) == pytest.approx((math.tanh(z - reach), math.tanh(z + reach)), rel=1e-5)
    assert correlation("r", ">", [1, 2, 3], [1, 2, 3]).verdict == OPEN
    # y = 4 x + the seed's own level: the slope has no spread over seeds, whatever the levels are.
    recipe, _ = made_up(effects=lambda study: [slope(study, "x", [0, 1], ("a", "b"), ">", "unit"),
                                               slope(study, "rank", [0, 1], ("a", "b"), ">", "unit")])  # fmt: skip
    by_x, by_rank = reproduce(recipe, out=tmp_path).effects
    assert (by_x.lo, by_x.value, by_x.hi) == pytest.approx((4, 4, 4))
    assert (by_rank.lo, by_rank.value, by_rank.hi) == pytest.approx((38, 40, 42))  # each rank is known to within 1


def test_a_recipe_from_the_command_line(monkeypatch, capsys, tmp_path):
    cli = pytest.importorskip("fastrank.cli")

    def fastrank(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastrank", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out + captured.err

    code, text = fastrank("reproduce", "softmax-rank", "--smoke", "--out", tmp_path)
    assert code == 0 and "softmax-rank: " in text and str(tmp_path / "index.html") in text.replace("\n", "")
    before = (tmp_path / "softmax-rank" / "smoke" / "result.json").read_bytes()
    assert fastrank("report", tmp_path / "softmax-rank" / "smoke")[0] == 0
    assert (tmp_path / "softmax-rank" / "smoke" / "result.json").read_bytes() == before
    code, text = fastrank("reproduce", "--list")
    assert code == 0 and "softmax-rank" in text
    assert fastrank("reproduce")[0] == 2 and fastrank("reproduce", "softmax-rank", "--quick", "--full")[0] == 2
