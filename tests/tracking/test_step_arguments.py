"""What a step is given, and what a model's output holds: logits in every layout, beside a loss, and what is none."""

import pytest
import torch
from torch import nn

import fastrank
from fastrank.hooks import find_logits
from fastrank.tracking.step_arguments import TOKEN_ROWS, class_rows


class WithLoss(nn.Module):
    """Gives what models give that are handed the targets too."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), kind

    def forward(self, x, y):
        z = self.net(x)
        loss = nn.functional.cross_entropy(z, y)
        if self.kind == "dict":
            return {"loss": loss, "hidden": x, "logits": z}
        return (loss, z) if self.kind == "tuple" else loss


@pytest.mark.parametrize(("kind", "compiled"), [("tuple", False), ("dict", False), ("loss", False), ("dict", True)])
def test_a_loss_beside_the_logits_is_not_taken_for_them(kind, compiled):
    torch.manual_seed(0)
    model = WithLoss(kind)
    run = torch.compile(model, backend="eager") if compiled else model
    x, y = torch.randn(9, 6), torch.randint(4, (9,))
    with fastrank.watch(run, metrics="light") as w:
        for _ in range(2):
            run(x, y)
            w.step(target=y)
    with torch.no_grad():
        z = model.net(x)
    if kind == "loss":
        assert not any(key.startswith(("logits", "train")) for key in w.latest)
    else:
        assert w.latest["logits/norm"] == pytest.approx(float(z.double().norm()), rel=1e-6)
        assert w.latest["train/accuracy"] == pytest.approx(float((z.argmax(1) == y).double().mean()))


def test_logits_are_found_where_models_put_them():
    z, loss, tokens = torch.randn(3, 4), torch.tensor(0.5), torch.ones(3, 4, dtype=torch.long)
    assert find_logits((loss, tokens, z)) is z
    assert find_logits({"loss": loss, "hidden": [torch.randn(2, 2)], "logits": z}) is z
    assert find_logits({"loss": loss, "out": (None, z)}) is z
    assert all(find_logits(output) is None for output in (loss, (loss, tokens), {}, None, torch.randn(3)))


@pytest.mark.parametrize("layout", ["classes second", "tokens"])
def test_a_target_tells_where_the_classes_are(layout):
    z, y = torch.randn(2, 5, 7), torch.arange(10).reshape(2, 5)
    given = z if layout == "tokens" else z.movedim(-1, 1)
    rows, classes = class_rows(given, y)
    assert torch.equal(rows, z.reshape(10, 7)) and classes.tolist() == list(range(10))
    # Without a target three dimensions are tokens, four an image.
    assert class_rows(given, None)[0].shape[1] == given.shape[-1]
    assert class_rows(torch.randn(2, 3, 4, 5), None)[0].shape == (40, 3)
    # Where both would do it is the layout of nn.CrossEntropyLoss.
    assert torch.equal(class_rows(z[:, :, :5], y)[0], z[:, :, :5].movedim(1, -1).reshape(10, 5))


def test_token_logits_are_thinned_out_evenly_with_their_targets():
    z, y = torch.arange(3 * 1000 * 2.0).reshape(3, 1000, 2), torch.arange(3000).reshape(3, 1000)
    rows, classes = class_rows(z, y)
    assert rows.shape[0] <= TOKEN_ROWS < 3000 and rows.shape[1] == 2
    assert rows[:, 0].diff().unique().tolist() == [6.0] and torch.equal(rows[:, 0] / 2, classes.float())
    assert class_rows(z[:, :300], None)[0].shape == (900, 2) and class_rows(z[:0], None)[0].shape == (0, 2)


def test_padding_has_no_accuracy():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    z = 2 * torch.eye(4)
    with fastrank.watch(model, metrics="light") as w:
        model(torch.randn(4, 6))
        w.step(logits=z, target=torch.tensor([0, 3, -100, -100]))
        assert w.latest["train/accuracy"] == 0.5
        model(torch.randn(4, 6))
        w.step(logits=z, target=torch.full((4,), -100))
        assert w.latest["train/accuracy"] != w.latest["train/accuracy"]  # NaN: of none
