"""The watcher where people train: precisions, accumulation, compiled graphs, checkpointing, layouts, other models."""

import copy
import gc
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from watched_loop import Records, assert_same, by_hand, small_batches, small_net

import fastrank
from fastrank import InputError


def images(n, size=8, channels=3, classes=5):
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, channels, size, size, generator=g), torch.randint(classes, (6,), generator=g)) for _ in range(n)
    ]


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 9, 5),
    )  # fmt: skip


def close(found, expected, rel):
    """The same figures up to rounding: their spectra's first values and norms, and the same keys."""
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    for (_, scalars, _), (_, wanted, _) in zip(found, expected, strict=True):
        assert {k for k in scalars if "cost/" not in k} == {k for k in wanted if "cost/" not in k}
        for key, value in wanted.items():
            if key.endswith(("frobenius", "sigma_1", "norm", "loss")):
                assert scalars[key] == pytest.approx(value, rel=rel, abs=rel), key


# ---- accumulation ----


def test_of_accumulated_gradients_the_last_forward_is_measured_and_no_other():
    model, records, counts = small_net(), Records(), []
    with fastrank.watch(model, log=records) as w:
        real, calls = w._on_source, []
        w._capture._emit = lambda kind, name, matrix: (calls.append((kind, name)), real(kind, name, matrix))
        for number, (x, y) in enumerate(small_batches(8), 1):
            nn.functional.cross_entropy(model(x), y).backward()
            if number % 4 == 0:
                w.step(target=y)
                counts.append([calls.count(key) for key in (("act", "1"), ("input", "0"), ("weight", "0"))])
                calls.clear()
    # Four forwards were not to be foreseen in the first step; from then on one is measured.
    assert counts == [[4, 4, 4], [1, 1, 4]]
    with torch.no_grad():
        last = model[:2](small_batches(8)[-1][0])
    assert records[1][1]["act/1/frobenius"] == pytest.approx(float(last.double().norm()), rel=1e-9)


def test_fewer_forwards_than_before_are_said_and_the_next_step_is_whole():
    model, records = small_net(), Records()
    with fastrank.watch(model, log=records, metrics=["act", "weight", "grad"]) as w:
        for forwards in (3, 2, 2):
            for x, y in small_batches(forwards):
                nn.functional.cross_entropy(model(x), y).backward()
            w.step()
    assert ["act/1/rank" in scalars for _, scalars, _ in records] == [True, False, True]
    assert all("weight/0/rank" in scalars and "grad/0/rank" in scalars for _, scalars, _ in records)
    said = [text for _, key, text in records.notes if key == "act"]
    assert len(said) == 1 and said[0].startswith("2 forwards in a step after one of 3")


# ---- compiled graphs ----


@pytest.fixture
def fresh_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("order", ["watched first", "compiled first", "compiled and run first", "in place", "a block"])
def test_compiled_models(order, fresh_graphs):
    options = {"metrics": ["act", "logits", "weight", "grad", "align", "bound"]}
    batches = small_batches(4)
    expected = by_hand(small_net(), batches, **options)
    model, found = small_net(), Records()
    graph = {"backend": "aot_eager" if order == "watched first" else "eager", "fullgraph": True}
    if order == "in place":
        model.compile(**graph)
        compiled = model
    elif order == "a block":
        model[2] = torch.compile(model[2], **graph)
        compiled = model
    elif order != "watched first":
        compiled = torch.compile(model, **graph)
    late = order == "compiled and run first"
    if late:
        before = copy.deepcopy(model.state_dict())
        compiled(batches[0][0]).sum().backward()
        model.load_state_dict(before)
        model.zero_grad()
    watched = model if order in ("watched first", "in place", "a block") else compiled
    with warnings.catch_warnings(record=True) as said, fastrank.watch(watched, log=found, **options) as w:
        warnings.simplefilter("always")
        if order == "watched first":
            compiled = torch.compile(model, **graph)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for x, y in batches:
            loss = nn.functional.cross_entropy(compiled(x), y)
            loss.backward()
            optimizer.step()
            w.step(target=y, loss=loss)
            optimizer.zero_grad()
    assert len([1 for one in said if "compiled before it was watched" in str(one.message)]) == late
    close(found[late:], expected[late:], rel=1e-5)
    with torch.no_grad():
        compiled(batches[0][0])  # its graph outlives the watcher


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains_to_the_same_bits_with_and_without_watch(fresh_graphs):
    def trained(watch):
        torch.compiler.reset()
        model = small_net()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.manual_seed(3)
        if not watch:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for x, y in small_batches(3):
                nn.functional.cross_entropy(compiled(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
        else:
            by_hand(compiled, small_batches(3))
        return [*model.state_dict().values(), torch.rand(2)]

    assert all(torch.equal(a, b) for a, b in zip(trained(False), trained(True), strict=True))


# ---- activation checkpointing ----


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.net, self.reentrant = small_net(), reentrant

    def forward(self, x):
        for layer in self.net:
            if self.reentrant is None:
                x = layer(x)
            else:
                x = checkpoint(layer, x.requires_grad_(), use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_forwards_that_checkpointing_repeats_are_not_counted(reentrant):
    options = {"metrics": ["act", "logits", "weight", "grad", "align", "bound"], "window": 2}
    expected = by_hand(Checkpointed(None), small_batches(4), **options)
    assert_same(by_hand(Checkpointed(reentrant), small_batches(4), **options), expected)


# ---- precision and layout ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_a_gradient_scaler(dtype):
    """Gradients after `scaler.step` are unscaled, and so are their figures."""

    def run(watch, scale):
        model, optimizer = convolutional(), None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=dtype == torch.float16)
        records = Records()
        watcher = fastrank.watch(model, log=records) if watch else None
        for x, y in images(3):
            with torch.autocast("cpu", dtype=dtype):
                loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            truth = {f"grad/{i}/frobenius": float(model[i].weight.grad.double().norm()) for i in (0, 3, 6)}
            if watcher:
                watcher.step(target=y)
                assert watcher.latest | truth == pytest.approx(watcher.latest, rel=1e-9, nan_ok=True)
            optimizer.zero_grad()
        if watcher:
            watcher.close()
        return list(model.state_dict().values()), records

    plain, _ = run(False, 1024.0)
    watched, records = run(True, 1024.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    _, other = run(True, 256.0)
    for (_, a, _), (_, b, _) in zip(records, other, strict=True):
        assert a["grad/6/frobenius"] == pytest.approx(b["grad/6/frobenius"], rel=0.05)


def test_channels_last_gives_the_same_figures():
    expected = by_hand(convolutional(), images(3))
    model = convolutional().to(memory_format=torch.channels_last)
    batches = [(x.to(memory_format=torch.channels_last), y) for x, y in images(3)]
    close(by_hand(model, batches), expected, rel=1e-5)


# ---- modules of all kinds ----


class Mixed(nn.Module):
    """A layer that runs twice, one that returns a tuple, a frozen one, and one that is not used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.unused = nn.Linear(12, 9), nn.Linear(9, 9), nn.Linear(3, 3)
        self.recurrent = nn.GRU(9, 7, batch_first=True)
        self.last = nn.Linear(7, 5)
        self.first.weight.requires_grad_(False)

    def forward(self, x):
        x = self.shared(torch.relu(self.shared(self.first(x))))
        return self.last(self.recurrent(x[:, None])[0][:, 0])


def test_shared_frozen_unused_and_tuple_modules():
    records = by_hand(Mixed(), small_batches(3), layers=["*", "recurrent"])
    for _, scalars, _ in records:
        for key in ("act/shared", "act/shared#2", "act/recurrent", "weight/first", "grad/shared", "align/shared#2"):
            assert any(name.startswith(key + "/") for name in scalars), key
        assert not any(
            name.startswith(("grad/first/", "act/unused", "act/shared#3", "grad/unused")) for name in scalars
        )


def test_data_parallel_wraps_without_a_trace():
    expected = by_hand(small_net(), small_batches(3))
    assert_same(by_hand(nn.DataParallel(small_net()), small_batches(3)), expected)


def test_an_ema_copy_is_not_watched():
    model, records = small_net(), Records()
    with fastrank.watch(model, log=records, metrics="light") as w:
        for x, y in small_batches(3):
            nn.functional.cross_entropy(model(x), y).backward()
            ema = torch.optim.swa_utils.AveragedModel(model)
            ema.update_parameters(model)
            ema.train()(x * 100)
            w.step(target=y)
    norms = by_hand(small_net(), small_batches(1), metrics="light")[0][1]["logits/norm"]
    assert records[0][1]["logits/norm"] == norms and not any("#2" in key for key in records[-1][1])


SMALL = {"img_size": 32, "num_classes": 5, "embed_dim": 24}
MODELS = {
    "VisionTransformer": ({**SMALL, "patch_size": 8, "depth": 2, "num_heads": 2}, "blocks.1.mlp.act"),
    "ConvNeXt": ({"num_classes": 5, "depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, "stages.3.blocks.0.mlp.act"),
    "MlpMixer": ({**SMALL, "patch_size": 8, "num_blocks": 2}, "blocks.1.mlp_tokens.act"),
}


@pytest.mark.parametrize("name", MODELS)
def test_timm_models(name):
    models = pytest.importorskip("timm.models", reason="needs timm: pip install 'fastrank[train]'")
    options, layer = MODELS[name]

    def net():
        torch.manual_seed(0)
        return getattr(models, name)(**options)

    batches = images(2, size=32)
    watched = net()
    records = by_hand(watched, batches, mode="channels")
    plain = net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches:
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    scalars = records[-1][1]
    assert scalars[f"act/{layer}/rank"] >= 1 and scalars["logits/rank"] > 1
    assert not any("disabled" in text for _, _, text in records.notes)
    # Convolutional, linear and attention weights alike.
    weighted = [n for n, m in net().named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(f"{kind}/{n}/rank" in scalars for n in weighted for kind in ("weight", "grad"))


def test_memory_does_not_grow():
    """Every container and tensor that Python knows, at the same point of two windows."""

    def size():
        gc.collect()
        objects = gc.get_objects()
        return len(objects), sum(sys.getsizeof(one, 0) for one in objects)

    model, sizes = small_net(), []
    x, y = small_batches(1)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    metrics = ["act", "logits", "weight", "grad", "align", "bound"]
    with fastrank.watch(model, metrics=metrics, window=5, budget="90%") as w:
        w._budget.due = lambda step: True  # every step is measured, whatever the clock says
        for step in range(41):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            w.step(target=y)
            if step in (15, 40):
                sizes.append(size())
    # 25 steps that kept one tensor each would be 25 objects more; a figure of each layer, some kB.
    assert sizes[1][0] - sizes[0][0] < 20 and sizes[1][1] - sizes[0][1] < 2000


def test_what_no_figure_covers_is_said_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn, self.head = nn.Embedding(9, 4), nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)
            self.rnn = nn.utils.parametrizations.weight_norm(self.rnn, "weight_hh_l0")
            self.spare, self.frozen = nn.Linear(6, 6), nn.Embedding(3, 3).requires_grad_(False)

        def forward(self, x):
            return self.head(self.rnn(self.embed(x))[0][:, -1])

    model, records = Net(), Records()
    with fastrank.watch(model, log=records) as w:
        for _ in range(2):
            model(torch.randint(9, (5, 3))).sum().backward()
            w.step()
    (weights,) = (text for _, key, text in records.notes if key == "weight")
    assert weights.endswith(": rnn.parametrizations.weight_hh_l0.original1 (24, 6)")
    assert {"weight/embed.weight/rank", "weight/rnn.weight_ih_l0/rank"} <= set(records[0][1])
    assert not any(name in key for key in records[0][1] for name in ("spare", "frozen", "bias"))
    (layers,) = (text for _, key, text in records.notes if key == "layers")
    assert layers.endswith(": spare")


def test_a_model_left_in_evaluation_mode_is_said():
    model, records = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), Records()
    with fastrank.watch(model, metrics="light", log=records) as w:
        model(torch.randn(5, 4))
        w.step()
    assert ("act", "no forward of the watched model in training mode") in [
        (key, text) for _, key, text in records.notes
    ]


class TimeLinear(nn.Linear):
    """Takes another argument first."""

    def forward(self, time, x):
        return super().forward(x) * time


class Unusual(nn.Module):
    """Its output's `logits` cannot be had."""

    def __init__(self):
        super().__init__()
        self.first, self.second = TimeLinear(20, 30), nn.Linear(30, 10)

    def forward(self, x):
        class Output(tuple):
            @property
            def logits(self):
                raise RuntimeError("not yet")

        return Output((self.second(self.first(torch.tensor(0.5), x)),))


def test_what_a_hook_cannot_read_is_said_once_and_training_goes_on():
    model = Unusual()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records, notes = [], []
    with pytest.warns(RuntimeWarning) as warned, fastrank.watch(model, log=lambda *r: records.append(r)) as w:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 20))[0].square().sum().backward()
            optimizer.step()
            w.step()
        notes = dict(w._remarks.disabled)
    assert len(warned) == 2 and notes.keys() == {"layers/first", "logits"} and "not yet" in notes["logits"]
    assert len(records) == 3 and all({"grad/first/rank", "weight/second/rank"} <= r[1].keys() for r in records)
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_nested_outputs_are_no_logits():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            y = self.layer(x)
            return torch.nested.nested_tensor([y[:1].detach(), y[1:].detach()]), y

    model = Nested()
    with fastrank.watch(model, metrics="light", log=lambda *_: None) as w:
        nested, _ = model(torch.randn(5, 4))
        w.step()
        assert "logits/norm" in w.latest
        model(torch.randn(5, 4))
        with pytest.raises(InputError, match=r"^logits: expected .* got a nested tensor"):
            w.step(nested)
