"""Networks by name: the papers' own for small images, and every model of timm.

The papers' (Masarczyk et al. 2025, A.1): `mlp`, eight layers of 2048; `vgg19`, for small images; ResNets with a stem
for CIFAR (3x3, stride 1, no max-pool); beside them `vit_small_image`. A timm name that equals one of these is reached
with its tag: `vgg19.tv_in1k`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fastrank.errors import InputError
from fastrank.extras import require
from fastrank.train.names import closest

Builder = Callable[..., nn.Module]


def mlp(
    num_classes: int,
    in_chans: int,
    image_size: int,
    depth: int = 8,
    width: int = 2048,
    init: str | float = "default",
    layer_norm: bool = False,
) -> nn.Module:
    """`depth` hidden layers of `width` with ReLU, then the classifier.

    init: of every linear layer's weight: torch's "default", "kaiming" (normal, for ReLU), or the standard deviation of
    a normal distribution; with the latter two biases start at zero ([U] appendix E). layer_norm: before each ReLU.
    """
    sizes = [in_chans * image_size**2, *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), *[nn.LayerNorm(m)] * layer_norm, nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
    if init != "default":
        for layer in (module for module in model if isinstance(module, nn.Linear)):
            if init == "kaiming":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=float(init))
            nn.init.zeros_(layer.bias)
    return model


def vgg19(num_classes: int, in_chans: int, image_size: int, batch_norm: bool = False, width: float = 1.0) -> nn.Module:
    """Simonyan & Zisserman's 16 convolutions and three linear layers; for small images the latter are 512 wide.

    width: factor of all channels.
    """
    layers: list[nn.Module] = []
    last = max(1, round(512 * width))
    for base, repeats in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        channels = max(1, round(base * width))
        for _ in range(repeats):
            layers.append(nn.Conv2d(in_chans, channels, 3, padding=1))
            layers += [nn.BatchNorm2d(channels)] * batch_norm
            layers.append(nn.ReLU(inplace=True))
            in_chans = channels
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(2):
        layers += [nn.Linear(last, last), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.Linear(last, num_classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def _resnet_cifar(block: str, layers: tuple[int, ...], channels: tuple[int, ...] = (64, 128, 256, 512)) -> Builder:
    """A timm ResNet whose stem keeps the resolution of a small image."""

    def build(num_classes: int, in_chans: int, image_size: int, **kwargs: Any) -> nn.Module:
        resnet = require("timm.models.resnet", "model")
        # A "deep" stem is the one whose width timm lets us choose; its layers give way to one 3x3 convolution.
        stem = {"stem_type": "deep", "stem_width": channels[0] // 2}
        settings = {"layers": layers, "channels": channels, **stem, **kwargs}
        model = resnet.ResNet(getattr(resnet, block), num_classes=num_classes, in_chans=in_chans, **settings)
        model.conv1 = nn.Conv2d(in_chans, model.bn1.num_features, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        if len(layers) == 3:  # timm's forward passes through four stages
            model.layer4 = nn.Identity()
        return model

    return build


def vit_small_image(num_classes: int, in_chans: int, image_size: int, **kwargs: Any) -> nn.Module:
    """timm's vision transformer for small images: 6 blocks of width 192 with 3 heads over patches of 4 x 4 pixels."""
    transformer = require("timm.models.vision_transformer", "model").VisionTransformer
    settings = {"img_size": image_size, "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3, **kwargs}
    return transformer(num_classes=num_classes, in_chans=in_chans, **settings)


BUILDERS: dict[str, Builder] = {
    "mlp": mlp,
    "vgg19": vgg19,
    "vit_small_image": vit_small_image,
    "resnet20_cifar": _resnet_cifar("BasicBlock", (3, 3, 3), (16, 32, 64)),
    "resnet18_cifar": _resnet_cifar("BasicBlock", (2, 2, 2, 2)),
    "resnet34_cifar": _resnet_cifar("BasicBlock", (3, 4, 6, 3)),
    "resnet50_cifar": _resnet_cifar("Bottleneck", (3, 4, 6, 3)),
}


def parse_kwargs(pairs: Iterable[str]) -> dict[str, Any]:
    """["channels=[16, 32]", "act_layer=gelu"] -> keyword arguments: Python literals, or text where it is none."""
    kwargs = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key.isidentifier():
            raise InputError("model_kwargs", "key=value", repr(pair))
        try:
            kwargs[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            kwargs[key] = text
    return kwargs


@torch.no_grad()
def scale_classifier(model: nn.Module, factor: float) -> None:
    """Multiplies the last linear module's weight and bias in place, and with them the logits.

    Raises InputError where there is none.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError("classifier_scale", "a model with a linear classifier", type(model).__name__)
    for parameter in linear[-1].parameters():
        parameter.mul_(factor)


def check_model(name: str) -> None:
    """InputError with the closest names where neither the papers' networks nor timm's hold `name`."""
    if name in BUILDERS:
        return
    timm = require("timm", "model")
    if not timm.is_model(name.partition(".")[0]):
        cure = closest(name, [*BUILDERS, *timm.list_models()])
        raise InputError("model", f"{', '.join(BUILDERS)} or a timm model", repr(name), cure)


def build_model(name: str, num_classes: int, in_chans: int, image_size: int, kwargs: dict[str, Any]) -> nn.Module:
    """The network for images [n, in_chans, image_size, image_size] and logits [n, num_classes], freshly initialised.

    kwargs go to its constructor. Raises InputError for an unknown name, keyword arguments that it refuses, or images
    that it cannot take (one forward in evaluation mode is tried).
    """
    check_model(name)
    try:
        model = BUILDERS.get(name, partial(_timm, name))(num_classes, in_chans, image_size, **kwargs)
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, in_chans, image_size, image_size))
    # OSError: weights that pretrained=True asks for and that cannot be fetched.
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, OSError) as error:
        text = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        argument, got = ("model_kwargs", f"{text} at {image_size} pixels") if kwargs else ("image_size", image_size)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(argument, f"what {name} accepts", f"{got} ({reason})") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
        raise InputError("model", f"logits [n, {num_classes}]", f"{name} with {getattr(logits, 'shape', type(logits))}")
    return model.train()


def _timm(name: str, num_classes: int, in_chans: int, image_size: int, **kwargs: Any) -> nn.Module:
    timm = require("timm", "model")
    published = timm.models.get_pretrained_cfg(name)
    if published is not None and published.fixed_input_size:
        kwargs = {"img_size": image_size, **kwargs}
    return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **kwargs)
