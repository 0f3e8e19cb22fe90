"""Networks by name: the papers' shapes, timm's, and mistakes."""

import pytest
import torch
from torch import nn

from fastrank.errors import InputError
from fastrank.train.models import build_model, parse_kwargs

pytest.importorskip("timm")


def weighted(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def test_mlp_is_eight_layers_of_2048():
    layers = weighted(build_model("mlp", 10, 3, 8, {}), nn.Linear)
    assert [layer.out_features for layer in layers] == [2048] * 8 + [10]
    assert layers[0].in_features == 3 * 8 * 8


def test_mlp_initialisations_and_layer_norm():
    torch.manual_seed(0)
    stds = {init: build_model("mlp", 10, 1, 8, {"depth": 2, "width": 256, "init": init}) for init in ("kaiming", 0.01)}
    for init, std in (("kaiming", (2 / 256) ** 0.5), (0.01, 0.01)):
        layer = weighted(stds[init], nn.Linear)[1]
        assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.02) and not layer.bias.any()
    normed = build_model("mlp", 10, 1, 8, {"depth": 2, "width": 16, "layer_norm": True})
    assert [type(m).__name__ for m in normed] == ["Flatten", *["Linear", "LayerNorm", "ReLU"] * 2, "Linear"]


def test_a_vision_transformer_for_small_images():
    model = build_model("vit_small_image", 10, 1, 24, {"depth": 2})
    assert len(model.blocks) == 2 and model.patch_embed.num_patches == 36 and model.embed_dim == 192


def test_vgg19_has_sixteen_convolutions_and_three_linear_layers():
    model = build_model("vgg19", 10, 1, 32, {})
    widths = [conv.out_channels for conv in weighted(model, nn.Conv2d)]
    assert widths == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    assert len(weighted(model, nn.Linear)) == 3 and len(weighted(model, nn.MaxPool2d)) == 5
    assert not weighted(model, nn.BatchNorm2d)
    narrow = build_model("vgg19", 10, 1, 32, {"width": 0.25})
    assert [conv.out_channels for conv in weighted(narrow, nn.Conv2d)] == [width // 4 for width in widths]
    assert [layer.in_features for layer in weighted(narrow, nn.Linear)] == [128] * 3


@pytest.mark.parametrize(
    ("name", "weights", "first", "last"),
    [("resnet20_cifar", 20, 16, 64), ("resnet18_cifar", 18, 64, 512), ("resnet34_cifar", 34, 64, 512),
     ("resnet50_cifar", 50, 64, 2048)],
)  # fmt: skip
def test_cifar_resnets_keep_the_resolution_and_have_their_depth(name, weights, first, last):
    model = build_model(name, 10, 3, 32, {})
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    assert len(convolutions) + 1 == weights
    assert model.conv1.kernel_size == (3, 3) and model.conv1.stride == (1, 1) and model.conv1.out_channels == first
    assert not weighted(model, nn.MaxPool2d) and model.fc.in_features == last
    sizes = []
    model.layer1.register_forward_hook(lambda module, args, output: sizes.append(output.shape[-1]))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [32]


def test_timm_models_take_keyword_arguments_channels_and_image_size():
    model = build_model("resnet10t", 7, 1, 24, parse_kwargs(["channels=[8, 8, 16, 16]", "act_layer=gelu"]))
    assert model.training and model.fc.in_features == 16 and type(model.act1).__name__ == "GELU"
    assert build_model("test_vit", 7, 1, 32, {}).training  # refuses any size but the one it is built for


def test_same_seed_same_weights():
    def weights():
        torch.manual_seed(3)
        return build_model("test_resnet", 4, 1, 16, {}).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_values_of_keyword_arguments():
    assert parse_kwargs(["a=1", "b=x=y", "c=[1, 2]", "d=None"]) == {"a": 1, "b": "x=y", "c": [1, 2], "d": None}
    for pair in ("a", "=1", "a b=1"):
        with pytest.raises(InputError, match=r"^model_kwargs: expected key=value"):
            parse_kwargs([pair])


@pytest.mark.parametrize(
    ("name", "size", "kwargs", "message"),
    [
        ("resnet19", 32, {}, "^model: expected .* got 'resnet19'; did you mean .*resnet18"),
        ("resnet18", 32, {"wide": 1}, "^model_kwargs: expected what resnet18 accepts, got wide=1"),
        ("resnet10t", 32, {"channels": [8, 8]}, r"^model_kwargs: .* got channels=\[8, 8\]"),
        ("test_vit", 17, {}, "^image_size: expected what test_vit accepts, got 17"),
    ],
)
def test_mistakes_are_named(name, size, kwargs, message):
    with pytest.raises(InputError, match=message):
        build_model(name, 10, 1, size, kwargs)
