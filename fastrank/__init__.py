"""fastrank: per-step spectral tracking of network training, nearly free, with error bounds."""

__version__ = "0.1.0"

from fastrank.diagnosis import doctor
from fastrank.errors import InputError
from fastrank.gram import GramState
from fastrank.loss import TemperedCE, tempered_cross_entropy
from fastrank.metrics.alignment import Alignment, alignment
from fastrank.record import Run, RunWriter, load_run
from fastrank.spectra import RankEstimate, Spectrum, matrix_rank, spectrum
from fastrank.subspace import SubspaceState, top_svd
from fastrank.watcher import Watcher, watch

__all__ = [
    "Alignment",
    "GramState",
    "InputError",
    "RankEstimate",
    "Run",
    "RunWriter",
    "Spectrum",
    "SubspaceState",
    "TemperedCE",
    "Watcher",
    "alignment",
    "doctor",
    "load_run",
    "matrix_rank",
    "spectrum",
    "tempered_cross_entropy",
    "top_svd",
    "watch",
]
