"""Import of what only the training harness needs, with an error that names the extra."""

from __future__ import annotations

import importlib
from types import ModuleType

from fastrank.errors import InputError


def require(module: str, purpose: str) -> ModuleType:
    """Import `module`; a missing one is InputError that says what wanted it and how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        raise InputError(
            purpose, f"the package {package!r}", "none installed", cure="pip install 'fastrank[train]'"
        ) from error
