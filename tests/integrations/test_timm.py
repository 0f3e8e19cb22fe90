"""timm's tasks under `watch_task`: the figures of a loop by hand, and a training that does not feel it."""

import pytest
import torch
from torch import nn
from watched_loop import Records, assert_same, by_hand, run_example, small_batches, small_net

timm = pytest.importorskip("timm", reason="needs timm: pip install 'fastrank[train]'")
from timm.task import ClassificationTask  # noqa: E402

import fastrank.integrations.timm as adapter  # noqa: E402
from fastrank.integrations.timm import watch_task  # noqa: E402
from fastrank.record import load_run  # noqa: E402


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(task, optimizer, batches, accumulate=1):
    """The parts of timm's train_one_epoch that touch the model."""
    task.train()
    for number, (x, y) in enumerate(batches, 1):
        loss = task(x, y)["loss"] / accumulate
        loss.backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(("accumulate", "every"), [(1, 1), (2, 1), (1, 2)])
def test_figures_are_those_of_a_loop_by_hand(accumulate, every):
    batches, options = (
        small_batches(6),
        {"every": every, "metrics": ["act", "logits", "weight", "grad", "align", "bound"]},
    )
    expected = by_hand(small_net(), batches, accumulate, **options)
    model, found = small_net(), Records()
    task, optimizer = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False), sgd(model)
    with watch_task(task, optimizer, log=found, **options):
        train(task, optimizer, batches, accumulate)
    assert_same(found, expected, but=("cost/", "train/lr"))
    assert found[0][1]["train/lr"] == 0.1


def test_a_validation_in_between_leaves_the_figures():
    batches = small_batches(4)
    expected = by_hand(small_net(), batches)
    model, found = small_net(), Records()
    task, optimizer = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False), sgd(model)
    with watch_task(task, optimizer, log=found):
        for batch in batches:
            train(task, optimizer, [batch])
            task.eval()
            task.get_eval_model()(batches[0][0])
    assert_same(found, expected, but=("cost/", "train/lr"))


def test_a_forward_in_evaluation_mode_before_the_step_leaves_the_figures():
    batches = small_batches(2)
    expected = by_hand(small_net(), batches)
    model, found = small_net(), Records()
    task, optimizer = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False), sgd(model)
    with watch_task(task, optimizer, log=found):
        for x, y in batches:
            task.train()
            task(x, y)["loss"].backward()
            task.eval()
            task(x + 1, y)
            optimizer.step()
            optimizer.zero_grad()
    assert_same(found, expected, but=("cost/", "train/lr"))


def test_a_resumed_training_goes_on_in_figures_and_run(tmp_path):
    batches = small_batches(6)
    expected = by_hand(small_net(), batches)
    model = small_net()
    task, optimizer = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False), sgd(model)
    with watch_task(task, optimizer, log=tmp_path / "run", config={"note": "first"}) as first:
        train(task, optimizer, batches[:3])
        saved = torch.save(first.state_dict(), tmp_path / "state.pt") or torch.load(tmp_path / "state.pt")
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        momentum = {**optimizer.state_dict()}
        momentum["state"] = {k: {n: t.clone() for n, t in s.items()} for k, s in momentum["state"].items()}
        train(task, optimizer, batches[3:4])  # beyond the checkpoint: replaced by the resumed training
    again = small_net()
    again.load_state_dict(weights)
    task, optimizer, tail = ClassificationTask(again, nn.CrossEntropyLoss(), verbose=False), sgd(again), Records()
    optimizer.load_state_dict(momentum)
    with watch_task(task, optimizer, log=[tmp_path / "run", tail], state=saved, config={"note": "second"}):
        train(task, optimizer, batches[3:])
    assert_same(tail, expected[3:], but=("cost/", "train/lr"))
    run = load_run(tmp_path / "run")
    assert run.status == "finished" and run.steps.tolist() == list(range(6))
    assert run.series("logits/norm")[1].tolist() == [scalars["logits/norm"] for _, scalars, _ in expected]
    assert run.config["note"] == "second" and run.config["watch"]["layers"] == ["0", "1", "2", "3", "4"]


def test_mixed_targets_have_a_loss_and_no_accuracy():
    model, found = small_net(), Records()
    task, optimizer = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False), sgd(model)
    x, y = small_batches(1)[0]
    with watch_task(task, optimizer, log=found, metrics="light"):
        train(task, optimizer, [(x, nn.functional.one_hot(y, 5) * 0.9 + 0.02)])
    assert "train/accuracy" not in found[0][1] and found[0][1]["train/loss"] > 0


def test_hooks_are_gone_and_training_is_the_same_after_a_failure(monkeypatch):
    batches = small_batches(4)
    plain, model, found = small_net(), small_net(), Records()
    task = ClassificationTask(plain, nn.CrossEntropyLoss(), verbose=False)
    train(task, sgd(plain), batches)
    task, optimizer = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False), sgd(model)
    with watch_task(task, optimizer, log=found) as tracking:
        train(task, optimizer, batches[:2])
        monkeypatch.setattr(tracking.watcher, "step", lambda *a, **k: 1 / 0)
        with pytest.warns(RuntimeWarning, match="no longer watching: division by zero"):
            train(task, optimizer, batches[2:])
        assert tracking.watcher is None and tracking.state_dict() is None
    assert len(found) == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in task.modules())
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_model_that_the_loop_does_not_call_is_said_once():
    model, other = small_net(), small_net()
    optimizer = sgd(model)
    with watch_task(other, optimizer), pytest.warns(RuntimeWarning, match="one that did not run"):
        for x, y in small_batches(2):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def test_the_example_runs(tmp_path, monkeypatch):
    run_example(adapter, tmp_path, monkeypatch)
    run = load_run("runs/timm")
    assert run.status == "finished" and len(run.steps) == 2 and "logits/rank" in run.keys
