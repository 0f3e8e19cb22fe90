"""Plants mistakes in the source of the losses' Triton kernels."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

SHARED = "fastrank.kernels.tempered_loss.rows_triton"


@contextmanager
def replaced(op: str, old: str, new: str, folder: Path):
    """kernels/`op`/triton.py with one piece of text replaced, its own or of what the losses share, in the place of the
    real one."""
    name = f"fastrank.kernels.{op}.triton"
    real = {key: importlib.import_module(key) for key in (SHARED, name)}
    texts = {key: Path(module.__file__).read_text() for key, module in real.items()}
    found = sum(text.count(old) for text in texts.values())
    assert found == 1, f"the table is stale: {found} times {old!r}"
    try:
        for key, text in texts.items():  # first what the other imports
            path = folder / key / Path(real[key].__file__).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace(old, new))
            spec = importlib.util.spec_from_file_location(key, path)
            module = importlib.util.module_from_spec(spec)
            _put(key, module)
            spec.loader.exec_module(module)
        yield
    finally:
        for key, module in real.items():
            _put(key, module)


def _put(name: str, module: ModuleType) -> None:
    package, _, attribute = name.rpartition(".")
    sys.modules[name] = module
    setattr(importlib.import_module(package), attribute, module)
