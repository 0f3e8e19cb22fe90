"""Settings: ranges, schedules, names, and the paper's presets."""

import math

import pytest

from fastrank.errors import InputError
from fastrank.train.config import TrainConfig
from fastrank.train.presets import PRESETS, preset_fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0), ("temperature", -1.0), ("temperature", math.nan), ("temperature", math.inf),
        ("lr", 0.0), ("lr", math.nan), ("momentum", 1.0), ("weight_decay", -1e-4), ("epochs", 0), ("batch_size", 0),
        ("every", 0), ("seed", -1), ("image_size", 0), ("samples_per_class", 0), ("optimizer", "lion"),
        ("schedule", "linear"), ("augment", "mixup"), ("track", "all"), ("warmup_epochs", 11.0),
        ("milestones", (5, 3)), ("gamma", 0.0), ("every", "logs"), ("every", [2]), ("budget", "2"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(InputError, match=f"^{field}: expected"):
        TrainConfig(**{field: value})


def test_schedules_are_those_of_watch_in_one_form():
    assert [TrainConfig(every=e).every for e in (3, "3", "log", "log,epoch:4")] == [3, 3, "log:10", "log:10, epoch:4"]
    assert TrainConfig(every="4").difference({**vars(TrainConfig()), "every": 4}) is None
    assert TrainConfig(budget="2%").budget == "2%"
    with pytest.raises(InputError, match=r"^budget: expected none with --track off"):
        TrainConfig(budget="2%", track="off")


def test_names_are_readable_and_safe():
    assert TrainConfig(temperature=100.0).name == "glyphs-resnet18-T100-s0"
    assert TrainConfig(data="folder:/data/my set/", model="a/b", temperature=0.5, seed=3).name == "my_set-a_b-T0.5-s3"


def test_learning_rate_of_each_schedule():
    cosine = TrainConfig(lr=1.0, epochs=10, warmup_epochs=1.0)
    assert [cosine.learning_rate(step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine.learning_rate(4, 4) == 1.0
    assert cosine.learning_rate(4 + 18, 4) == pytest.approx(0.5)
    assert 0 < cosine.learning_rate(39, 4) < 0.01
    steps = TrainConfig(lr=1.0, epochs=10, schedule="steps", milestones=(2, 5), gamma=0.1)
    rates = [steps.learning_rate(step, 4) for step in (7, 8, 19, 20)]
    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert TrainConfig(lr=0.3, schedule="constant").learning_rate(1000, 4) == 0.3


# Table 4 of arXiv 2506.01562, column by column: lr, momentum, weight decay, epochs, batch, milestones, gamma.
TABLE_4 = {
    "paper-vgg": (0.1, 0.9, 1e-4, 160, 128, (80, 120), 0.1),
    "paper-resnet": (0.1, 0.9, 1e-4, 164, 128, (82, 123), 0.1),
    "paper-mlp": (0.05, 0.0, 0.0, 100, 128, (), None),
    "paper-imagenet": (1.6, 0.9, 1e-4, 120, 1024, (30, 60, 90), 0.1),
}


@pytest.mark.parametrize("name", TABLE_4)
def test_presets_are_the_papers_table(name):
    config = TrainConfig(**preset_fields(name))
    lr, momentum, weight_decay, epochs, batch, milestones, gamma = TABLE_4[name]
    assert (config.optimizer, config.lr, config.momentum, config.weight_decay) == ("sgd", lr, momentum, weight_decay)
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (epochs, batch, 0)
    assert config.augment == ("imagenet" if name == "paper-imagenet" else "cifar")
    expected = [lr * (gamma or 1) ** sum(epoch >= m for m in milestones) for epoch in range(epochs)]
    assert [config.learning_rate(7 * epoch, 7) for epoch in range(epochs)] == pytest.approx(expected)


def test_every_preset_is_valid_and_a_typo_is_answered():
    for name in PRESETS:
        TrainConfig(**preset_fields(name))
    with pytest.raises(InputError, match="did you mean paper-resnet"):
        preset_fields("paper_resnet")


def test_difference_names_the_first_field_that_differs():
    from dataclasses import asdict

    stored = asdict(TrainConfig())
    assert TrainConfig().difference(stored) is None
    assert TrainConfig(lr=0.2).difference(stored) == "lr"
    del stored["gamma"]  # stored by a version that had no such field: what it did is now the default
    assert TrainConfig().difference(stored) is None
    assert TrainConfig(gamma=0.5).difference(stored) == "gamma"
