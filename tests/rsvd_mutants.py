"""A module of kernels/rsvd with one piece of its text replaced."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fastrank.kernels import rsvd


@contextmanager
def replaced(real: ModuleType, old: str, new: str, folder: Path) -> Iterator[ModuleType]:
    """In the place of the real one; `orthonormal_triton`, which takes names from `step_triton`, is loaded anew too."""
    from fastrank.kernels.rsvd import orthonormal_triton, step_triton

    text = Path(real.__file__).read_text()
    assert text.count(old) == 1, f"the table is stale: {text.count(old)} times {old!r}"
    path = folder / Path(real.__file__).name
    path.write_text(text.replace(old, new))
    users = [real, *([orthonormal_triton] if real is step_triton else [])]
    try:
        for user in users:
            spec = importlib.util.spec_from_file_location(user.__name__, path if user is real else user.__file__)
            _put(module := importlib.util.module_from_spec(spec))
            spec.loader.exec_module(module)
        yield sys.modules[real.__name__]
    finally:
        for user in users:
            _put(user)


def _put(module: ModuleType) -> None:
    sys.modules[module.__name__] = module
    setattr(rsvd, module.__name__.rpartition(".")[2], module)
