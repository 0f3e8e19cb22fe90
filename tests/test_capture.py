"""Sources against torch's own unfold and indexing; layer selection; hooks that leave nothing behind."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastrank import InputError
from fastrank.capture import LINE, Capture, as_matrix, patch_view
from fastrank.layers import clean_name, select_layers


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.shared = nn.ReLU()
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1, groups=2) for _ in range(2)])
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = self.shared(block(x))
        return self.fc(x.mean((2, 3)))


def names(layers):
    return [layer.name for layer in layers]


def test_star_selects_weights_and_nonlinearities_in_the_models_order():
    layers = select_layers(Branching(), "*")
    assert names(layers) == ["stem.0", "stem.2", "shared", "blocks.0", "blocks.1", "fc"]
    assert [layer.output for layer in layers] == [False, True, True, False, False, False]
    assert [layer.weight for layer in layers] == [True, False, False, True, True, True]


def test_star_watches_weighted_outputs_where_no_nonlinearity_is_a_module():
    layers = select_layers(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "*")
    assert all(layer.output and layer.weight for layer in layers)


def test_globs_select_containers_and_several_patterns_add_up():
    layers = select_layers(Branching(), ["stem", "blocks.?"])
    assert names(layers) == ["stem", "blocks.0", "blocks.1"]
    assert [layer.weight for layer in layers] == [False, True, True]
    with pytest.raises(InputError, match=r"^layers: expected .*'nothing\*'"):
        select_layers(Branching(), "nothing*")


def test_wrappers_do_not_change_names():
    assert clean_name("_orig_mod.module.layer1._fsdp_wrapped_module.0") == "layer1.0"
    wrapped = nn.DataParallel(Branching())
    assert names(select_layers(wrapped, "*")) == names(select_layers(Branching(), "*"))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
        {"kernel_size": 1},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": 3, "padding": "valid", "stride": 2},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    ],
)
def test_patch_view_times_weight_is_the_convolution(options):
    g = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 5, bias=False, **options).double()
    x = torch.randn(2, 3, 9, 8, generator=g, dtype=torch.float64)
    windows = patch_view(x, conv)
    out = torch.einsum("bcyxij,ocij->boyx", windows, conv.weight)
    assert torch.allclose(out, conv(x), atol=1e-12)


def test_patch_view_in_one_and_three_dimensions():
    for conv, shape in (
        (nn.Conv1d(2, 3, 3, padding=1, bias=False), (2, 2, 11)),
        (nn.Conv3d(2, 3, 2, stride=2, bias=False), (1, 2, 6, 5, 4)),
    ):
        x = torch.randn(shape, dtype=torch.float64)
        conv = conv.double()
        axes = "yxz"[: len(shape) - 2]
        kernel = "ijk"[: len(shape) - 2]
        out = torch.einsum(f"bc{axes}{kernel},oc{kernel}->bo{axes}", patch_view(x, conv), conv.weight)
        assert torch.allclose(out, conv(x), atol=1e-12)


def record(model, layers="*", kinds=("act", "weight", "input"), **options):
    seen = {}
    capture = Capture(
        select_layers(model, layers),
        lambda kind, name, X: seen.__setitem__((kind, name), X().clone()),
        kinds=frozenset(kinds),
        **options,
    )
    capture.attach()
    capture.switch.armed = True
    capture.begin_step(0)
    capture.begin_forward()
    return capture, seen


@pytest.mark.parametrize("groups", [1, 2])
def test_all_patches_equal_unfold_and_a_sample_is_a_subset(groups):
    conv = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=groups))
    x = torch.randn(2, 4, 5, 5)
    _, seen = record(conv, input_rows=10_000)
    conv(x)
    unfolded = F.unfold(x, 3, padding=1)  # [B, C * 9, positions]
    width = 4 // groups * 9
    rows = unfolded.unflatten(1, (groups, width)).transpose(2, 3).reshape(-1, width)  # those of a group together
    assert torch.equal(seen["input", "0"], rows)
    capture, sample = record(conv, input_rows=7)
    conv(x)
    first = sample["input", "0"].clone()
    assert first.shape == (7, width)
    assert all((rows == row).all(1).any() for row in first)
    capture.begin_step(0)
    capture.begin_forward()
    conv(x)
    assert torch.equal(sample["input", "0"], first)
    capture.begin_step(1)
    capture.begin_forward()
    conv(x)
    assert not torch.equal(sample["input", "0"], first)


def test_layers_with_as_many_rows_are_seen_at_the_same_places_and_others_at_each_step():
    wide, narrow = nn.Linear(1, 3), nn.Linear(1, 5)
    capture, seen = record(nn.ModuleDict({"wide": wide, "narrow": narrow}), input_rows=9)
    x, shorter = torch.arange(400.0)[:, None], torch.arange(30.0)[:, None]
    places = []
    for step in (0, 1):
        capture.begin_step(step)
        capture.begin_forward()
        wide(x), narrow(x)
        assert torch.equal(seen["input", "wide"], seen["input", "narrow"])
        places.append(seen["input", "wide"].flatten().tolist())
        narrow(shorter)
        assert len(set(seen["input", "narrow#2"].flatten().tolist())) == 9 and seen["input", "narrow#2"].max() < 30
    assert places[0] != places[1] and all(len(set(p)) == 9 and p == sorted(p) for p in places)


def test_features_are_the_same_seeded_subset_at_every_step():
    model = nn.Sequential(nn.ReLU())
    capture, seen = record(model, kinds=("act",), max_features=6)
    x = torch.rand(3, 50)
    model(x)
    first = seen["sample", "0"].clone()
    assert first.shape == (3, 6)
    columns = [(x == first[:, [j]]).all(0).nonzero().item() for j in range(6)]
    assert columns == sorted(set(columns))
    capture.begin_step(1)
    capture.begin_forward()
    model(x + 1)
    assert torch.equal(seen["sample", "0"], first + 1)
    _, other = record(model, kinds=("act",), max_features=6, seed=1)
    model(x)
    assert not torch.equal(other["sample", "0"], first)


@pytest.mark.parametrize("total, most", [(50, 49), (1000, 64), (1024, 1000), (4096, 625), (802816, 10_000)])
def test_features_are_runs_of_neighbours_spread_over_all_rows_of_an_image(total, most):
    capture = Capture([], lambda *_: None, kinds=frozenset())
    columns = capture.features(torch.arange(float(total))[None], "layer", most)[0].long()
    runs = columns.view(-1, min(LINE, most))
    assert len(columns) <= most < len(columns) + LINE and len(columns.unique()) == len(columns)
    assert bool((runs.diff(dim=1) == 1).all()) and columns[-1] < total
    step = runs[:, 0].diff().unique()
    assert len(step) <= 1 and bool((step >= runs.shape[1]).all())
    # Of a map 64 x 112 x 112 the runs begin in every one of its 112 columns.
    if total == 802816:
        assert len((columns % 112).unique()) == 112 and len((columns // 112**2).unique()) == 64


def test_features_do_not_depend_on_strides():
    capture = Capture([], lambda *_: None, kinds=frozenset())
    X = torch.randn(7, 300)
    wide = torch.randn(7, 600)
    wide[:, ::2] = X
    for same in (X.T.contiguous().T, wide[:, ::2], torch.cat([X[:1], X])[1:]):
        assert torch.equal(capture.features(same, "layer", 100), capture.features(X, "layer", 100))


def test_a_shared_module_is_told_apart_by_its_run():
    model = Branching()
    _, seen = record(model)
    model(torch.randn(2, 1, 6, 6))
    assert ("act", "shared") in seen and ("act", "shared#2") in seen
    assert ("act", "shared#3") not in seen


def test_modes():
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert as_matrix(x, "flatten").shape == (2, 12)
    assert torch.equal(as_matrix(x, "channels"), x.permute(0, 2, 3, 1).reshape(8, 3))
    assert torch.equal(as_matrix(x, "pool"), x.mean((2, 3)))
    tokens = torch.randn(2, 5, 7)
    assert as_matrix(tokens, "channels").shape == (10, 7)
    assert torch.allclose(as_matrix(tokens, "pool"), tokens.mean(1))
    with pytest.raises(InputError, match=r"^mode: expected"):
        record(nn.Sequential(nn.ReLU()), mode="rows")


def test_evaluation_and_unarmed_forwards_emit_nothing_and_detach_removes_every_hook():
    model = Branching()
    capture, seen = record(model)
    model.eval()(torch.randn(2, 1, 6, 6))
    capture.switch.armed = False
    model.train()(torch.randn(2, 1, 6, 6))
    assert not seen
    capture.detach()
    assert not any(m._forward_hooks for m in model.modules())
