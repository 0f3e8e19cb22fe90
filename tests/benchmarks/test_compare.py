"""Two saved runs: what counts as a regression, and what is noise."""

import copy

import pytest
from compare import CHANGE, CONFIRMATIONS, compare, confirm, regressions, report


def spread(median, width=0.02):
    return {"median": median, "low": median * (1 - width), "high": median * (1 + width), "samples": 20}


def run(speed, *, ours="fastrank", case="a case", **machine):
    results = {
        "torch": {"ours": False, "speed": spread(1.0), "failed": False},
        ours: {"ours": True, "speed": speed, "failed": False},
    }
    return {
        "quick": False,
        "machine": {"cpu": "one", "threads": 2} | machine,
        "benchmarks": {"gram": {"cases": {case: {"results": results, "problem": ""}}}},
    }


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (spread(2.0), spread(2.0), "same"),
        (spread(2.0), spread(1.5), "regression"),
        (spread(2.0), spread(3.0), "improvement"),
        (spread(2.0, 0.4), spread(1.5, 0.4), "same"),  # the spreads overlap
        (spread(2.0, 0.001), spread(2.0 / (1 + 0.9 * CHANGE), 0.001), "same"),  # clear, and too small to matter
        (spread(2.0, 0.001), spread(2.0 / (1 + 1.1 * CHANGE), 0.001), "regression"),
        (spread(2.0), None, "broken"),
    ],
)
def test_verdicts(before, after, verdict):
    (change,) = compare(run(before), run(after))
    assert change.verdict == verdict
    assert bool(regressions([change])) == (verdict in ("regression", "broken"))


def test_new_and_gone_are_told_and_are_no_regressions():
    new, gone = compare(run(spread(2.0), ours="old way"), run(spread(2.0), ours="new way"))
    assert (new.verdict, new.contender, gone.verdict, gone.contender) == ("new", "new way", "gone", "old way")
    assert not regressions([new, gone])
    quick = run(spread(2.0), case="another") | {"quick": True}
    assert [c.verdict for c in compare(run(spread(2.0)), quick)] == ["new"]  # left out on purpose is not gone


def test_the_report_names_what_moved_and_what_differs():
    before, after = run(spread(2.0)), run(spread(1.0), cpu="another")
    text = report(compare(before, after), before, after)
    assert "NOTE: cpu differs (one before, another now)" in text and "threads" not in text
    assert "gram: a case, fastrank  2.00x (1.96 .. 2.04) -> 1.00x (0.98 .. 1.02)  -50%" in text
    same = report(compare(before, copy.deepcopy(before)), before, before)
    assert same.startswith("1 of 1 ratios unchanged")


@pytest.mark.parametrize(("again", "verdict", "measured"), [(1.5, "regression", CONFIRMATIONS), (2.0, "same", 1)])
def test_a_regression_must_be_there_each_time_it_is_measured(again, verdict, measured):
    before, after, asked = run(spread(2.0)), run(spread(1.4)), []

    def measure_again(name, title):
        asked.append((name, title))
        return run(spread(again))["benchmarks"][name]["cases"][title]

    ((change,), _) = confirm(before, after, measure_again)
    assert after == run(spread(1.4))  # what would be saved is the first measurement
    assert change.verdict == verdict and asked == [("gram", "a case")] * measured
    assert change.after["median"] == again  # the better of the measurements stands


@pytest.mark.parametrize("again", [{"failed": True, "speed": None}, None])
def test_a_failure_when_measured_again_stays_one(again):
    after = run(spread(1.4))

    def measure_again(name, title):
        entry = run(spread(2.0))["benchmarks"][name]["cases"][title]
        results = entry["results"]
        if again is None:
            return entry | {"results": {}, "problem": "not enough memory"}
        return entry | {"results": results | {"fastrank": results["fastrank"] | again}}

    changes, confirmed = confirm(run(spread(2.0)), after, measure_again)
    assert [c.verdict for c in changes] == ["broken"] and regressions(changes)
    assert confirmed["benchmarks"]["gram"]["cases"]["a case"]["results"]["fastrank"]["failed"]
    assert after == run(spread(1.4))


@pytest.mark.parametrize("speed", [spread(1.0), spread(4.0)])
def test_a_ratio_that_moved_on_another_machine_is_not_comparable(speed):
    before, after = run(spread(2.0)), run(speed, cpu="another")
    changes, _ = confirm(before, after, lambda name, title: pytest.fail("measured again"))
    assert [c.verdict for c in changes] == ["not comparable"] and not regressions(changes)
    assert "\nnot comparable gram: a case, fastrank" in report(changes, before, after)
    assert [c.verdict for c in compare(before, run(speed, threads=1))] != ["not comparable"]  # the same machine
