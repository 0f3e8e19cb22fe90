"""Libraries that benchmarks compare with where they are installed; where they are not, the output says so."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Peer:
    """`module` is what is imported, `package` what pip installs; `device` where it runs."""

    module: str
    package: str
    device: str


PEERS = {
    "scipy": Peer("scipy", "scipy", "cpu"),
    "scikit-learn": Peer("sklearn", "scikit-learn", "cpu"),
    "CuPy": Peer("cupy", "cupy-cuda13x", "cuda"),
    "Liger": Peer("liger_kernel.transformers.functional", "liger-kernel", "cuda"),
    "quack": Peer("quack.cross_entropy", "quack-kernels", "cuda"),
    "cut-cross-entropy": Peer("cut_cross_entropy", "cut-cross-entropy", "cuda"),
}


def load(name: str, device: str) -> ModuleType | None:
    """The peer's module, or None where it does not run on `device` or does not import."""
    if PEERS[name].device != device:
        return None
    try:
        return importlib.import_module(PEERS[name].module)
    except ImportError:
        return None


def status(name: str, device: str) -> str:
    """One phrase: the version, "not installed", or why it takes no part."""
    peer = PEERS[name]
    if peer.device != device:
        return f"runs on {peer.device} only"
    try:
        version = importlib.metadata.version(peer.package)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    try:
        importlib.import_module(peer.module)
    except ImportError as error:
        return f"installed but does not import ({error})" if version else f"not installed (pip install {peer.package})"
    return version or "installed"
