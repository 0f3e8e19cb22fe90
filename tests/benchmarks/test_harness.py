"""The harness: who is judged, who fails a run, and in which turns contenders are timed."""

import math
from dataclasses import replace

import harness
import pytest
from harness import Contender, Problem, Spread, measure
from table import table


def problem(**contenders):
    return Problem(contenders, "unit")


def right(name="x", log=None, **options):
    return Contender(lambda: log.append(name) if log is not None else None, lambda result: 0.0, 1e-6, **options)


def test_a_wrong_answer_fails_the_run_and_is_not_timed():
    wrong = replace(right(ours=True), error=lambda result: 1.0)
    for contender in (wrong, replace(wrong, error=lambda result: math.nan), replace(wrong, ours=False)):
        outcomes = measure(problem(base=right(), other=contender), "cpu", 0.01)
        assert outcomes["other"].failed and outcomes["other"].seconds is None
        assert "above 1.0e-06" in outcomes["other"].problem and outcomes["base"].seconds
        assert "wrong: error" in table(outcomes)


def test_who_promises_nothing_is_shown_and_not_judged():
    outcomes = measure(problem(base=right(), peer=Contender(lambda: None, lambda result: 0.5)), "cpu", 0.01)
    assert not outcomes["peer"].failed and outcomes["peer"].error == 0.5 and outcomes["peer"].seconds


@pytest.mark.parametrize("ours", [True, False])
def test_an_exception_is_told_and_fails_the_run_if_it_is_ours(ours):
    def broken():
        raise RuntimeError("no kernel\nfor this")

    outcomes = measure(problem(base=right(), other=Contender(broken, lambda r: 0.0, 0.0, ours)), "cpu", 0.01)
    assert outcomes["other"].problem == "RuntimeError: no kernel for this" and outcomes["other"].failed == ours
    assert "no kernel" in table(outcomes)


def test_contenders_take_turns(monkeypatch):
    order = []
    monkeypatch.setattr(harness._CpuClock, "repeats", lambda self, run: 1)
    monkeypatch.setattr(harness._CpuClock, "sample", lambda self, run, repeats: run() or 1.0)
    measure(problem(a=right("a", order), b=right("b", order), c=right("c", order)), "cpu", 0.0)
    assert order[-3:] == ["a", "b", "c"]  # checked again
    timed = order[6:-3]  # two checked calls each
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert len(rounds) == harness.MIN_SAMPLES and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({r[0] for r in rounds}) == 3


def test_ratios_are_taken_within_a_turn(monkeypatch):
    """The machine is ten times slower in every other turn: times spread, the ratio does not."""
    turns = iter([(1, 2), (10, 20)] * 3)
    state = {}

    def sample(self, run, repeats):
        name = run()
        if name in state or not state:
            state.clear()
            state["now"] = next(turns)
        state[name] = True
        return state["now"][0 if name == "mine" else 1]

    monkeypatch.setattr(harness._CpuClock, "repeats", lambda self, run: 1)
    monkeypatch.setattr(harness._CpuClock, "sample", sample)
    contenders = {name: Contender(lambda name=name: name, lambda r: 0.0) for name in ("base", "mine")}
    outcome = measure(Problem(contenders, "unit"), "cpu", 0.0)["mine"]
    assert (outcome.speed.low, outcome.speed.median, outcome.speed.high) == (2, 2, 2)
    assert outcome.seconds.high > 2 * outcome.seconds.low


def test_a_long_call_is_timed_once_and_compilation_not_at_all(monkeypatch):
    monkeypatch.setattr(harness, "LONG", 0.0)
    calls = []
    outcomes = measure(problem(base=right("x", calls), jit=right("y", calls, compiles=True)), "cpu", 0.01)
    assert calls == ["x", "y", "y"] and outcomes["base"].seconds.samples == 1
    assert "one sample" in table(outcomes)


def test_few_values_have_their_extremes_for_quartiles():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]).samples == 5


@pytest.mark.parametrize("raises", [False, True])
def test_an_answer_that_goes_wrong_while_it_is_timed_fails_the_run(raises):
    calls = []

    def error(result):
        if raises and len(calls) > 2:
            raise RuntimeError("gone")
        return 0.0 if len(calls) == 2 else 1.0

    drifting = Contender(lambda: calls.append(1), error, 1e-6, ours=True)
    outcomes = measure(problem(base=right(), other=drifting), "cpu", 0.0)
    other = outcomes["other"]
    assert other.failed and other.seconds is None and other.speed is None and outcomes["base"].seconds
    assert other.problem == (
        "RuntimeError: gone" if raises else "wrong after it was timed: error 1.0e+00 above 1.0e-06"
    )
