"""`fastrank plan`: its matrices are those of a real tracked step, its counts follow from their shapes."""

import json
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from fastrank.kernels import cost
from fastrank.kernels.gram import cost as gram
from fastrank.kernels.rsvd import cost as rsvd
from fastrank.kernels.small_eigh import cost as small_eigh
from torch import nn

import fastrank.tracking.followed as followed
import fastrank.tracking.logits as logits_figures
import fastrank.tracking.measurements as measurements
from fastrank import watch
from fastrank.errors import InputError
from fastrank.plan import BACKWARD, cuts, matrices, plan
from fastrank.tracking.presets import PRESETS
from fastrank.tracking_cost import LIBRARY_SHARE, Pace, _count, _ops, measured_together

pytest.importorskip("timm")
from fastrank.train.planned import plan_named, to_json, to_text


def small(device="cpu"):
    """Convolutions with groups and a stride, a layer that runs twice, a frozen one, and more than 10,000 features."""
    torch.manual_seed(0)
    with torch.device(device):
        shared = nn.Linear(16, 16)
        model = nn.Sequential(
            nn.Conv2d(4, 24, 3, padding=1, groups=2), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 16, 3, stride=2, padding="valid"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            shared, nn.GELU(), shared, nn.Linear(16, 5),
        )  # fmt: skip
    model[10].weight.requires_grad_(False)
    return model


SHAPE = (6, 4, 22, 22)


def measured(monkeypatch, metrics, mode="flatten"):
    """(kind, shape, dtype) of every matrix whose spectrum or subspace a real step asks for."""
    found = []
    spectrum, small_gram, top_svd = measurements.spectrum, measurements.small_gram, measurements.top_svd

    def noting(kind, work):
        def call(A, *arguments, **options):
            found.extend((kind, *X.shape, X.dtype) for X in (A if isinstance(A, list) else [A]))
            return work(A, *arguments, **options)

        return call

    monkeypatch.setattr(measurements, "spectrum", noting("spectrum", spectrum))
    monkeypatch.setattr(followed, "spectrum", noting("spectrum", spectrum))
    monkeypatch.setattr(followed, "quick_spectra", noting("spectrum", followed.quick_spectra))
    monkeypatch.setattr(logits_figures, "spectrum", noting("spectrum", spectrum))
    monkeypatch.setattr(measurements, "small_gram", noting("spectrum", small_gram))
    monkeypatch.setattr(measurements, "small_grams", noting("spectrum", measurements.small_grams))
    monkeypatch.setattr(measurements, "top_svd", noting("subspace", top_svd))
    model = small()
    with watch(model, metrics=metrics, mode=mode) as w:
        model(torch.randn(SHAPE)).sum().backward()
        w.step()
    return found


@pytest.mark.parametrize("mode", ["flatten", "channels", "pool"])
@pytest.mark.parametrize("metrics", ["light", "default", ["align"], ["grad", "weight"]], ids=str)
def test_matrices_are_those_of_a_real_step(monkeypatch, metrics, mode):
    kinds = PRESETS[metrics][0] if isinstance(metrics, str) else frozenset(metrics)
    planned = [
        ("subspace" if m.kind == "align" else "spectrum", m.n, m.d, m.dtype)
        for m in matrices(small("meta"), torch.empty(SHAPE, device="meta"), kinds, mode=mode)
    ]
    assert sorted(planned, key=str) == sorted(measured(monkeypatch, metrics, mode), key=str)
    assert len(planned) > 3


def test_model_is_left_as_it_was():
    model = small("meta").eval()
    plan(model, torch.empty(SHAPE, device="meta"))
    assert not model.training and not any(module._forward_hooks for module in model.modules())


def test_counts_by_formula():
    """One linear layer of 8 -> 3 on 20 rows: every matrix by hand."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 3))
    found = plan(model, torch.empty(20, 8, device="meta"), device="h100", precision="fp32")
    assert [(w.kind, w.source, w.n, w.d) for w in found.works] == [
        ("weight", "weight", 3, 8), ("align", "weight", 3, 8), ("align", "input", 20, 8), ("act", "act", 20, 3),
        ("grad", "grad", 3, 8), ("logits", "logits", 20, 3), ("logits", "logits", 20, 3),
    ]  # fmt: skip
    weight, subspace, _, act, *_ = found.works
    assert found.step_flops == (1 + BACKWARD) * 2 * 20 * 8 * 3
    ours = [launch for launch in weight.launches if launch.kernel.startswith("gram")]
    assert tuple(ours) == gram.dual(3, 8)[1:]
    ours = [launch for launch in act.launches if launch.kernel.startswith("gram")]
    assert tuple(ours) == gram.dual(3, 20)[1:]
    assert weight.launches[-2:] == small_eigh.eigvalsh([3])
    # q = k = 3: A V, A^T Y, and A V for the residual; all fresh columns of the block are drawn.
    products = [launch.flops.get("fp32", 0) for launch in subspace.launches]
    assert sum(products[1:]) == 2 * 3 * (3 * 8 * 3) and products[0] == rsvd.NORMAL * 8 * 3
    assert not any(work.calls for work in found.works)
    assert subspace.kept == 4 * (3 + 8) * 3
    # Gram matrix of the outputs and the sampled inputs; the largest call is that of the alignment.
    calls = [sum(w.temporary for w in found.works if w.kind == kind) for kind in ("weight", "align", "grad", "logits")]
    assert found.temporary == 8 * 3 * 3 + 4 * 20 * 8 + max(calls)
    c = found.cost()
    assert c.matrices == 7 and c.library_flops == sum(call.flops for w in found.works for call in w.calls)
    assert c.roofline_ms == pytest.approx(
        1e3 * cost.roofline([x for w in found.works for x in w.launches], cost.DEVICES["h100"])
    )


def test_larger_spectra_are_the_librarys():
    """Above the kernels' orders, on a GPU; a CPU has its own solver, at the rate that it shows."""
    with torch.device("meta"):
        model, example = nn.Sequential(nn.Linear(600, 513)), torch.empty(600, 600)
    found = plan(model, example, device="h100", track="full", precision="fp32")
    (call,) = next(work for work in found.works if work.kind == "weight").calls
    assert (call.name, call.flops) == ("eigvalsh", 4 * 513**3 // 3)
    assert found.rates["eigvalsh"] == pytest.approx(LIBRARY_SHARE * 34e12)
    found = plan(model, example, device="cpu", track=["align"])
    assert {call.name for work in found.works for call in work.calls} == {"eigvalsh", "eigh"}
    step = found.works[0].launches[-1]
    assert step.kernel == "subspace_step" and step.flops["fp32"] >= 2 * 2 * 513 * 600 * 27 + 2 * 513 * 600 * 15


def large(device="cpu"):
    """Weights that are carried, gradients from factors, by a sketch and anew."""
    torch.manual_seed(0)
    with torch.device(device):
        return nn.Sequential(nn.Linear(20, 520), nn.ReLU(), nn.Linear(520, 600), nn.ReLU(), nn.Linear(600, 300))


@pytest.mark.parametrize("how", ["factors", "sketch"])
def test_what_is_not_computed_anew_is_what_a_real_step_does_not(monkeypatch, how):
    done, rows = {}, 40
    if how == "sketch":  # of so few rows the factors would not leave it anything
        for module in ("capture", "tracking_cost"):
            monkeypatch.setattr(f"fastrank.{module}.pays", lambda *_: False)

    def noting(how, name, shape=lambda job: tuple(job[0].shape)):
        work = getattr(followed, name)

        def call(jobs, *arguments, **options):
            done.setdefault(how, []).extend(shape(job) for job in jobs)
            return work(jobs, *arguments, **options)

        monkeypatch.setattr(followed, name, call)

    noting("factors", "factored_spectra")
    noting("carried", "carried_spectra")
    noting("exact", "spectrum", lambda X: tuple(X.shape))
    noting("exact", "quick_spectra", lambda X: tuple(X.shape))
    sketched = followed.sketched_spectrum
    monkeypatch.setattr(
        followed, "sketched_spectrum",
        lambda A, *job: done.setdefault("sketch", []).append(tuple(A.shape)) or sketched(A, *job),
    )  # fmt: skip
    model = large()
    with watch(model, metrics=["weight", "grad"]) as w:
        for _ in range(2):
            done.clear()
            model.zero_grad()
            model(torch.randn(rows, 20)).square().sum().backward()
            w.step()
    found = plan(large("meta"), torch.empty(rows, 20, device="meta"), track=["weight", "grad"], device="cpu")
    planned = {}
    for work in found.works:
        if work.kind != "logits":
            planned.setdefault(work.how, []).append((work.n, work.d))
    assert planned == done and how in done
    text = to_text(found, "a title", None, width=200)
    assert "2 weights are carried, their exact spectra at most every 18 to 32 steps; " in text
    assert f"{len(done[how])} gradients are from" in text
    assert sum(work.kept for work in found.works) > 4 * (600 * 520 + 300 * 600)  # the anchors


def test_groups_add_up_and_every_divides():
    found = plan(small("meta"), torch.empty(SHAPE, device="meta"), device="a100")
    whole = found.cost()
    for key in (lambda w: w.kind, lambda w: w.layer):
        parts = [found.cost(works) for works in found.by(key).values()]
        for field in ("matrices", "bytes", "flops", "library_flops"):
            assert sum(getattr(part, field) for part in parts) == getattr(whole, field)
        # Layers share the launches of a kind; kinds share none.
        launches, ms = sum(part.launches for part in parts), sum(part.ms for part in parts)
        if key(found.works[0]) == found.works[0].kind:
            assert launches == whole.launches and ms == pytest.approx(whole.ms)
        else:
            assert launches > 1.5 * whole.launches and ms > whole.ms
    assert found.share(every=10) == pytest.approx(found.share() / 10)


@pytest.mark.parametrize("what", ["spectrum", "figures", "top_svd", "alignment"])
def test_small_operations_of_a_call_are_those_of_its_first_matrix_and_as_many_for_each_other(what):
    for wide in (False, True):
        counts = [_ops(what, wide, matrices, ("stable_rank",)) for matrices in (1, 2, 5)]
        assert counts[2] - counts[1] == 3 * (counts[1] - counts[0])
        assert _count(what, [wide] * 5, ("stable_rank",)) == counts[2]
        if what in ("figures", "top_svd"):
            assert counts[2] < 4 * counts[0]  # most of them are for all matrices at once


def test_ten_layers_are_measured_in_the_launches_of_one():
    """But for what each matrix needs by itself: zeros, samples, a product in the layer's hook, its small operations."""

    def launches(layers):
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(layers)))
        found = plan(model, torch.empty(64, 32, device="meta"), device="h100", precision="fp32")
        together, _ = measured_together(found.works, found.figures)
        alone = [launch for work in found.works for launch in work.launches]
        assert written(together) == written(alone) > 0
        return Counter(launch.kernel for launch in together)

    def written(launches):
        """Of both triangles of Gram matrices: no work is saved."""
        return sum(launch.written for launch in launches if launch.kernel.startswith("gram"))

    one, ten = launches(1), launches(10)
    each = {"torch.zeros", "input_rows", "gram_tiles", "gram_reduce"}
    shared = one.keys() - each
    assert len(shared) > 5 and {kernel: ten[kernel] for kernel in shared} == {kernel: one[kernel] for kernel in shared}
    assert ten["gram_tiles"] - one["gram_tiles"] == 9  # of the hooks


def test_sixteen_bit_activations_move_fewer_bytes():
    half, full = (plan(small("meta"), torch.empty(SHAPE, device="meta"), precision=p) for p in ("bf16", "fp32"))
    act = [half.cost(w for w in found.works if w.kind == "act") for found in (half, full)]
    assert act[0].bytes < act[1].bytes and act[0].flops == act[1].flops


def test_cuts_reach_the_budget_and_say_what_they_drop():
    found = plan(small("meta"), torch.empty(SHAPE, device="meta"))
    budget = found.share() / 7
    options = cuts(found, budget)
    assert options[0].every == math.ceil(7) and options[0].change == "every"
    assert all(option.share <= budget * (1 + 1e-9) for option in options)
    kinds = next(option for option in options if option.change in ("metrics", "layers"))
    of = (lambda w: w.kind) if kinds.change == "metrics" else (lambda w: w.layer)
    rest = [w for w in found.works if of(w) in kinds.kept or w.kind == "logits"]
    assert 0 < len(rest) < len(found.works)
    assert found.share(rest, every=kinds.every) == pytest.approx(kinds.share)
    assert len({(option.every, option.share) for option in options}) == len(options)
    assert cuts(found, 10 * found.share()) == []


def test_cpu_is_measured():
    found = plan(small("meta"), torch.empty(SHAPE, device="meta"), device="cpu")
    assert "measured" in found.device.source and found.precision == "fp32"
    assert 1e8 < found.device.bandwidth < 1e13 and 1e8 < found.device.flops["fp32"] < 1e15
    assert found.cost().ms > 0


def test_what_a_cpu_takes_beyond_the_roofline_is_measured_and_counted():
    found = plan(small("meta"), torch.empty(SHAPE, device="meta"), device="cpu")
    assert found.pace.small > 0
    assert found.pace.reached.keys() == {"subspace_step", "torch.probes", "orthonormal", "gram_tiles", "input_rows"}
    assert all(0 < share <= 1 for share in found.pace.reached.values())

    def ms(small, reached):
        return replace(found, pace=Pace(small, reached)).cost().kernel_ms

    together, small_operations = measured_together(found.works, found.figures, True)
    steps = [launch for launch in together if launch.kernel == "subspace_step"]
    assert steps and small_operations > 100
    assert ms(0, {"subspace_step": 0.25}) - ms(0, {}) == pytest.approx(3e3 * cost.roofline(steps, found.device))
    assert ms(2e-6, {}) - ms(0, {}) == pytest.approx(2e-3 * small_operations)
    h100 = plan(small("meta"), torch.empty(SHAPE, device="meta"), device="h100")
    assert h100.pace == Pace(h100.device.launch, {})


def test_text_and_json_agree(monkeypatch):
    found = plan_named("resnet10t", batch=8, image=32, classes=10, device="b200", track="light")
    text, data = to_text(found, "a title", 0.01, width=160), json.loads(to_json(found, "a title", 0.01))
    assert text.startswith("a title: a prediction, nothing was run") and "B200" in text
    assert data["tracked_step"]["matrices"] == len(data["matrices"]) == len(found.works)
    assert data["what"].endswith("nothing was run") and data["budget"]["cuts"]
    total = next(line for line in text.splitlines() if "a tracked step" in line and "tracking:" not in line)
    assert total.split()[3:5] == [str(data["tracked_step"]["matrices"]), str(data["tracked_step"]["launches"])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h1000"}, "device: expected one of cpu, a100, h100, h200, b200, got 'h1000'"),
        ({"track": "lots"}, "metrics: expected light"),
        ({"layers": "nothing*"}, "layers: expected globs"),
        ({"precision": "fp8"}, "precision: expected fp32 or bf16, got 'fp8'"),
        ({"every": 0}, "every: expected a whole number"),
        ({"utilisation": 1.5}, "utilisation: expected a share"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(InputError, match=message):
        plan(small("meta"), torch.empty(SHAPE, device="meta"), **options)


def test_mistakes_by_name():
    with pytest.raises(InputError, match=r"model: expected .*did you mean resnet18"):
        plan_named("resnet19", batch=8, image=32)
    with pytest.raises(InputError, match="batch: expected a whole number >= 2, got 1"):
        plan_named("resnet18", batch=1, image=32)
    with pytest.raises(InputError, match="model_kwargs: expected what resnet18 accepts"):
        plan_named("resnet18", batch=2, image=32, channels=3, kwargs={"nothing": 1})
    with pytest.raises(InputError, match=r"model: expected a model that runs"):
        plan(nn.Sequential(nn.Linear(3, 2, device="meta")), torch.empty(2, 5, device="meta"), layers="*")


@pytest.fixture
def fastrank(monkeypatch, capsys):
    """Runs one command in this process: (exit code, stdout, stderr)."""
    cli = pytest.importorskip("fastrank.cli")

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["fastrank", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return run


def test_the_example_of_the_help_runs(fastrank):
    from fastrank import cli

    example = re.search(r"`fastrank (plan .*)`", cli.plan.__doc__)[1]
    code, text, error = fastrank(*example.split())
    assert (code, error) == (0, "")
    assert text.startswith("resnet50, batch 256, 224 px, track default: a prediction, nothing was run\nH100 SXM")
    # 49 activations, 54 weights, gradients and inputs, logits before and after the softmax.
    assert re.search(r"a tracked step +267 ", text) and "budget 5 %: over it" in text


def test_a_mistake_is_one_line_and_exit_code_2(fastrank):
    for arguments, message in (
        ("--device h1000", "device: expected one of cpu, a100"),
        ("--model resnet19", "model: expected"),
        ("--budget much", "budget: expected a share of a training step such as 5%, got 'much'"),
        ("--image 1 --model vit_base_patch16_224", "image_size: expected"),
    ):
        code, text, error = fastrank("plan", *arguments.split())
        assert code == 2 and text == "" and error.startswith(f"fastrank: {message}") and error.count("\n") == 1
