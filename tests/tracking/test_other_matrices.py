"""Trained matrices in no linear or convolutional layer: embeddings, recurrent and fused attention weights."""

import math

import pytest
import torch
from torch import nn
from watched_loop import Records

import fastrank
from fastrank.layers import select_layers
from fastrank.tracking.touched_rows import touched_rows


class Sequences(nn.Module):
    """Embedding, positions, fused attention (whose output projection is never called as a module), GRU, classifier."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 7, 24))
        self.scale = nn.Parameter(torch.ones(1, 24, 1))
        self.embedding = nn.Embedding(40, 24)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.act = nn.GELU()
        self.rnn = nn.GRU(24, 16, batch_first=True)
        self.tied = nn.Linear(16, 40, bias=False)
        self.again = nn.Embedding(40, 16)
        self.again.weight = self.tied.weight
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)

    def forward(self, tokens):
        x = (self.embedding(tokens) + self.places) * self.scale.mT
        x = self.act(x + self.attention(x, x, x, need_weights=False)[0])
        return self.tied(self.rnn(x)[0][:, -1] + self.again(tokens[:, 0]))


SHAPES = {
    "places": (7, 24), "embedding.weight": (40, 24),
    "attention.in_proj_weight": (72, 24), "attention.out_proj": (24, 24),
    "rnn.weight_ih_l0": (48, 24), "rnn.weight_hh_l0": (48, 16),
}  # fmt: skip


def train(model, steps, optimizer=None, **options):
    records, truth = Records(), []
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    with fastrank.watch(model, log=records, **options) as w:
        for step in range(steps):
            g = torch.Generator().manual_seed(step)
            tokens, y = torch.randint(40, (9, 7), generator=g), torch.randint(40, (9,), generator=g)
            weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens), y).backward()
            truth.append((weights, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}))
            optimizer.step()
            w.step(target=y)
    return records, truth


def parameter(name):
    return f"{name}.weight" if name in ("attention.out_proj", "tied") else name


@pytest.mark.parametrize("metrics", ["default", ["weight", "grad"], "full"], ids=str)
def test_their_figures_are_those_of_torch_linalg_at_every_step(metrics):
    torch.manual_seed(0)
    model = Sequences()
    records, truth = train(model, 3, metrics=metrics)
    for (_, scalars, arrays), matrices in zip(records, truth, strict=True):
        for kind, found in zip(("weight", "grad"), matrices, strict=True):
            for name, shape in {**SHAPES, "tied": (40, 16)}.items():
                X = found[parameter(name)].reshape(shape)
                sigma, key = torch.linalg.svdvals(X.double()), f"{kind}/{name}"
                rank = int((sigma > max(shape) * 2**-23 * sigma[0]).sum())
                assert scalars[f"{key}/rank_lo"] <= rank <= scalars[f"{key}/rank_hi"], key
                assert scalars[f"{key}/frobenius"] == pytest.approx(float(X.double().norm()), rel=1e-5)
                assert arrays[f"{key}/sigma"] == pytest.approx(sigma[:15].numpy(), rel=1e-4, abs=1e-6)
    measured = {key.split("/")[1] for key in records[0][1] if key.startswith(("weight/", "grad/"))}
    assert measured == {*SHAPES, "tied"}
    assert {key.split("/")[1] for key in records[0][1] if key.startswith("align/")} <= {"tied", "mean_max"}
    assert not [note for note in records.notes if note[1] not in ("watch", "cost")]


def test_a_large_embedding_is_carried_and_a_step_of_few_rows_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(400, 160), nn.Flatten(), nn.Linear(5 * 160, 4))
    records, optimizer, truth = Records(), torch.optim.SGD(model.parameters(), lr=1e-3), []
    with fastrank.watch(model, log=records, metrics=["weight", "grad"]) as w:
        for step in range(3):
            tokens = torch.randint(400, (6, 5), generator=torch.Generator().manual_seed(step))
            truth.append([model[0].weight.detach().double()])
            optimizer.zero_grad()
            model(tokens).square().sum().backward()
            truth[-1].append(model[0].weight.grad.double())
            optimizer.step()
            w.step()
    drifts = [scalars["weight/0.weight/drift"] for _, scalars, _ in records]
    assert drifts[0] == 0 and 0 < drifts[1] < drifts[2] < 0.1
    for (_, scalars, _), (weight, gradient) in zip(records, truth, strict=True):
        for key, X in (("weight/0.weight", weight), ("grad/0.weight", gradient)):
            sigma = torch.linalg.svdvals(X)
            rank = int((sigma > 400 * 2**-23 * sigma[0]).sum())
            assert scalars[f"{key}/rank_lo"] <= rank <= scalars[f"{key}/rank_hi"]
            assert scalars[f"{key}/sigma_1"] == pytest.approx(float(sigma[0]), rel=5e-3)
        assert scalars["grad/0.weight/rank_lo"] == scalars["grad/0.weight/rank_hi"] <= 30


def test_globs_name_them_by_their_own_name_or_their_modules():
    model = Sequences()

    def names(layers):
        return [layer.name for layer in select_layers(model, layers) if layer.parameter]

    assert names("*") == list(SHAPES)
    assert names("rnn") == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    assert names(["attention", "places"]) == ["places", "attention.in_proj_weight", "attention.out_proj"]
    assert names("act") == []
    assert [layer.name for layer in select_layers(nn.DataParallel(model), "*") if layer.parameter] == list(SHAPES)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("tokens", [4, 40, 0])
def test_an_embeddings_gradient_is_that_of_the_rows_of_its_tokens(sparse, tokens):
    """Some of them twice, and none; the figures are those of the whole matrix."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8, sparse=sparse), nn.Flatten())
    records, x = Records(), torch.randint(50, (tokens, 3))
    with fastrank.watch(model, log=records, layers=["*.weight", "1"]) as w:
        (model(x) * torch.randn(tokens, 24)).sum().backward()
        w.step()
    G = model[0].weight.grad.to_dense().double()
    sigma, scalars = torch.linalg.svdvals(G), records[0][1]
    rank = int((sigma > 50 * 2**-23 * sigma[0]).sum())
    assert scalars["grad/0.weight/rank_lo"] <= rank <= scalars["grad/0.weight/rank_hi"]
    assert scalars["grad/0.weight/frobenius"] == pytest.approx(float(G.norm()), rel=1e-5)
    assert records[0][2]["grad/0.weight/sigma"] == pytest.approx(sigma.numpy(), rel=1e-4, abs=1e-6)
    assert len(touched_rows(model[0].weight.grad)) == len(x.unique())


def test_a_gradient_that_is_not_finite_has_no_rank():
    model, records = nn.Sequential(nn.Embedding(50, 8), nn.Flatten()), Records()
    with fastrank.watch(model, log=records, layers=["*.weight", "1"]) as w:
        (model(torch.randint(50, (2, 3))).sum() * math.inf).backward()
        w.step()
    assert math.isnan(records[0][1]["grad/0.weight/rank"]) and records[0][2]["grad/0.weight/sigma"].shape == (8,)
