"""Image transforms: PIL image -> float32 [channels, size, size], plain or as in Masarczyk et al. 2025, A.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastrank.extras import require

Transform = Callable[[Any], Tensor]


def plain_transform(size: int, mean: tuple[float, ...], std: tuple[float, ...], crop_pct: float) -> Transform:
    """Resize so that the shorter side is size / crop_pct, crop the centre, normalise."""
    timm_data = require("timm.data", "data")
    return timm_data.create_transform(size, is_training=False, crop_pct=crop_pct, mean=mean, std=std)


def augmented_transform(name: str, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Transform:
    """ "cifar": pad by 4, crop, flip. "imagenet": crop of 8 .. 100 % of the area, flip, colour jitter of 0.4. "vit":
    crop of 5 .. 100 % of the area, as [U] fine-tunes its vision transformer.
    """
    if name == "vit":
        transforms = require("torchvision.transforms", "data")
        crop = transforms.RandomResizedCrop(size, scale=(0.05, 1.0))
        return transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize(mean, std)])
    if name == "imagenet":
        timm_data = require("timm.data", "data")
        return timm_data.create_transform(
            size, is_training=True, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation="random", hflip=0.5,
            color_jitter=0.4, mean=mean, std=std,
        )  # fmt: skip
    transforms = require("torchvision.transforms", "data")
    return transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.RandomCrop(size, padding=4),
            transforms.RandomHorizontalFlip(0.5),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
