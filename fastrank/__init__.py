"""fastrank: per-step spectral tracking of network training, nearly free, with error bounds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> the module that defines it. Loaded at first use, so that the command line answers without torch and
#: can still choose how torch's threads wait.
_HOME = {
    "Alignment": "metrics.alignment",
    "Evaluation": "evaluation",
    "FusedLinearTemperedCE": "loss",
    "GramState": "gram",
    "InputError": "errors",
    "RankEstimate": "ranks",
    "Run": "record",
    "RunWriter": "record",
    "Spectrum": "spectra",
    "SubspaceState": "subspace",
    "TemperatureSchedule": "temperature",
    "TemperedCE": "loss",
    "TemperedMSE": "loss",
    "Watcher": "tracking.watcher",
    "alignment": "metrics.alignment",
    "calibrate_temperature": "temperature",
    "doctor": "diagnosis",
    "evaluate": "evaluation",
    "linear_tempered_cross_entropy": "loss",
    "load_run": "record",
    "logits_norm": "temperature",
    "matrix_rank": "ranks",
    "spectrum": "spectra",
    "tempered_cross_entropy": "loss",
    "tempered_mse": "loss",
    "top_svd": "subspace",
    "watch": "tracking.watcher",
}

__all__ = [
    "Alignment",
    "Evaluation",
    "FusedLinearTemperedCE",
    "GramState",
    "InputError",
    "RankEstimate",
    "Run",
    "RunWriter",
    "Spectrum",
    "SubspaceState",
    "TemperatureSchedule",
    "TemperedCE",
    "TemperedMSE",
    "Watcher",
    "alignment",
    "calibrate_temperature",
    "doctor",
    "evaluate",
    "linear_tempered_cross_entropy",
    "load_run",
    "logits_norm",
    "matrix_rank",
    "spectrum",
    "tempered_cross_entropy",
    "tempered_mse",
    "top_svd",
    "watch",
]

if TYPE_CHECKING:
    from fastrank.diagnosis import doctor
    from fastrank.errors import InputError
    from fastrank.evaluation import Evaluation, evaluate
    from fastrank.gram import GramState
    from fastrank.loss import (
        FusedLinearTemperedCE,
        TemperedCE,
        TemperedMSE,
        linear_tempered_cross_entropy,
        tempered_cross_entropy,
        tempered_mse,
    )
    from fastrank.metrics.alignment import Alignment, alignment
    from fastrank.ranks import RankEstimate, matrix_rank
    from fastrank.record import Run, RunWriter, load_run
    from fastrank.spectra import Spectrum, spectrum
    from fastrank.subspace import SubspaceState, top_svd
    from fastrank.temperature import TemperatureSchedule, calibrate_temperature, logits_norm
    from fastrank.tracking.watcher import Watcher, watch


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastrank' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastrank.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
