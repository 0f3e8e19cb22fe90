"""Libraries that come with an extra, imported where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str) -> ModuleType:
    """Imports `module` of the extra [report]; raises ImportError that names the cure."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {module} ({error}); pip install 'fastrank[report]'", name=module) from None
