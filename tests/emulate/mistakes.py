"""Plants mistakes in the source of Triton kernels."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

#: The modules of an op's kernels below fastrank.kernels, each behind what it imports.
MODULES = {
    "tempered_ce": (
        "tempered_loss.rows_triton",
        *(f"tempered_ce.{name}triton" for name in ("targets_", "sums_", "forward_", "backward_", "")),
    ),
    "tempered_mse": ("tempered_loss.rows_triton", "tempered_mse.triton"),
    "small_eigh": ("small_eigh.triton",),
    "rsvd": tuple(
        f"rsvd.{name}_triton"
        for name in ("blocks", "products", "orthonormal", "rotations", "residuals", "step", "cosines")
    ),
}


@contextmanager
def replaced(op: str, old: str, new: str, folder: Path) -> Iterator[None]:
    """One piece of text of an op's kernels replaced: its module, and those behind it, in the place of the real ones."""
    real = [importlib.import_module(f"fastrank.kernels.{name}") for name in MODULES[op]]
    found = [Path(module.__file__).read_text().count(old) for module in real]
    assert sum(found) == 1, f"the table is stale: {sum(found)} times {old!r}"
    at = found.index(1)
    path = folder / Path(real[at].__file__).name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(Path(real[at].__file__).read_text().replace(old, new))
    try:
        for module in real[at:]:
            spec = importlib.util.spec_from_file_location(
                module.__name__, path if module is real[at] else module.__file__
            )
            _put(copy := importlib.util.module_from_spec(spec))
            spec.loader.exec_module(copy)
        yield
    finally:
        for module in real[at:]:
            _put(module)


def _put(module: ModuleType) -> None:
    package, _, name = module.__name__.rpartition(".")
    sys.modules[module.__name__] = module
    setattr(importlib.import_module(package), name, module)
