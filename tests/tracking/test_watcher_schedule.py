"""When the watcher measures: schedules, a budget of time, and that no other step pays for anything."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from watched_loop import Records, assert_same, by_hand, small_batches, small_net

import fastrank
from fastrank import InputError
from fastrank.capture import INPUT_ROWS, MAX_FEATURES
from fastrank.tracking.budget import CALIBRATION, HORIZON, LEVELS, Budget, parse_budget
from fastrank.tracking.schedule import describe, parse_schedule


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (3, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        ("linear:10", [0, 10, 20]),
        ("7", [0, 7, 14, 21, 28]),
        ("log:4", [0, 1, 2, 3, 6, 10, 18]),
        ("epoch:10", [9, 19, 29]),
        (["log:2", "epoch:15"], [0, 1, 3, 10, 14, 29]),
        ("log:2, epoch:15", [0, 1, 3, 10, 14, 29]),
        (lambda step: step == 4, [4]),
    ],
    ids=str,
)
def test_schedules(every, steps):
    schedule = parse_schedule(every)
    assert [step for step in range(30) if schedule(step)] == steps
    if not callable(every):  # what stands in the record gives the same steps
        again = parse_schedule(describe(schedule))
        assert [step for step in range(30) if again(step)] == steps


def test_a_logarithmic_schedule_has_its_steps_in_every_decade():
    found = [step for step in range(100_000) if parse_schedule("log")(step)]
    assert [sum(10**e <= step < 10 ** (e + 1) for step in found) for e in (1, 2, 3, 4)] == [10, 10, 10, 10]


@pytest.mark.parametrize(
    "every", [0, True, 2.0, "", "log:", "log:0", "often:3", "epoch", "epoch:-1", [], [3, "x"], "3:4", int]
)
def test_mistakes_in_a_schedule_are_named(every):
    with pytest.raises(InputError, match=r"^every: expected a whole number of steps >= 1, 'log"):
        fastrank.watch(small_net(), every=every)


def test_the_figures_of_a_scheduled_step_are_those_of_tracking_every_step():
    batches, options = small_batches(8), {"metrics": ["act", "logits", "weight", "grad"]}
    whole = by_hand(small_net(), batches, **options)
    some = by_hand(small_net(), batches, every=["log:2", "epoch:4"], **options)
    assert_same(some, [record for record in whole if record[0] in (0, 1, 3, 7)])


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_off_schedule_no_module_has_a_hook_and_no_operation_runs():
    model = small_net()
    (x, y), *_ = small_batches(1)
    with fastrank.watch(model, every=10) as w, Operations() as operations:
        model(x)
        w.step()
        before = operations.count
        for _ in range(8):
            assert not w.tracking and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
            w.step(target=y, loss=1.0)
        assert operations.count == before
        w.step()
        assert w.tracking and all(m._forward_hooks for m in model.modules())


def budgeted(budget, cost, rest, steps, kinds=None, first=1.0):
    """Steps that were measured, and what was decided, where a measured step takes `cost` seconds more than `rest`."""
    measured, texts = [], []
    for step in range(steps):
        if budget.due(step):
            measured.append(step)
            text = budget.took(step, cost * (first if step == 0 else 1), rest, kinds or {"weight": 1.0})
            texts += [] if text is None else [text]
        else:
            budget.passed(rest)
    return measured, texts


@pytest.mark.parametrize(("cost", "share"), [(0.01, 0.02), (0.07, 0.02), (1.5, 0.05)])
def test_a_budget_holds_from_its_horizon_on_and_is_used(cost, share):
    budget = Budget(share)
    measured, texts = budgeted(budget, cost, 1.0, 4 * HORIZON, first=20.0)
    assert cost * (len(measured) + 19) <= share * 4 * HORIZON
    assert measured[:CALIBRATION] == list(range(CALIBRATION))
    # In the end nothing is owed: most of the budget is used, or every step is measured.
    assert measured[-1] - measured[-2] == budget.interval
    assert budget.interval == 1 or 0.6 * share < cost / budget.interval <= share
    assert len(texts) <= 8  # every change is told, and there are few


def test_a_budget_halves_samples_before_it_measures_rarely():
    budget = Budget(0.01)
    _, texts = budgeted(budget, 1.0, 1.0, 3000, kinds={"act": 0.6, "weight": 0.4})
    assert budget.level == LEVELS and sum("halved" in text for text in texts) == LEVELS
    other = Budget(0.01)
    budgeted(other, 1.0, 1.0, 3000, kinds={"act": 0.2, "weight": 0.8})
    assert other.level == 0


def test_a_budget_does_not_flip_between_two_intervals():
    budget, texts = Budget(0.02), []
    for step in range(5000):
        if budget.due(step):
            text = budget.took(step, 0.1 if step % 2 else 0.099, 1.0, {"weight": 1.0})
            texts += [] if text is None else [text]
        else:
            budget.passed(1.0)
    assert len(texts) <= 4


@pytest.mark.parametrize(("given", "share"), [("2%", 0.02), (0.02, 0.02), ("0.5 %", 0.005), ("0.02", 0.02)])
def test_budgets_are_shares(given, share):
    assert parse_budget(given) == pytest.approx(share)


@pytest.mark.parametrize("given", [0, "0%", -0.1, "much", True, "nan", [1]])
def test_mistakes_in_a_budget_are_named(given):
    with pytest.raises(InputError, match=r"^budget: expected a share of a training step such as 5%, got "):
        fastrank.watch(small_net(), budget=given)


@pytest.mark.parametrize("given", [2, "2", 1.0])
def test_a_budget_that_may_mean_per_cent_or_times_is_asked_about(given):
    with pytest.raises(InputError, match=r"^budget: expected a share below 1, or a percentage, got .*; \d% or \d00%"):
        parse_budget(given)
    assert parse_budget("200%") == 2


def test_the_watcher_keeps_to_its_budget_and_records_what_it_did(monkeypatch):
    """On a clock of our own: a measured step costs 0.3 of the others."""
    import fastrank.tracking.costs as costs

    clock = iter(range(10**9))
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock) * 1e-3)
    model, records = small_net(), Records()
    with fastrank.watch(model, log=records, budget="5%", metrics=["act"]) as w:
        for x, _ in small_batches(60) * 2:
            model(x)
            for _ in range(40):
                next(clock)
            w.step()
    assert 1 < len(records) < 60
    intervals = [scalars["budget/interval"] for _, scalars, _ in records]
    assert intervals[0] == 1 and intervals[-1] > 1
    told = [text for _, key, text in records.notes if key == "budget"]
    assert told and all("a measured step takes" in text for text in told)
    level = sum("halved" in text for text in told)
    assert records[-1][1]["budget/features"] == MAX_FEATURES >> level
    assert records[-1][1]["budget/rows"] == INPUT_ROWS >> level


def test_a_resumed_budget_goes_on_from_its_decision():
    budget = Budget(0.02)
    budgeted(budget, 0.1, 1.0, 500)
    again = Budget(0.02)
    again.load_state_dict(budget.state_dict())
    for step in range(500, 700):
        assert again.due(step) == budget.due(step)
        for one in (budget, again):
            one.took(step, 0.1, 1.0, {"weight": 1.0}) if one.due(step) else one.passed(1.0)
    assert again.state_dict() == budget.state_dict()
