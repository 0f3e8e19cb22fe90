"""What lives beside the package in a source tree and is not installed: the benchmarks."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import fastrank
from fastrank.errors import InputError


def benchmark_module(name: str) -> ModuleType:
    """A module of benchmarks/ in the tree that this package is used from; InputError where there is none."""
    folder = Path(fastrank.__file__).resolve().parents[1] / "benchmarks"
    if not (folder / f"{name}.py").is_file():
        raise InputError(
            "bench", "a checkout with benchmarks/", f"fastrank installed in {folder.parent}",
            "clone the repository and `pip install -e .` there",
        )  # fmt: skip
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(name)
