import copy

import pytest
import torch
from torch import nn

from fastrank import FusedLinearTemperedCE, TemperedCE, TemperedMSE, tempered_cross_entropy, tempered_mse


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator).requires_grad_(), torch.randint(4, (6,), generator=generator)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"ignore_index": 2},
        {"weight": torch.tensor([1.0, 2.0, 3.0, 0.5]), "label_smoothing": 0.1},
    ],
    ids=str,
)
def test_replaces_cross_entropy_loss(batch, options):
    logits, target = batch
    torch.testing.assert_close(TemperedCE(**options)(logits, target), nn.CrossEntropyLoss(**options)(logits, target))
    torch.testing.assert_close(
        TemperedCE(T=20.0, **options)(logits, target), nn.CrossEntropyLoss(**options)(logits / 20, target)
    )


def test_a_schedule_changes_the_temperature_in_place(batch):
    criterion = TemperedCE(T=torch.tensor(1.0))
    criterion.T.fill_(50.0)
    assert torch.equal(criterion(*batch), tempered_cross_entropy(*batch, 50.0))


def test_state_holds_temperature_and_weight(batch):
    criterion = TemperedCE(T=torch.tensor(7.0), weight=torch.rand(4))
    other = TemperedCE(T=torch.tensor(1.0), weight=torch.ones(4))
    other.load_state_dict(copy.deepcopy(criterion.state_dict()))
    assert torch.equal(other(*batch), criterion(*batch))


def test_a_learnt_temperature_is_a_parameter(batch):
    criterion = TemperedCE(T=nn.Parameter(torch.tensor(2.0)))
    criterion(*batch).backward()
    T = criterion.T.detach().clone().requires_grad_()
    nn.functional.cross_entropy(batch[0] / T, batch[1]).backward()
    assert [name for name, _ in criterion.named_parameters()] == ["T"]
    torch.testing.assert_close(criterion.T.grad, T.grad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T": 0}, "T: expected a finite temperature > 0, got 0"),
        ({"T": float("nan")}, "T: expected a finite temperature > 0, got nan"),
        ({"reduction": "average"}, "reduction: expected one of"),
        ({"label_smoothing": -0.1}, "label_smoothing: expected a number in"),
        ({"T": torch.ones(10)}, r"T: expected a number or a 0-d tensor, got shape \(10,\); class weights are `weight`"),
    ],
)
def test_refuses_bad_arguments_when_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        TemperedCE(**arguments)


def test_shows_its_settings():
    assert repr(TemperedCE(T=100)) == "TemperedCE(T=100, reduction='mean')"
    assert "T=3.0" in repr(TemperedCE(T=torch.tensor(3.0)))


def test_mixed_targets_are_those_of_mixup(batch):
    logits, target = batch
    other = target.roll(1)
    probabilities = 0.3 * nn.functional.one_hot(target, 4) + 0.7 * nn.functional.one_hot(other, 4)
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(logits / 5, probabilities)
    torch.testing.assert_close(TemperedCE(T=5.0, label_smoothing=0.1)(logits, (target, other, 0.3)), expected)


def test_a_scaled_gradient_and_statistics(batch):
    logits, target = batch
    loss, stats = TemperedCE(T=10.0, scale_gradient="T2", return_stats=True)(logits, target)
    plain = TemperedCE(T=10.0)(logits, target)
    assert torch.equal(loss, plain) and stats.target_rank.shape == target.shape
    scaled, grad = (torch.autograd.grad(value, logits)[0] for value in (loss, plain))
    torch.testing.assert_close(scaled, 100 * grad)


def test_a_linear_classifier_without_its_logits(batch):
    features, target = batch
    head = nn.Linear(4, 4)
    fused = FusedLinearTemperedCE(T=3.0)(features, head.weight, target, head.bias)
    torch.testing.assert_close(fused, TemperedCE(T=3.0)(head(features), target))


def test_squared_error_replaces_mse_loss_of_the_softmax(batch):
    logits, target = batch
    one_hot = nn.functional.one_hot(target, 4).float()
    expected = nn.MSELoss()((logits / 20).softmax(1), one_hot)
    torch.testing.assert_close(TemperedMSE(T=20.0)(logits, target), expected)
    torch.testing.assert_close(TemperedMSE(T=20.0)(logits, one_hot), expected)
    options = {"weight": torch.rand(4), "ignore_index": 2, "reduction": "sum", "label_smoothing": 0.1}
    loss = TemperedMSE(20.0, **options, scale_gradient="T")(logits, target)
    assert torch.equal(loss, tempered_mse(logits, target, 20.0, **options))
    assert repr(TemperedMSE(T=100)) == "TemperedMSE(T=100, reduction='mean')"


def test_squared_error_takes_a_temperature_that_is_learnt(batch):
    criterion = TemperedMSE(T=nn.Parameter(torch.tensor(2.0)))
    criterion(*batch).backward()
    T = torch.tensor(2.0, requires_grad=True)
    one_hot = nn.functional.one_hot(batch[1], 4).float()
    nn.functional.mse_loss((batch[0] / T).softmax(1), one_hot).backward()
    torch.testing.assert_close(criterion.T.grad, T.grad)
