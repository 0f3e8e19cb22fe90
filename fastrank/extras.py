"""Libraries that come with an extra: imported where they are used, and by one name for who is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

#: Extra -> the packages it brings that fastrank imports, as {import name: name to install}.
EXTRAS = {
    "train": {
        "timm": "timm", "torchvision": "torchvision", "sklearn": "scikit-learn", "matplotlib": "matplotlib",
        "scipy": "scipy", "PIL": "pillow", "rich": "rich", "typer": "typer", "webdataset": "webdataset",
    },
    "report": {"plotly": "plotly", "pandas": "pandas", "pyarrow": "pyarrow"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "wandb": {"wandb": "wandb"},
    "lightning": {"lightning": "lightning"},
    "transformers": {"transformers": "transformers", "accelerate": "accelerate"},
}  # fmt: skip


def require(module: str, purpose: str) -> ModuleType:
    """Import `module`, which one of the extras brings; ImportError says what wanted it and the cure."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        extra = next(name for name, packages in EXTRAS.items() if package in packages)
        cure = f"pip install 'fastrank[{extra}]'"
        raise ImportError(f"{purpose} needs {package} ({error}); {cure}", name=module) from None
