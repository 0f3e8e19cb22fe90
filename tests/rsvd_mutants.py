"""A module of kernels/rsvd with one piece of its text replaced."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fastrank.kernels import rsvd

#: The modules of a subspace step, behind what they import.
STEP = [
    f"{rsvd.__name__}.{name}_triton" for name in ("blocks", "products", "orthonormal", "rotations", "residuals", "step")
]


@contextmanager
def replaced(real: ModuleType, old: str, new: str, folder: Path) -> Iterator[None]:
    """In the place of the real one; all that takes names from it is loaded anew too."""
    text = Path(real.__file__).read_text()
    assert text.count(old) == 1, f"the table is stale: {text.count(old)} times {old!r}"
    path = folder / Path(real.__file__).name
    path.write_text(text.replace(old, new))
    behind = STEP[STEP.index(real.__name__) + 1 :] if real.__name__ in STEP else []
    users = [real, *map(import_module, behind)]
    try:
        for user in users:
            spec = importlib.util.spec_from_file_location(user.__name__, path if user is real else user.__file__)
            _put(module := importlib.util.module_from_spec(spec))
            spec.loader.exec_module(module)
        yield
    finally:
        for user in users:
            _put(user)


def _put(module: ModuleType) -> None:
    sys.modules[module.__name__] = module
    setattr(rsvd, module.__name__.rpartition(".")[2], module)
