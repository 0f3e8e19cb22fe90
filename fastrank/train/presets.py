"""Named hyperparameters: Table 4 of Masarczyk et al. 2025 (arXiv 2506.01562, augmentation from A.3), and the demo's.

The paper trains its high temperatures with the very same values, ImageNet's number of epochs and rate excepted.
A preset is a dict of `TrainConfig` fields; what the command line names explicitly goes before it.
"""

from __future__ import annotations

from typing import Any

from fastrank.errors import InputError
from fastrank.train.names import closest

_CIFAR = {"optimizer": "sgd", "batch_size": 128, "augment": "cifar", "image_size": 32}

PRESETS: dict[str, dict[str, Any]] = {
    "paper-vgg": {
        **_CIFAR, "model": "vgg19", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "epochs": 160,
        "schedule": "steps", "milestones": (80, 120), "gamma": 0.1,
    },
    "paper-resnet": {
        **_CIFAR, "model": "resnet18_cifar", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "epochs": 164,
        "schedule": "steps", "milestones": (82, 123), "gamma": 0.1,
    },
    # Table 4 gives the MLP no milestones (and a decay factor of 0, which nothing applies).
    "paper-mlp": {
        **_CIFAR, "model": "mlp", "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "epochs": 100,
        "schedule": "constant",
    },
    "paper-imagenet": {
        "model": "resnet34", "optimizer": "sgd", "lr": 1.6, "momentum": 0.9, "weight_decay": 1e-4, "epochs": 120,
        "batch_size": 1024, "schedule": "steps", "milestones": (30, 60, 90), "gamma": 0.1, "augment": "imagenet",
        "image_size": 224,
    },
    # Weights of ImageNet-21k, fine-tuned. [U] gives crop and size (A.3) and no more: the rest is how Dosovitskiy et al.
    # 2021 (B.1.1) fine-tune on CIFAR, for 10,000 steps, at one of their four rates and without clipping.
    "paper-vit": {
        "model": "vit_base_patch16_224.augreg_in21k", "model_kwargs": {"pretrained": True}, "optimizer": "sgd",
        "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "epochs": 103, "batch_size": 512, "schedule": "cosine",
        "warmup_epochs": 5.0, "augment": "vit", "image_size": 224,
    },
    # A narrow ResNet-10 that trains within minutes on two cores at T=1 and T=100 with the same values; Adam's steps do
    # not shrink with the gradient, which T=100 makes a hundred times smaller while the logits are small.
    "demo": {
        "model": "resnet10t", "model_kwargs": {"channels": [16, 32, 64, 128], "stem_width": 16}, "data": "glyphs",
        "image_size": 24, "samples_per_class": 50, "optimizer": "adamw", "lr": 0.02, "weight_decay": 0.0,
        "epochs": 15, "batch_size": 128, "schedule": "cosine", "warmup_epochs": 1.0,
    },
}  # fmt: skip


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of a named preset; InputError suggests the closest names."""
    if name not in PRESETS:
        raise InputError("preset", f"one of {', '.join(PRESETS)}", repr(name), closest(name, PRESETS))
    return dict(PRESETS[name])
