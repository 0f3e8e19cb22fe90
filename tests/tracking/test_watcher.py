"""The watcher: its figures against plain torch.linalg on stored matrices, and that training does not feel it."""

import copy
import gc
import math

import pytest
import torch
from fastrank.kernels.rsvd import subspace_step_many
from torch import nn

import fastrank
from fastrank import InputError, subspace


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 12),
    )  # fmt: skip


def batch(step, n=20):
    g = torch.Generator().manual_seed(1000 + step)
    return torch.randn(n, 1, 8, 8, generator=g), torch.randint(0, 12, (n,), generator=g)


class Sink(list):
    """A log that keeps what it is given."""

    notes: list

    def __init__(self):
        self.notes = []

    def log_step(self, step, scalars, arrays):
        self.append((step, scalars, arrays))

    def note(self, step, key, text):
        self.notes.append((step, key, text))


def train(model, steps, T=1.0, watcher=None, around=None):
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        x, y = batch(step)
        opt.zero_grad()
        logits = model(x)
        loss = nn.functional.cross_entropy(logits / T, y)
        loss.backward()
        if around:
            around(model, logits)
        opt.step()
        if watcher:
            watcher.step(target=y, loss=loss)


def test_figures_equal_the_obvious_implementation_at_every_step():
    model, stored = small_net(), []
    weights_before = []
    hooks = []
    outputs = {}
    for name in ("2", "4"):
        hooks.append(
            model[int(name)].register_forward_hook(
                lambda m, a, out, name=name: outputs.__setitem__(name, out.detach().flatten(1).clone())
            )
        )
    for index in (0, 3, 6):
        hooks.append(
            model[index].register_forward_pre_hook(
                lambda m, a, index=index: weights_before.append((index, m.weight.detach().flatten(1).clone()))
            )
        )

    def around(model, logits):
        stored.append(
            {
                **{f"act/{n}": X for n, X in outputs.items()},
                **{f"weight/{i}": W for i, W in weights_before[-3:]},
                **{f"grad/{i}": model[i].weight.grad.flatten(1).clone() for i in (0, 3, 6)},
                "logits": logits.detach().clone(),
                "probabilities": (logits.detach() / 5.0).softmax(1),
            }
        )

    sink = Sink()
    with fastrank.watch(model, log=sink, T=5.0) as w:
        train(model, 4, T=5.0, watcher=w, around=around)
    for hook in hooks:
        hook.remove()
    assert [step for step, *_ in sink] == [0, 1, 2, 3]
    for (_, scalars, arrays), truth in zip(sink, stored, strict=True):
        for key, X in truth.items():
            sigma = torch.linalg.svdvals(X.double())
            p = sigma / sigma.sum()
            if key in ("logits", "probabilities"):
                name = "logits/rank" if key == "logits" else "logits/softmax_rank"
                assert scalars[name] == int(torch.linalg.matrix_rank(X))
                continue
            assert scalars[f"{key}/rank"] == int(torch.linalg.matrix_rank(X)), key
            assert scalars[f"{key}/rank_lo"] <= scalars[f"{key}/rank"] <= scalars[f"{key}/rank_hi"]
            assert scalars[f"{key}/frobenius"] == pytest.approx(float(X.double().norm()), rel=1e-9)
            assert scalars[f"{key}/stable_rank"] == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2), rel=1e-9)
            assert scalars[f"{key}/effective_rank"] == pytest.approx(
                float(torch.exp(-torch.special.xlogy(p, p).sum())), rel=1e-5
            )
            assert arrays[f"{key}/sigma"] == pytest.approx(sigma[:15].numpy(), rel=1e-6, abs=1e-6 * float(sigma[0]))
        norm = float(truth["logits"].double().norm())
        assert scalars["logits/norm"] == pytest.approx(norm)
        assert scalars["logits/norm_over_T"] == pytest.approx(norm / 5)


def test_alignment_equals_the_svd_of_the_weight_and_of_all_its_input_patches():
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 12))
    x = torch.randn(9, 1, 4, 4)
    sink = Sink()
    with fastrank.watch(model, log=sink, metrics=["align"]) as w:
        for _ in range(3):
            model(x)
            w.step()
    patches = nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 9)
    V = torch.linalg.svd(model[0].weight.detach().flatten(1).double(), full_matrices=False)[2]
    U = torch.linalg.svd(patches.double(), full_matrices=False)[2]
    for _, scalars, arrays in sink:
        assert torch.allclose(torch.as_tensor(arrays["align/0/cosines"]).double(), (V @ U.T).abs(), atol=1e-4)
        assert scalars["align/0/chance"] == pytest.approx(min(1.0, math.sqrt(2 * math.log(54) / 9)))
        assert 0 <= scalars["align/3/max"] <= 1
        assert scalars["align/3/error"] <= 1


@pytest.mark.parametrize("metrics", ["light", "default", "full"])
def test_training_is_bit_identical_with_and_without_watch(metrics):
    plain, watched = small_net(), small_net()
    torch.manual_seed(7)
    train(plain, 5)
    random_after = torch.rand(3)
    torch.manual_seed(7)
    with fastrank.watch(watched, metrics=metrics) as w:
        train(watched, 5, watcher=w)
    assert torch.equal(torch.rand(3), random_after)
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_hooks_are_gone_after_the_block_even_after_an_exception():
    model = small_net()
    with pytest.raises(RuntimeError, match="mine"), fastrank.watch(model):
        raise RuntimeError("mine")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_that_an_exception_ended_is_none():
    """Counted as one of two, the only forward of the next step would not be the last, which is measured."""
    model, sink = small_net(), Sink()
    with fastrank.watch(model, log=sink, metrics="light") as w:
        for broken in (False, True, False):
            if broken:
                with pytest.raises(RuntimeError):
                    model(torch.randn(3, 1, 6, 6))  # too small for the last layer
            model(batch(0)[0])
            w.step()
        assert all("act/2/rank" in scalars for _, scalars, _ in sink) and len(sink) == 3
        model(batch(0)[0])
        assert w._measurements._acts
    assert not w._measurements._acts  # nothing is held of a step that never ended


def test_schedule_pause_and_evaluation_forwards():
    model, sink = small_net(), Sink()
    with fastrank.watch(model, log=sink, every=2, metrics="light") as w:
        train(model, 5, watcher=w)
        w.pause()
        train(model, 2, watcher=w)
        w.resume()
        w.step()
        logits = model(batch(0)[0])
        model.eval()(batch(1)[0])
        model.train()
        w.step()
    assert [step for step, *_ in sink] == [0, 2, 4, 8]
    assert sink[-1][1]["logits/norm"] == pytest.approx(float(logits.detach().norm()), rel=1e-6)


def test_the_last_of_several_forwards_counts():
    model, sink = small_net(), Sink()
    with fastrank.watch(model, log=sink, metrics="light") as w:
        for step in range(3):
            logits = model(batch(step)[0])
        w.step()
    assert sink[0][1]["logits/norm"] == pytest.approx(float(logits.detach().norm()), rel=1e-6)
    assert not any("#" in key for key in sink[0][1])


def test_subspaces_of_weights_and_inputs_take_their_steps_together(monkeypatch):
    calls = []

    def counted(A, *arguments, **options):
        calls.append(len(A))
        return subspace_step_many(A, *arguments, **options)

    monkeypatch.setattr(subspace, "subspace_step_many", counted)
    monkeypatch.setattr(subspace, "MAX_REPEATS", 0)
    model, sink = small_net(), Sink()
    with fastrank.watch(model, log=sink, metrics=["align", "weight", "grad"]) as w:
        for _ in range(4):
            calls.clear()
            train(model, 1, watcher=w)
    assert calls == [6] and sink[-1][1].keys() >= {f"align/{name}/max" for name in "036"}


def test_non_finite_figures_are_nan_with_a_reason_and_the_rest_goes_on():
    model, sink = small_net(), Sink()
    with fastrank.watch(model, log=sink) as w:
        x, _ = batch(0)
        with torch.no_grad():
            model[6].weight[0, 0] = math.nan
        model(x).sum().backward()
        w.step()
    scalars = sink[0][1]
    assert math.isnan(scalars["weight/6/rank"]) and math.isnan(scalars["logits/rank"])
    assert scalars["act/4/rank"] > 0 and scalars["weight/3/rank"] == 8
    assert any(key == "weight/6" and "non-finite" in text for _, key, text in sink.notes)


def test_a_failing_metric_is_said_once_and_disabled(monkeypatch):
    import fastrank.tracking.followed as module

    def broken(real):
        return lambda A: 1 / 0 if any(X.shape == (12, 128) for X in A) else real(A)

    for name in ("spectrum", "quick_spectra"):
        monkeypatch.setattr(module, name, broken(getattr(module, name)))
    model, sink = small_net(), Sink()
    with fastrank.watch(model, log=sink) as w, pytest.warns(RuntimeWarning) as warned:
        train(model, 3, watcher=w)
    assert len(sink) == 3
    assert sorted(key for _, key, text in sink.notes if "disabled" in text) == ["grad/6", "weight/6"]
    assert len([r for r in warned if "no longer measured" in str(r.message)]) == 2
    assert "weight/3/rank" in sink[-1][1]


def test_state_dict_continues_to_the_same_figures():
    def run(model, w, first, steps):
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(first, first + steps):
            x, y = batch(step)
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
            w.step(target=y)

    whole, sink = small_net(), Sink()
    with fastrank.watch(whole, log=sink) as w:
        run(whole, w, 0, 2)
        saved, weights = copy.deepcopy(w.state_dict()), copy.deepcopy(whole.state_dict())
        run(whole, w, 2, 2)
    again, tail = small_net(1), Sink()
    again.load_state_dict(weights)
    with fastrank.watch(again, log=tail) as w:
        w.load_state_dict(saved)
        run(again, w, 2, 2)
    for (step, a, arrays), (same, b, others) in zip(sink[2:], tail, strict=True):
        assert step == same
        assert {k: v for k, v in a.items() if not k.startswith("cost/")} == {
            k: v for k, v in b.items() if not k.startswith("cost/")
        }
        assert all((arrays[k] == others[k]).all() for k in arrays)


def test_measurement_ignores_autocast():
    model, sink = small_net(), Sink()
    x, _ = batch(0)
    with fastrank.watch(model, log=sink, metrics=["weight", "align"]) as w, torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        w.step()
    sigma = torch.linalg.svdvals(model[6].weight.detach().double())
    assert sink[0][2]["weight/6/sigma"] == pytest.approx(sigma.numpy(), rel=1e-6)
    # Products in bfloat16 would leave residuals of 1e-2 instead of rounding.
    assert w._measurements._tops["6"].residual.max() <= 1e-5 * w._measurements._tops["6"].S[0]


def test_cost_adds_up():
    model, sink = small_net(), Sink()
    with fastrank.watch(model, log=sink) as w:
        train(model, 1, watcher=w)
        alone = w.cost()
        train(model, 3, watcher=w)
        cost = w.cost()
    for found in (alone, cost):
        kinds = {k: v for k, v in found.items() if k not in ("total", "share", "setup")}
        assert found["total"] == pytest.approx(sum(kinds.values()))
        assert {"act", "weight", "grad", "align", "logits"} <= set(kinds)
    # The first step is the set-up: it stands for itself, and enters no mean once there is another.
    first, *others = [scalars for _, scalars, _ in sink]
    assert first["cost/setup_ms"] == pytest.approx(cost["setup"]) == pytest.approx(alone["total"])
    assert not {"cost/share", "cost/track_ms"} & set(first) and "log" in cost
    tracked = [scalars["cost/track_ms"] for scalars in others]
    assert cost["total"] == pytest.approx(sum(tracked) / 3)
    for scalars in others:
        assert "cost/setup_ms" not in scalars
        rest = scalars["cost/step_ms"] - scalars["cost/track_ms"]
        assert rest > 0
        assert scalars["cost/share"] == pytest.approx(scalars["cost/track_ms"] / rest)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("every", {"every": 0}),
        ("T", {"T": 0.0}),
        ("T", {"T": math.nan}),
        ("metrics", {"metrics": "everything"}),
        ("metrics", {"metrics": ["act", "spin"]}),
        ("layers", {"layers": "conv*"}),
        ("mode", {"mode": "rows"}),
        ("log", {"log": 3}),
        ("log", {"log": ""}),
        ("T", {"T": "hot"}),
        ("T", {"T": torch.ones(2)}),
        ("layers", {"layers": []}),
        ("layers", {"layers": None}),
        ("seed", {"seed": 1.5}),
        ("every", {"every": True}),
        ("metrics", {"metrics": 5}),
        ("all_ranks", {"all_ranks": "yes"}),
        ("config", {"config": 3}),
    ],
)
def test_bad_arguments_are_named_and_leave_no_hook(argument, options):
    model = small_net()
    with pytest.raises(InputError, match=rf"^{argument}: expected .*, got "):
        fastrank.watch(model, **options)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_parametrized_weights_are_left_alone_and_their_gradient_is_measured():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 12))

    def run(model, w=None):
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            g = torch.Generator().manual_seed(step)
            opt.zero_grad()
            model(torch.randn(9, 8, generator=g)).square().mean().backward()
            opt.step()
            if w:
                w.step()

    plain, watched, sink = net(), net(), Sink()
    run(plain)
    with fastrank.watch(watched, log=sink) as w:
        run(watched, w)
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert sink[-1][1]["grad/0/rank"] == 6


def test_copies_and_pickles_of_a_watched_model_carry_no_watching(tmp_path):
    model = small_net()
    with fastrank.watch(model, log=tmp_path / "run", metrics="light") as w:
        logits = model(batch(0)[0])
        clone = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        clone(batch(1)[0])
        w.step()
    assert w.latest["logits/norm"] == pytest.approx(float(logits.detach().norm()), rel=1e-6)


def test_what_a_later_layer_overwrites_was_taken_before():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x):
            out = self.second(x.detach())
            x.zero_()
            return out

    torch.manual_seed(0)
    model, kept, overwritten = Overwrites(), Sink(), Sink()
    x = torch.randn(9, 6)
    for sink in (kept, overwritten):
        with fastrank.watch(model, log=sink, metrics=["align"]) as w:
            model.second(x.clone()) if sink is kept else model(x.clone())
            w.step()
    key = "align/second/max"
    assert kept[0][1][key] == overwritten[0][1][key] > 0


def test_weights_that_changed_before_they_were_measured_are_left_out_by_name():
    torch.manual_seed(0)
    model, sink = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), Sink()
    with fastrank.watch(model, log=sink, metrics=["weight"]) as w:
        model[0](torch.randn(5, 6))  # not through the watched model
        with torch.no_grad():
            model[0].weight.mul_(2)
        w.step()
        model(torch.randn(5, 6))
        w.step()
    assert "weight/0/rank" not in sink[0][1]
    assert any(key == "weight/0" and "changed before the end" in text for _, key, text in sink.notes)
    assert sink[1][1]["weight/0/rank"] == 4


def test_no_alignment_comes_from_the_weight_of_an_earlier_step():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.whole = nn.Linear(30, 40), nn.Linear(40, 35), True

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(h) if self.whole else h

    torch.manual_seed(0)
    model, x, sink = Net(), torch.randn(20, 30), Sink()
    with fastrank.watch(model, metrics=["align"], log=sink) as w:
        for first in (True, False, True):
            with torch.no_grad():
                model.b.weight.mul_(-2).add_(1.0)
            model.whole = first
            model(x)
            model.whole = True
            model(x)
            w.step()
    # Of accumulated forwards the last one's inputs count, and the weights of the first.
    assert ["align/b/max" in scalars for _, scalars, _ in sink] == [True, False, True]
    assert all("align/a/max" in scalars for _, scalars, _ in sink)
    (note,) = [text for step, key, text in sink.notes if key == "align/b"]
    assert note == "no weight of this step: its layer did not run in the first forward"


def test_inputs_passed_by_keyword_are_aligned():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(7, 5)

        def forward(self, x):
            return self.fc(input=x)

    model = Keyword()
    with fastrank.watch(model) as w:
        model(torch.randn(9, 7))
        w.step()
    assert 0 < w.latest["align/fc/max"] <= 1


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("loss", {"loss": torch.ones(8)}),
        ("loss", {"loss": None}),
        ("target", {"target": torch.zeros(7, dtype=torch.long)}),
        ("target", {"target": torch.zeros(20, 12)}),
        ("target", {"target": [1] * 20}),
        ("logits", {"logits": "found"}),
        ("logits", {"logits": torch.zeros(20, 4, dtype=torch.complex64)}),
    ],
)
def test_bad_arguments_of_a_step_are_named(argument, arguments):
    model = small_net()
    with fastrank.watch(model, metrics="light") as w:
        model(batch(0)[0])
        with pytest.raises(InputError, match=rf"^{argument}: expected .*, got "):
            w.step(**arguments)
        w.step(target=batch(0)[1], loss=torch.tensor([2.5]))
    assert w.latest["train/loss"] == 2.5 and "logits/rank" in w.latest


@pytest.mark.parametrize("early", [False, True])
def test_gradients_are_those_that_backward_left(early):
    """Nesterov's momentum is added to the gradients themselves where all are moved in one call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(150, 160), nn.ReLU(), nn.Linear(160, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, foreach=True)
    with fastrank.watch(model, metrics=["grad"]) as w:
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.randn(8, 150)) ** 2).mean().backward()
            if not early:
                optimizer.step()
            w.step()
            assert w.latest["grad/0/rank_lo"] == w.latest["grad/0/rank_hi"] == 8
            if early:
                optimizer.step()


def test_an_optimizer_of_other_weights_is_no_sign_of_gradients_and_nothing_stays_behind():
    from torch.optim import optimizer as module

    before = len(module._global_optimizer_pre_hooks)
    model, other = small_net(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    sink = Sink()
    with fastrank.watch(model, log=sink, metrics=["grad"]) as w:
        out = model(torch.randn(4, 1, 8, 8))
        optimizer.step()
        out.sum().backward()
        w.step()
    assert "grad/0/rank" in sink[0][1]
    assert len(module._global_optimizer_pre_hooks) == before
    unclosed = fastrank.watch(small_net())
    del unclosed
    gc.collect()
    assert len(module._global_optimizer_pre_hooks) == before


def test_what_is_no_state_and_no_model_to_watch_is_named():
    with fastrank.watch(small_net()) as w:
        for state in ({}, None, {"step": 3}):
            with pytest.raises(InputError, match="state: expected what state_dict"):
                w.load_state_dict(state)
    with pytest.raises(InputError, match="model: expected a module with submodules, got a bare Linear"):
        fastrank.watch(nn.Linear(4, 4))
