"""Temperature schedules in place, and calibration to the first logits' norm."""

import math

import pytest
import torch
from torch import nn

import fastrank
from fastrank import TemperatureSchedule, TemperedCE, calibrate_temperature, logits_norm
from fastrank.errors import InputError
from fastrank.temperature import constant, cosine, linear


def test_curves_reach_their_ends_and_stay():
    line, half = linear(100, 20, 8), cosine(100, 20, 8)
    assert [line(s) for s in (0, 2, 4, 8, 9, 10**9)] == [100, 80, 60, 20, 20, 20]
    assert [half(s) for s in (0, 4, 8, 50)] == pytest.approx([100, 60, 20, 20])
    assert half(2) == pytest.approx(20 + 80 * (1 + math.cos(math.pi / 4)) / 2)
    joined = constant(5, steps=3) + line + constant(7)
    assert [joined(s) for s in (0, 2, 3, 5, 10, 11, 99)] == [5, 5, 100, 80, 30, 7, 7]
    assert joined.steps == math.inf


def test_the_schedule_changes_the_loss_in_place():
    criterion = TemperedCE(T=torch.tensor(1.0))
    schedule = TemperatureSchedule(criterion, linear(100, 1, 4))
    held = criterion.T
    logits, target = torch.randn(8, 5), torch.randint(5, (8,))
    for T in (100, 75.25, 50.5, 25.75, 1, 1):
        assert schedule.value == T
        torch.testing.assert_close(criterion(logits, target), nn.functional.cross_entropy(logits / T, target))
        schedule.step()
    assert criterion.T is held
    state = schedule.state_dict()
    other = TemperatureSchedule(TemperedCE(T=torch.tensor(1.0)), lambda step: 2.0 + step)
    other.load_state_dict(state)
    assert other.value == 8 and float(other._criterion.T) == 8
    moved = TemperedCE(T=torch.tensor(1.0))
    schedule = TemperatureSchedule(moved, linear(4, 2, 2))
    moved.double()  # replaces the buffer, as `.to(device)` does
    schedule.step()
    assert moved.T.dtype == torch.float64 and float(moved.T) == 3
    learnt = TemperedCE(T=nn.Parameter(torch.tensor(1.0)))
    TemperatureSchedule(learnt, constant(3))
    assert float(learnt.T.detach()) == 3 and learnt.T.requires_grad


def test_the_schedule_compiles_once():
    criterion = TemperedCE(T=torch.tensor(1.0))
    schedule = TemperatureSchedule(criterion, linear(100, 1, 5))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(criterion, backend=backend, fullgraph=True)
    logits, target = torch.randn(8, 5), torch.randint(5, (8,))
    for _ in range(5):
        torch.testing.assert_close(step(logits, target), criterion(logits, target))
        schedule.step()
    assert len(graphs) == 1


def network(scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))
    with torch.no_grad():
        model[3].weight *= scale
        model[3].bias *= scale
    return model


def test_norm_is_what_a_training_step_sees_and_leaves_no_trace():
    model = network().eval()
    model[2].train()  # a mode of its own
    batches = [(torch.randn(20, 6) + 3, torch.zeros(20)) for _ in range(3)]
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    norm = logits_norm(model, batches)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == [False, False, False, True, False]
    seen = torch.cat([model.train()(x).detach() for x, _ in batches])  # the same draws of dropout follow
    assert norm == pytest.approx(float(seen.double().norm() / math.sqrt(60)), rel=1e-6)
    assert logits_norm(model, (x for x, _ in batches), batches=1) != norm


def test_calibration_gives_the_norm_asked_for():
    model = network()
    batches = [torch.randn(50, 6) for _ in range(2)]
    T = calibrate_temperature(model, batches, norm=0.01)
    assert logits_norm(model, batches) / T == pytest.approx(0.01)
    assert calibrate_temperature(network(10.0), iter(batches), norm=network()) == pytest.approx(10, rel=1e-5)


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r"criterion: expected a loss whose T is a 0-d tensor, got 2\.0"):
        TemperatureSchedule(TemperedCE(T=2.0), constant(1))
    with pytest.raises(InputError, match=r"curve: expected a finite temperature > 0, got -1\.0"):
        TemperatureSchedule(TemperedCE(T=torch.tensor(1.0)), lambda step: -1.0)
    schedule = TemperatureSchedule(TemperedCE(T=torch.tensor(1.0)), linear(4, 2, 2))
    schedule.step()
    for state in ({}, None, {"step": -1}, {"step": 1.5}, {"step": "1"}, {"steps": 3}):
        with pytest.raises(InputError, match="state: expected what state_dict"):
            schedule.load_state_dict(state)
    falling = TemperatureSchedule(TemperedCE(T=torch.tensor(1.0)), lambda step: 3.0 - step)
    with pytest.raises(InputError, match="curve: expected a finite temperature > 0, got -2"):
        falling.load_state_dict({"step": 5})
    assert (schedule.value, falling.value, falling.state_dict()) == (3, 3, {"step": 0})
    with pytest.raises(InputError, match="T: expected a finite temperature"):
        constant(0)
    with pytest.raises(InputError, match="end: expected a finite temperature"):
        linear(1, math.nan, 5)
    for steps in (0, math.inf, "x"):
        with pytest.raises(InputError, match="steps: expected"):
            cosine(1, 2, steps)
    with pytest.raises(InputError, match="every part but the last"):
        constant(1) + constant(2)
    with pytest.raises(InputError, match="at least one batch"):
        logits_norm(network(), [])
    with pytest.raises(InputError, match="finite logits"):
        logits_norm(network(), [torch.full((2, 6), math.nan)])
    for norm in (0, math.inf, network(0.0)):
        with pytest.raises(InputError, match="norm: expected a finite number > 0"):
            calibrate_temperature(network(), [torch.randn(4, 6)], norm)
    with pytest.raises(InputError, match="zeros; its last layer starts at zero"):
        fastrank.calibrate_temperature(network(0.0), [torch.randn(4, 6)], 1.0)
