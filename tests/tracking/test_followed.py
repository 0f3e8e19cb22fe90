"""A watched network with layers large enough to be followed: every figure holds at every step, restarts included."""

import copy
import io
import math

import pytest
import torch
from fastrank.kernels import backend, buffers
from torch import nn

import fastrank
from fastrank.carried import SMALLEST_SIDE as CARRIED


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 520), nn.Tanh(), nn.Linear(520, 540), nn.Tanh(), nn.Linear(540, 20))


def train(model, watcher, steps, records=None, rate=0.02):
    """Batches of 16 rows, so that no gradient's rank exceeds 16; at step 5 one of 200, whose rank is far more."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for step in steps:
        g = torch.Generator().manual_seed(step)
        n = 200 if step == 5 else 16
        x, y = torch.randn(n, 40, generator=g), torch.randint(20, (n,), generator=g)
        before = [layer.weight.detach().clone() for layer in model if isinstance(layer, nn.Linear)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        watcher.step()
        if records is not None:
            layers = [layer for layer in model if isinstance(layer, nn.Linear)]
            gradients = [layer.weight.grad.clone() for layer in layers]
            records.append({"weight": before, "grad": gradients})
        optimizer.step()


def test_every_figure_holds_at_every_step():
    model, truth, records = network(), [], []
    with fastrank.watch(model, log=lambda *record: records.append(record)) as w:
        train(model, w, range(8), truth)
        methods = w._measurements._followed
        assert {"weight/2"} <= set(methods._anchors) and min(model[2].weight.shape) >= CARRIED
        assert methods._ranks["grad/2"] == 16
    drifts = [scalars["weight/2/drift"] for _, scalars, _ in records]
    assert drifts[0] == 0 and all(0 < drift < 0.01 for drift in drifts[1:])
    for (_, scalars, arrays), true in zip(records, truth, strict=True):
        for kind, matrices in true.items():
            for layer, X in zip(("0", "2", "4"), matrices, strict=True):
                key, sigma = f"{kind}/{layer}", torch.linalg.svdvals(X.double())
                rank = int((sigma > max(X.shape) * 2**-23 * sigma[0]).sum())
                assert scalars[f"{key}/rank_lo"] <= rank <= scalars[f"{key}/rank_hi"], key
                if kind == "grad":
                    assert scalars[f"{key}/rank_lo"] == scalars[f"{key}/rank_hi"] == rank
                assert scalars[f"{key}/frobenius"] == pytest.approx(float(sigma.norm()), rel=1e-5)
                # In the flat spectrum of random weights too, whose subspace has settled before it is used.
                assert arrays[f"{key}/sigma"] == pytest.approx(sigma[:15].numpy(), rel=5e-3, abs=1e-6)


def test_a_sketch_is_used_and_gives_way_to_a_larger_rank(monkeypatch):
    import fastrank.tracking.followed as module

    monkeypatch.setattr("fastrank.capture.pays", lambda *_: False)  # the factors would not leave it anything

    found = []

    def recorded(*job):
        found.append((job[3], module_sketched(*job)))
        return found[-1][1]

    module_sketched = module.sketched_spectrum
    monkeypatch.setattr(module, "sketched_spectrum", recorded)
    model, records = network(), []
    with fastrank.watch(model, metrics=["grad"], log=lambda *record: records.append(record)) as w:
        train(model, w, range(8))
    # Of the first step nothing is known beforehand; the fifth does not settle the wide batch.
    settled = {step: s is not None for step, s in found}
    assert list(settled) == [1, 2, 3, 4, 5, 6, 7] and [step for step in settled if not settled[step]] == [5]
    assert records[5][1]["grad/2/rank_lo"] > 100


def test_a_killed_training_goes_on_in_its_run(tmp_path):
    whole, expected = network(), []
    with fastrank.watch(whole, log=lambda *record: expected.append(record)) as w:
        train(whole, w, range(5))
    model = network()
    with pytest.raises(KeyboardInterrupt), fastrank.watch(model, log=tmp_path, config={"mine": 1}) as w:
        train(model, w, range(3))
        saved, weights = copy.deepcopy(w.state_dict()), copy.deepcopy(model.state_dict())
        train(model, w, range(3, 5))  # beyond the checkpoint: comes anew
        raise KeyboardInterrupt
    with pytest.raises(fastrank.InputError, match=r"^path: .*to `watch` resume=state"):
        fastrank.watch(network(), log=tmp_path)
    with pytest.raises(fastrank.InputError, match=r"^resume: expected what state_dict"):
        fastrank.watch(network(), log=tmp_path, resume={})
    model = network()
    model.load_state_dict(weights)
    with fastrank.watch(model, log=tmp_path, resume=saved) as w:
        train(model, w, range(3, 5))
    run = fastrank.load_run(tmp_path)
    assert run.steps.tolist() == list(range(5)) and run.status == "finished" and run.config["mine"] == 1
    for key in ("weight/2/frobenius", "weight/2/drift", "align/2/max", "grad/2/rank"):
        assert run.series(key)[1].tolist() == [scalars[key] for _, scalars, _ in expected]


def test_a_weight_that_is_changed_unseen_inside_a_forward_has_figures_that_hold():
    """Through `.data`, after its layer has run, as some quantisers and teachers do: no version counter moves."""
    model, records, truth = network(), [], []

    class Changes(nn.Module):
        step = -1

        def forward(self, x):
            self.step += 1
            weight = model[2].weight
            before = weight._version
            if self.step == 2:
                weight.data.mul_(1.3)
            elif self.step == 3:  # from rank 520 to 100
                weight.data.copy_(torch.randn(540, 100) @ torch.randn(100, 520))
            assert weight._version == before
            return x

    model.append(Changes())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with fastrank.watch(model, metrics=["weight"], log=lambda *record: records.append(record)) as w:
        for step in range(6):
            optimizer.zero_grad()
            model(torch.randn(16, 40, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            truth.append(model[2].weight.detach().double())
            optimizer.step()
            w.step()
    ranks = [int((s > 540 * 2**-23 * s[0]).sum()) for s in map(torch.linalg.svdvals, truth)]
    assert ranks[:3] == [520] * 3 and ranks[3] == 100
    for (_, scalars, _), X, rank in zip(records, truth, ranks, strict=True):
        assert scalars["weight/2/rank_lo"] <= rank <= scalars["weight/2/rank_hi"]
        assert scalars["weight/2/frobenius"] == pytest.approx(float(X.norm()), rel=1e-5)
    assert records[2][1]["weight/2/drift"] == pytest.approx(0.3, rel=0.01)
    assert records[3][1]["weight/2/rank_lo"] == 100  # so far away that it is computed anew at once


def test_a_restart_continues_the_same_figures():
    whole, first, second = [], [], []
    model = network()
    with fastrank.watch(model, log=lambda *record: whole.append(record)) as w:
        train(model, w, range(8))
    model = network()
    with fastrank.watch(model, log=lambda *record: first.append(record)) as w:
        train(model, w, range(4))
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "watcher": w.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    with fastrank.watch(model, log=lambda *record: second.append(record)) as w:
        w.load_state_dict(state["watcher"])
        train(model, w, range(4, 8))
    for (_, a, _), (_, b, _) in zip(whole, first + second, strict=True):
        same = [key for key in a if not key.startswith("cost/")]
        assert {key: a[key] for key in same} == {key: b[key] for key in same}


class Small(nn.Module):
    """Maps of 2 x 2 positions: of 8 images 32 rows make the gradients of convolutions [128, 1152]."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 128, 3, 2, 1, bias=False)
        self.head = nn.Linear(128, 130)

    def forward(self, x, again=0):
        x = self.second(self.first(x).relu())
        for _ in range(again):
            x = self.second(nn.functional.interpolate(x, scale_factor=2))
        return self.head(x.flatten(1))


def once(model, x):
    model(x).square().mean().backward()


def clipped(model, x):
    once(model, x)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-4)


def accumulated(model, x):
    once(model, x)
    once(model, x.flip(0))


def twice_backward(model, x):
    y = model(x)
    y[:, :3].sum().backward(retain_graph=True)
    y.square().mean().backward()


def penalised(model, x):
    x.requires_grad_()
    y = model(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (y.square().mean() + slope.square().sum()).backward()


def shared(model, x):
    model(x, again=1).square().mean().backward()


def decayed(model, x):
    once(model, x)
    for parameter in model.parameters():
        parameter.grad.add_(parameter, alpha=1e-3)


@pytest.mark.parametrize(("step", "explained"), [
    (once, {"grad/first", "grad/second", "grad/head"}), (clipped, {"grad/first", "grad/second", "grad/head"}),
    (accumulated, set()), (twice_backward, set()), (penalised, set()), (decayed, set()),
    (shared, {"grad/first", "grad/head"}),
])  # fmt: skip
@pytest.mark.parametrize("kinds", ["default", ["grad"]], ids=str)
def test_gradients_from_their_factors(step, explained, kinds, monkeypatch):
    import fastrank.tracking.followed as module

    found, inner = [], module.factored_spectra

    def recorded(jobs, **draw):
        found.extend(inner(jobs, **draw))
        return found[-len(jobs) :]

    monkeypatch.setattr(module, "factored_spectra", recorded)
    torch.manual_seed(0)
    model, x = Small(), torch.randn(8, 128, 2, 2)
    with fastrank.watch(model, metrics=kinds) as w:
        for _ in range(2):
            found.clear()
            model.zero_grad()
            step(model, x)
            w.step()
            assert sum(s is not None for s in found) == len(explained)
            for key in ("first", "second", "head"):
                A = getattr(model, key).weight.grad.detach().flatten(1)
                sigma = torch.linalg.svdvals(A.double())
                rank = int((sigma > max(A.shape) * 2**-23 * sigma[0]).sum())
                assert w.latest[f"grad/{key}/rank_lo"] == w.latest[f"grad/{key}/rank_hi"] == rank
                assert w.latest[f"grad/{key}/sigma_1"] == pytest.approx(float(sigma[0]), rel=1e-5)


def test_nothing_waits_in_memory_that_no_later_figure_needs():
    """Of the sampled inputs a backward finds those that gradients are products of; of the set-up nothing is kept."""
    model, x = network(), torch.randn(300, 40)
    with fastrank.watch(model) as w:
        for rows, kept in ((300, set()), (16, {"2"})):
            buffers.drop_idle()
            logits = model(x[:rows])
            assert set(w._measurements._held_inputs) == kept
            assert set(w._measurements._inputs) == {"0", "2", "4"}
            logits.square().sum().backward()
            w.step(logits)
            assert all(math.isfinite(w.latest[f"align/{layer}/max"]) for layer in "024")
    with fastrank.watch(network(), metrics=["weight"]) as w:
        buffers.drop_idle()
        w._model(x)
        assert backend.core() is None or backend.core().idle_bytes() == 0
