"""`fastrank.evaluate` as a whole: against plain torch on the same model, on odd data, saved, and over two processes."""

import json
import math
from collections import UserDict

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastrank import Evaluation, InputError, evaluate
from fastrank.evaluation import ProbeProtocol
from fastrank.evaluation.one_pass import Forwards, Observer
from fastrank.report.content import flatten

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

C, D = 5, 12
FAST = ProbeProtocol(epochs=4, lr=1e-2, batch_size=64)


def data(n, seed, shift=0.0, classes=C, width=D):
    means = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    return TensorDataset(means[y] + 0.4 * torch.randn(n, width, generator=g) + shift, y)


def loader(dataset, batch_size=32):
    return DataLoader(dataset, batch_size=batch_size, generator=torch.Generator())  # else it draws on the global one


def network(classes=C, width=D):
    torch.manual_seed(0)
    head = nn.Linear(9, classes)
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 9), nn.ReLU(), head)


@pytest.fixture(scope="module")
def sets():
    return data(300, 0), data(120, 1), data(90, 2, 1.5), data(60, 3, 1.5)


@pytest.fixture(scope="module")
def found(sets):
    train, test, ood_train, ood_test = (loader(one) for one in sets)
    unlabelled = [x for x, _ in ood_test]
    ood = {"pair": (ood_train, ood_test), "one": ood_train, "unlabelled": unlabelled}
    return evaluate(network(), train, test=test, ood=ood, T=4.0, protocol=FAST)


def test_figures_are_those_of_plain_torch(sets, found):
    model, (train, test, _, other) = network().eval(), [one.tensors for one in sets]
    with torch.no_grad():
        z, z_test = model(train[0]), model(test[0])
        h, h_other = model[:5](train[0]).double(), model[:5](other[0]).double()
    rank = found.solution_rank
    for one, matrix in ((rank.before, z), (rank.after, (z / 4).softmax(1))):
        assert one.lo <= int(torch.linalg.matrix_rank(matrix)) <= one.hi and one.samples == 300
        sigma = torch.linalg.svdvals(matrix.double())
        assert one.sigma == pytest.approx(sigma.tolist(), rel=1e-5)
        assert one.at(one.rtol) == one.rank == int(one)
    assert rank.norm == pytest.approx(float(z.double().norm()), rel=1e-6)
    assert rank.norm_over_T == pytest.approx(rank.norm / 4) and rank.class_gap <= rank.class_gap_bound
    assert rank.accuracy == float((z.argmax(1) == train[1]).double().mean())
    assert found.test_accuracy == float((z_test.argmax(1) == test[1]).double().mean()) and found.test_samples == 120
    mu = torch.stack([h[train[1] == c].mean(0) for c in range(C)])
    within = sum((h[train[1] == c] - mu[c]).T @ (h[train[1] == c] - mu[c]) for c in range(C)) / 300
    M = mu - mu.mean(0)
    nc1 = float((within @ torch.linalg.pinv(M.T @ M / C, hermitian=True)).trace() / C)
    assert found.collapse.nc1_pinv == pytest.approx(nc1, rel=1e-6) and found.collapse.nc1_rank == C - 1
    assert found.collapse.nc1_trace == pytest.approx(float(within.trace() / (M.T @ M / C).trace()), rel=1e-6)
    h_test = network().eval()[:5](test[0]).detach().double()
    nearest = torch.cdist(h_test, mu).argmin(1)
    assert found.collapse.nc4 == pytest.approx(float((nearest != z_test.argmax(1)).double().mean()))
    one = found.ood["pair"]
    cosines = nn.functional.cosine_similarity(mu, h_other.mean(0)[None])
    assert one.orthodev == pytest.approx(float(cosines.abs().mean()), rel=1e-6)
    common = abs(float(nn.functional.cosine_similarity(mu.mean(0), h_other.mean(0), dim=0)))
    assert one.common_cosine == pytest.approx(common, rel=1e-6)
    assert found.collapse.mean_share == pytest.approx(
        float(mu.mean(0) @ mu.mean(0) / mu.square().sum(1).mean()), rel=1e-6
    )
    assert one.orthodev_layers["4"] == pytest.approx(one.orthodev) and one.samples == 60
    assert found.layers["4"]["nc1_trace"] == pytest.approx(found.collapse.nc1_trace, rel=1e-6)


def test_probes_measure_every_layer(found):
    probes = found.probes
    assert list(probes.adam) == list(probes.ridge) == ["1", "4"]
    assert (probes.trained_on, probes.ridge_trained_on, probes.measured_on) == (300, 300, 120)
    assert probes.steps == 4 * 5 and not probes.held_out and "20 steps in all" in probes.notes[0]
    assert min(probes.ridge.values()) > 0.9 and min(probes.adam.values()) > 0.5
    for name in ("pair", "one"):
        one = found.ood[name]
        assert list(one.probes) == ["1", "4"] and min(one.ridge.values()) > 0.8 and 0 <= one.rho <= 1
    assert found.ood["unlabelled"].probes == {} and "no labels" in " ".join(found.ood["unlabelled"].notes)
    same = (found.ood["unlabelled"].scores, found.ood["pair"].scores)
    assert same[0] == same[1] and {"neco", "max_logit"} <= set(same[0])


def test_nothing_is_changed_and_the_figures_are_a_function_of_the_seed(sets):
    model = network().train()
    model[2].eval()  # a frozen layer stays frozen, the others in training mode
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = evaluate(model, loader(sets[0]), ood=loader(sets[3]), protocol=FAST, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not model[2].training and not any(m._forward_hooks for m in model.modules())
    again = evaluate(model, loader(sets[0], 17), ood=loader(sets[3], 60), protocol=FAST, seed=3)
    assert first.probes.held_out and first.probes.measured_on + first.probes.trained_on == 300
    assert first.probes.measured_on == again.probes.measured_on
    # Other batches are other roundings of the forward passes, and nothing else.
    assert first.solution_rank.norm == pytest.approx(again.solution_rank.norm, rel=1e-6)
    assert list(first.probes.ridge.values()) == pytest.approx(list(again.probes.ridge.values()), abs=0.02)


def test_saved_and_loaded(found, tmp_path):
    again = Evaluation.load(found.save(tmp_path / "evaluation.json"))
    assert json.dumps(again.to_dict()) == json.dumps(found.to_dict())
    assert int(again.solution_rank) == int(found.solution_rank) and again.ood["pair"].scores == found.ood["pair"].scores
    pytest.importorskip("pandas")
    frame = found.to_frame()
    assert list(frame.columns) == ["set", "layer", "metric", "value"]
    chosen = frame[(frame.set == "pair") & (frame.metric == "neco_auroc")]
    assert chosen.value.item() == found.ood["pair"].scores["neco"].auroc
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="format 1"):
        Evaluation.load(tmp_path / "other.json")


def test_unbalanced_and_missing_classes():
    x, y = data(200, 0).tensors
    keep = (y != 3) & ((y != 1) | (torch.arange(200) < 20))
    found = evaluate(network(), [(x[keep], y[keep])], protocol=FAST)
    assert found.collapse.present == 4 and found.collapse.nc1_rank == 3
    assert found.collapse.notes == ("1 classes without samples",)
    assert math.isfinite(found.collapse.nc3_duality) and math.isnan(found.solution_rank.class_gap)


def test_one_class():
    x, y = data(200, 0).tensors
    found = evaluate(network(), [(x[y == 2], y[y == 2])], protocol=FAST)
    assert math.isnan(found.collapse.nc1_pinv) and "1 class with samples" in found.collapse.notes[0]
    assert found.probes.ridge == {"1": 1.0, "4": 1.0} and found.solution_rank.rank >= 1


def test_more_classes_than_features():
    found = evaluate(network(classes=40), loader(data(400, 0, classes=40)), protocol=FAST)
    assert found.collapse.nc1_rank <= 9 and any("no simplex exists" in note for note in found.collapse.notes)
    assert math.isfinite(found.collapse.nc1_pinv) and found.solution_rank.hi <= 10  # 9 features and a bias


def test_one_sample_per_class():
    x, _ = data(C, 0).tensors
    found = evaluate(network(), [(x, torch.arange(C))], test=[(x, torch.arange(C))], protocol=FAST)
    assert found.collapse.nc1_pinv == pytest.approx(0, abs=1e-12) and found.collapse.nc1_cdnv == pytest.approx(0)
    assert found.collapse.nc4_samples == C
    assert found.collapse.notes == (f"{C} of {C} classes have one sample, which nc1 counts as collapsed",)


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_a_layer_without_variation_is_not_collapsed(value):
    """The features are all 0, or all 1: nothing between the classes, so no measure is defined, and each says why."""
    model = network()
    nn.init.zeros_(model[3].weight)
    nn.init.constant_(model[3].bias, value)
    found = evaluate(model, loader(data(60, 0)), ood=loader(data(40, 2)), protocol=FAST)
    c = found.collapse
    assert math.isnan(c.nc1_pinv) and math.isnan(c.nc1_trace) and math.isnan(c.nc3_duality) and c.nc1_rank == 0
    assert any("all class means coincide" in note for note in c.notes)
    assert any("gnc3 is not defined" in note for note in c.notes) == math.isnan(c.gnc3) == (value < 0)
    assert "no NECO: the training features do not vary" in found.ood["ood"].notes
    assert any("orthodev" in note for note in found.ood["ood"].notes) == math.isnan(found.ood["ood"].orthodev)


def test_a_classifier_of_zeros_says_so():
    model = network()
    nn.init.zeros_(model[5].weight)
    c = evaluate(model, loader(data(60, 0)), probes=None).collapse
    assert math.isnan(c.gnc2) and math.isnan(c.gnc3) and math.isfinite(c.nc1_pinv)
    assert c.notes == (f"{C} rows of the classifier are zero: its angles, gnc2 and gnc3 are not defined",)


def test_logits_of_zeros_have_rank_0():
    model = network()
    nn.init.zeros_(model[5].weight)
    nn.init.zeros_(model[5].bias)
    rank = evaluate(model, loader(data(60, 0)), probes=None).solution_rank
    assert (rank.rank, rank.lo, rank.hi, rank.norm) == (0, 0, 0, 0)
    assert (rank.after.lo, rank.after.hi) == (1, 1)  # equal rows


def test_held_out_samples_are_no_probes(sets):
    """Four fifths train, by both methods; nothing that is measured on was trained on."""
    p = evaluate(network(), loader(sets[0]), protocol=FAST).probes
    assert p.held_out and p.ridge_trained_on == p.trained_on == 300 - p.measured_on and 30 < p.measured_on < 90
    # Labels that say nothing are not learnt but by heart: 16 and 9 features of 40 samples.
    x, _ = sets[0].tensors
    y = torch.randint(C, (300,), generator=torch.Generator().manual_seed(5))
    p = evaluate(network(), [(x[:45], y[:45])], probes="ridge", ridge_penalty=1e-6).probes
    assert p.measured_on < p.ridge_trained_on < 45 and max(p.ridge.values()) < 0.7


def test_empty_batches_are_passed_over(sets):
    x, y = sets[1].tensors
    parts = [(x[:0], y[:0]), (x[:50], y[:50]), (x[:0], y[:0]), (x[50:], y[50:]), (x[:0], y[:0])]
    for limit in (None, 50, 60):
        a, b = (evaluate(network(), one, probes=None, limit=limit).to_dict() for one in (parts, [parts[1], parts[3]]))
        assert a == b and a["solution_rank"]["samples"] == (limit or 120)


def test_batches_that_are_mappings(sets):
    """As Hugging Face's: `pixel_values`, `labels` and what else there is, in a dict or another mapping."""
    x, y = sets[1].tensors
    found = [
        evaluate(network(), batches, ood=other, probes=None).to_dict()
        for batches, other in (
            ([(x, y)], [x + 1]),
            ([{"id": y, "labels": y, "pixel_values": x}], [{"pixel_values": x + 1}]),
            ([UserDict(image=x, label=y.numpy())], [UserDict(image=x + 1, label=None)]),
        )
    ]
    assert found[0] == found[1] == found[2]


def test_temperature_of_a_loss(sets):
    a, b = (evaluate(network(), loader(sets[1]), probes=None, T=T) for T in (torch.tensor(4.0), 4.0))
    assert a.to_dict() == b.to_dict()


def test_features_that_are_not_numbers():
    class Broken(nn.ReLU):
        def forward(self, x):
            return torch.relu(x).index_fill(1, torch.tensor([0]), math.nan)

    model = network()
    model.add_module("side", nn.ReLU())
    model = nn.Sequential(model[0], nn.ReLU(), model[2], model[3], Broken(), model[5])
    found = evaluate(model, loader(data(200, 0)), ood=loader(data(50, 3, 2.0)), layers=["1", "4"], protocol=FAST)
    assert found.collapse.notes == ("non-finite features",) and math.isnan(found.collapse.nc2_etf)
    assert math.isnan(found.probes.adam["4"]) and found.probes.adam["1"] > 0.3 and math.isnan(found.probes.kappa)
    assert "adam 4: non-finite features" in found.probes.notes
    assert "non-finite values" in found.solution_rank.before.reason and math.isnan(found.solution_rank.rank)
    assert "no NECO: non-finite training features" in found.ood["ood"].notes
    with pytest.raises(ValueError, match="not a number"):
        int(found.solution_rank)


def test_a_huge_shift():
    x, y = data(60, 3).tensors
    found = evaluate(network(), loader(data(200, 0)), ood=[(x * 1e18, y)], probes="ridge", ridge_features=8)
    assert all(math.isfinite(one.auroc) for one in found.ood["ood"].scores.values())
    assert 0 <= found.ood["ood"].orthodev <= 1 and not found.probes.adam


def test_memory_bounds_the_samples_of_probes(sets):
    size = 4 * (16 + 9)
    found = evaluate(network(), loader(sets[0]), test=loader(sets[1]), protocol=FAST, probe_memory=50 * size)
    assert found.probes.trained_on == 50 and found.probes.ridge_trained_on == 300
    limited = evaluate(network(), loader(sets[0]), limit=70, probes=None)
    assert limited.solution_rank.before.samples == 70 and limited.probes.adam == {}
    with pytest.raises(InputError, match="probe_memory: expected at least 100 bytes"):
        evaluate(network(), loader(sets[0]), probe_memory=10)


def test_a_classifier_that_is_not_there_is_said(sets):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return 2 * self.body(x)

    found = evaluate(Scaled(), loader(sets[0]), ood=loader(sets[3]), protocol=FAST)
    assert "not the output of a linear module" in found.collapse.notes[0] and found.settings["classifier"] is None
    assert set(found.ood["ood"].scores) == {"max_logit", "max_softmax"} and math.isnan(found.ood["ood"].orthodev)
    with pytest.raises(InputError, match="classifier: expected the linear module whose output"):
        evaluate(network(), loader(sets[0]), classifier="3")


def test_mistakes_are_named(sets):
    model, train = network(), loader(sets[0])
    x, y = sets[0].tensors
    for call, message in (
        (lambda: evaluate(model, []), "loader: expected at least one sample"),
        (lambda: evaluate(model, [x]), "loader: expected batches (inputs, labels), got inputs alone"),
        (lambda: evaluate(model, [(x, y + 3)]), "labels: expected whole numbers 0 .. 4, got 7"),
        (lambda: evaluate(model, [(x, y - 1)]), "labels: expected whole numbers 0 .. 4, got -1"),
        (lambda: evaluate(model, [(x, y.float())]), "loader: expected 300 whole numbers as labels"),
        (lambda: evaluate(model, [{"x": x}]), "loader: expected batches (inputs, labels), got inputs alone"),
        (lambda: evaluate(model, [{"a": x, 3: y}]), "in a batch that is a mapping, got a, 3; give tuples"),
        (lambda: evaluate(model, [{"x": x, "image": x}]), "loader: expected one of the names pixel_values, inputs"),
        (lambda: evaluate(model, [{"x": x, "y": y, "label": y}]), "loader: expected at most one of the names labels"),
        (lambda: evaluate(model, [{"x": x.numpy(), "y": y}]), "of tensors, got dict of ndarray"),
        (lambda: evaluate(model, [(x, ["a"] * 300)]), "loader: expected 300 whole numbers as labels, got ['a', 'a'"),
        (lambda: evaluate(model, [(x[:0], y[:0])]), "loader: expected at least one sample"),
        (lambda: evaluate(model, [(x.numpy(), y)]), "of tensors, got tuple of ndarray"),
        (lambda: evaluate(model, train, limit=1), "labels: expected at least one labelled sample to train probes on"),
        (lambda: evaluate(model, train, T=torch.ones(2)), "T: expected a finite number > 0"),
        (lambda: evaluate(model, train, T=0), "T: expected a finite number > 0"),
        (lambda: evaluate(model, train, probes="svm"), "probes: expected some of adam, ridge"),
        (lambda: evaluate(model, train, threshold=0), "threshold: expected a share"),
        (lambda: evaluate(model, train, limit=0), "limit: expected"),
        (lambda: evaluate(model, train, distributed=True), "distributed: expected"),
        (lambda: evaluate(nn.Sequential(nn.ReLU(), nn.Flatten(0)), train), "model: expected logits [2, C] for 2"),
        (lambda: evaluate(model, train, layers="nothing*"), "layers: expected globs"),
        (lambda: evaluate(model, train, ridge_penalty=0), "penalty: expected a number > 0"),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)


def test_probes_are_finished_unless_a_protocol_says_otherwise(sets):
    """Two layers and 300 samples: affordable. The paper's to the letter is one batch an epoch."""
    by_default, letter = (evaluate(network(), loader(sets[0]), probes="adam", protocol=p, seed=2).probes
                          for p in (None, ProbeProtocol(seed=2)))  # fmt: skip
    assert (by_default.steps, letter.steps) == (650, 50) and by_default.protocol["seed"] == 2
    assert not by_default.notes and "50 steps in all" in letter.notes[0]
    assert min(by_default.adam.values()) > max(letter.adam.values())


def test_one_pass_over_each_set(sets):
    class Counting:
        def __init__(self, dataset):
            self.batches, self.passes = list(loader(dataset)), 0

        def __iter__(self):
            self.passes += 1
            return iter(self.batches)

    counters = [Counting(one) for one in sets]
    train, test, ood_train, ood_test = counters
    evaluate(network(), train, test=test, ood=(ood_train, ood_test), protocol=FAST)
    assert [one.passes for one in counters] == [1, 1, 1, 1]


def test_an_observer_sees_every_layer_of_every_batch(sets):
    seen = []

    class Seen(Observer):
        def layer(self, name, X):
            seen.append((name, tuple(X.shape)))

    forwards = Forwards(network(), max_features=10)
    forwards.run(loader(sets[1], 100), [Seen()])
    assert seen == [("1", (100, 10)), ("4", (100, 9)), ("1", (20, 10)), ("4", (20, 9))]


#: Fewer samples than the 16 features of the first layer; than the 9 of the last, and not.
FEW = (8, 10)


def _few(n, part, **options):
    x, y = data(n, 0).tensors
    x_test, y_test = data(20, 1).tensors
    test = [(x_test[part], y_test[part])]
    return evaluate(
        network(), [(x[part], y[part])], test=test, ood=[x_test[part] + 1], probes="ridge", neco_dim=3, **options
    ).to_dict()  # fmt: skip


def _rank(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    mine = [
        [(x[rank::2], y[rank::2]) for x, y in loader(one, 50)]
        for one in (data(300, 0), data(120, 1), data(90, 2, 1.5), data(60, 3, 1.5))
    ]
    # The first process sees classes of the OOD set that the second does not.
    mine[2] = [(x, y if rank == 0 else y.clamp_max(3)) for x, y in mine[2]]
    found = evaluate(network(), mine[0], test=mine[1], ood=(mine[2], mine[3]), distributed=True, protocol=FAST, T=4.0)
    few = [_few(n, slice(rank, None, 2), distributed=True) for n in FEW]
    (path / f"{rank}.json").write_text(json.dumps([found.to_dict(), *few]))
    dist.destroy_process_group()


def test_two_processes_are_one(found, tmp_path):
    # Forked: a fresh process would take seconds to import everything again.
    torch.multiprocessing.start_processes(_rank, args=(tmp_path,), nprocs=2, start_method="fork")
    (first, *few), second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert json.dumps([first, *few]) == json.dumps(second)
    for n, shared in zip(FEW, few, strict=True):
        flat, expected = flatten(shared), flatten(_few(n, slice(None)))
        for key, value in expected.items():
            if isinstance(value, float) and math.isfinite(value):
                assert flat[key] == pytest.approx(value, rel=1e-5, abs=1e-9), (n, key)
    whole = found.to_dict()
    np.testing.assert_allclose(first["solution_rank"]["sigma"], whole["solution_rank"]["sigma"], rtol=1e-6)
    assert first["solution_rank"]["samples"] == 300 and first["test_samples"] == 120
    for part in ("solution_rank", "collapse", "layers"):
        flat, expected = (flatten(one[part]) for one in (first, whole))
        for key, value in expected.items():
            if isinstance(value, float) and math.isfinite(value):
                assert flat[key] == pytest.approx(value, rel=1e-5, abs=1e-9), key
    assert first["probes"]["ridge"] == whole["probes"]["ridge"]
    # The processes share steps and gradients but not the order of the samples.
    assert first["probes"]["trained_on"] == 300 and first["probes"]["measured_on"] == 120
    assert np.allclose(list(first["probes"]["adam"].values()), list(whole["probes"]["adam"].values()), atol=0.2)
    assert first["ood"]["ood"]["orthodev"] == pytest.approx(whole["ood"]["pair"]["orthodev"], rel=1e-6)
    assert first["ood"]["ood"]["scores"] == whole["ood"]["pair"]["scores"]
