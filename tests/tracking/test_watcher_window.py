"""Windows: the spectrum of many steps' rows is that of the rows together, whatever the batch; costs by source."""

import copy
import io

import pytest
import torch
from torch import nn
from watched_loop import Records, assert_same, small_batches, small_net

import fastrank
from fastrank import InputError, capture


def run(model, watcher, batches, accumulate=1):
    """Weights stay: the rows of a window are then those of one network."""
    for number, (x, y) in enumerate(batches, 1):
        model(x)
        if number % accumulate == 0:
            watcher.step(target=y)


def stacked(model, batches):
    found = {"1": [], "3": [], "logits": []}
    for x, _ in batches:
        for name, layer in model.named_children():
            x = layer(x)
            if name in found:
                found[name].append(x.detach())
    found["logits"] = [x.detach() for x in [model(x) for x, _ in batches]]
    return {name: torch.cat(rows) for name, rows in found.items()}


@pytest.mark.parametrize(
    ("window", "every", "ends"), [(4, 1, [3, 7]), ("epoch:4", 2, [3, 7]), ([4, "epoch:8"], 1, [7])]
)
def test_a_window_has_the_spectrum_of_all_its_rows(window, every, ends):
    model, records, batches = small_net(), Records(), small_batches(8, size=5)
    with fastrank.watch(model, log=records, metrics="light", window=window, every=every) as w:
        run(model, w, batches)
    closed = [(step, scalars, arrays) for step, scalars, arrays in records if "window/1/rank" in scalars]
    assert [step for step, *_ in closed][-len(ends) :] == ends
    step, scalars, arrays = closed[-1]
    first = closed[-2][0] + 1 if len(closed) > 1 else 0
    rows = stacked(model, [b for i, b in enumerate(batches) if first <= i <= step and i % every == 0])
    for name, X in rows.items():
        sigma = torch.linalg.svdvals(X.double())
        assert scalars[f"window/{name}/rank"] == int(torch.linalg.matrix_rank(X))
        assert scalars[f"window/{name}/rows"] == len(X)
        assert arrays[f"window/{name}/sigma"] == pytest.approx(sigma[:15].numpy(), rel=1e-6)
    assert scalars["window/1/rank"] > 5  # more than a batch has rows


def test_all_forwards_of_accumulated_gradients_enter_a_window():
    model, records, batches = small_net(), Records(), small_batches(6, size=5)
    with fastrank.watch(model, log=records, metrics=["act"], window=1) as w:
        run(model, w, batches, accumulate=3)
    assert [scalars["window/1/rows"] for _, scalars, _ in records] == [15, 15]
    X = stacked(model, batches[3:])["1"]
    assert records[1][1]["window/1/frobenius"] == pytest.approx(float(X.double().norm()), rel=1e-9)


def test_large_activations_are_sampled(monkeypatch):
    monkeypatch.setattr(capture, "WINDOW_FEATURES", 12)
    monkeypatch.setattr(capture, "WINDOW_ROWS", 30)
    model, records = nn.Sequential(nn.ReLU()), Records()
    with fastrank.watch(model, log=records, metrics=["act"], window=2, mode="channels") as w:
        for _ in range(2):
            model(torch.rand(3, 20, 6, 5))
            w.step()
    assert records[1][1]["window/0/rows"] == 60
    assert records[1][1]["window/0/rank"] == 12


def test_a_resumed_window_closes_as_if_nothing_had_happened():
    batches = small_batches(8, size=5)
    model, whole = small_net(), Records()
    with fastrank.watch(model, log=whole, window=4) as w:
        run(model, w, batches)
    tail, saved = Records(), None
    with fastrank.watch(model, window=4) as w:
        run(model, w, batches[:6])
        saved = copy.deepcopy(w.state_dict())
    torch.save(saved, buffer := io.BytesIO())
    buffer.seek(0)
    with fastrank.watch(model, log=tail, window=4) as w:
        w.load_state_dict(torch.load(buffer, weights_only=True))
        run(model, w, batches[6:])
    assert_same(tail, whole[6:])
    assert "window/logits/rank" in tail[-1][1]


def test_mistakes_in_a_window_are_named():
    with pytest.raises(InputError, match=r"^window: expected a whole number of steps"):
        fastrank.watch(small_net(), window="sometimes")


def test_costs_by_source_add_up_to_those_by_kind_and_are_recorded():
    model, records, batches = small_net(), Records(), small_batches(3)
    with fastrank.watch(model, log=records, metrics="default", window=3) as w:
        for x, y in batches:
            nn.functional.cross_entropy(model(x), y).backward()
            w.step(target=y)
        kinds, sources = w.cost(), w.cost(by="source")
        with pytest.raises(InputError, match=r"^by: expected 'kind' or 'source', got 'moon'"):
            w.cost(by="moon")
    for kind in ("act", "weight", "grad", "align"):
        found = sum(cost["ms"] for source, cost in sources.items() if source.startswith(kind + "/"))
        assert 0 < found <= kinds[kind] * (1 + 1e-9)
    assert sources["act/1"]["MB"] == 8 * 9 * 9 / 1e6  # the Gram matrix of 9 rows
    assert sources["align/0"]["MB"] > 0
    assert any(key == "cost" and '"act/1"' in text for _, key, text in records.notes)
