"""Weights that are computed from parameters before each forward: what the forward used is measured."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from watched_loop import Records, assert_same

import fastrank

#: {name: (what computes the weight, whether one parameter holds the gradient)}
WAYS = {
    "weight_norm": (parametrizations.weight_norm, False),
    "spectral_norm": (parametrizations.spectral_norm, True),
    "orthogonal": (parametrizations.orthogonal, True),
    "older weight_norm": (weight_norm, False),
    "older spectral_norm": (spectral_norm, True),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), True),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")


def net(way=lambda layer: layer):
    torch.manual_seed(0)
    convolution, first, last = nn.Conv2d(2, 6, 3), nn.Linear(6 * 16, 40), nn.Linear(40, 5)
    return nn.Sequential(way(convolution), nn.ReLU(), nn.Flatten(), way(first), nn.ReLU(), last)


def train(model, w=None, steps=3, forwards=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        for _ in range(forwards):
            x, y = torch.randn(32, 2, 6, 6, generator=g), torch.randint(5, (32,), generator=g)
            functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if w is not None:
            w.step()


@pytest.fixture
def used(monkeypatch):
    """Every weight that a forward multiplied with."""
    seen = []
    for name in ("linear", "_conv_forward"):
        place = functional if name == "linear" else nn.Conv2d
        real = getattr(place, name)

        def recorded(*args, real=real, at=1 if name == "linear" else 2):
            seen.append(args[at].detach().clone())
            return real(*args)

        monkeypatch.setattr(place, name, recorded)
    return seen


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("metrics", ["default", "full"])
def test_what_the_forward_used_is_measured(used, way, metrics):
    compute, single = WAYS[way]
    plain, model, records = net(compute), net(compute), Records()
    train(plain)
    used.clear()
    with fastrank.watch(model, log=records, metrics=metrics) as w:
        train(model, w)
    for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert len(used) == 9
    for step, (_, scalars, arrays) in enumerate(records):
        for name, W in zip(("0", "3"), used[3 * step :], strict=False):
            W = W.flatten(1).double()
            S = torch.linalg.svdvals(W)
            assert arrays[f"weight/{name}/sigma"] == pytest.approx(S[:15].numpy(), rel=1e-4)
            rank = torch.linalg.matrix_rank(W, rtol=max(W.shape) * torch.finfo(torch.float32).eps)
            assert scalars[f"weight/{name}/rank_lo"] <= rank <= scalars[f"weight/{name}/rank_hi"]
            assert (f"grad/{name}/rank" in scalars) == single
    notes = {key: text for _, key, text in records.notes}
    for name in ("0", "3"):
        assert ("no single parameter" in notes.get(f"grad/{name}", "")) == (not single)
    assert "weight" not in notes


@pytest.mark.parametrize("way", WAYS)
def test_alignment_is_that_of_a_plain_network_with_the_same_weights(used, way):
    computed, plain = Records(), Records()
    with fastrank.watch(net(WAYS[way][0]), log=computed, metrics=["weight", "align"]) as w:
        train(w._model, w)
    weights, model = used[:], net()
    with fastrank.watch(model, log=plain, metrics=["weight", "align"]) as w:
        for step in range(3):
            g = torch.Generator().manual_seed(step)
            with torch.no_grad():
                for layer, W in zip((model[0], model[3], model[5]), weights[3 * step :], strict=False):
                    layer.weight.copy_(W)
            # The biases differ: of the first layer the input alone counts.
            model(torch.randn(32, 2, 6, 6, generator=g))
            w.step()
    for (_, found, _), (_, expected, _) in zip(computed, plain, strict=True):
        keys = [key for key in expected if key.startswith(("weight/", "align/0/"))]
        assert len(keys) > 20 and {key: found[key] for key in keys} == {key: expected[key] for key in keys}


@pytest.mark.parametrize("way", ["weight_norm", "older weight_norm"])
def test_no_computed_weight_outlives_the_forward_that_is_measured(way):
    """Each forward computes another; of several in a step the first's is measured."""
    model, live = net(WAYS[way][0]), []

    def count():
        gc.collect()
        return sum(type(x) is torch.Tensor and x.shape == (40, 96) for x in gc.get_objects())

    with fastrank.watch(model) as w:
        train(model, w, steps=3, forwards=3)
        live.append(count())
        train(model, w, steps=3, forwards=3)
        live.append(count())
        model(torch.randn(4, 2, 6, 6))
        assert not w._measurements._held_weights
    assert live[0] == live[1]


def test_a_weight_in_the_cache_is_not_taken_for_the_forward_s_own():
    records = Records()
    with fastrank.watch(net(parametrizations.weight_norm), log=records) as w:
        with parametrize.cached():
            w._model[3].weight  # noqa: B018
            train(w._model, w, steps=1)
        train(w._model, w, steps=1)
    # What was computed before the forward began was not seen.
    assert "weight/0/rank" in records[0][1] and "weight/3/rank" not in records[0][1]
    assert "weight/3/rank" in records[1][1]


def test_inside_compiled_graphs():
    model = net(parametrizations.weight_norm)
    eager, compiled = Records(), Records()
    with fastrank.watch(net(parametrizations.weight_norm), log=eager, metrics=["weight"]) as w:
        train(w._model, w)
    with fastrank.watch(model, log=compiled, metrics=["weight"]) as w:
        train(torch.compile(model, backend="eager"), w)
    assert_same(compiled, eager)
