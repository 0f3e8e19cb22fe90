"""Figures of a spectrum, one definition per file: pure functions of a `Spectrum`, returning a 0-d float64 tensor.

A new one is a file with a function of the same shape and one entry in `OF_SPECTRUM`. An empty or all-zero spectrum
gives 0 (no directions are used), a NaN spectrum gives NaN; neither needs a host sync. Those of `OF_SPECTRUM` work along
the last dimension, so that a `Stack` of spectra of one length gives all figures at once.
"""

from fastrank.metrics.alpha_req import alpha_req
from fastrank.metrics.condition_number import condition_number
from fastrank.metrics.effective_rank import effective_rank
from fastrank.metrics.frobenius_norm import frobenius_norm
from fastrank.metrics.nuclear_norm import nuclear_norm
from fastrank.metrics.participation_ratio import participation_ratio
from fastrank.metrics.rankme import rankme
from fastrank.metrics.saturation import saturation
from fastrank.metrics.srank import srank
from fastrank.metrics.stable_rank import stable_rank
from fastrank.metrics.tunnel_rank import tunnel_rank

#: Name under which the run database holds a figure -> its function.
OF_SPECTRUM = {
    "frobenius": frobenius_norm,
    "stable_rank": stable_rank,
    "effective_rank": effective_rank,
    "nuclear": nuclear_norm,
    "rankme": rankme,
    "participation_ratio": participation_ratio,
    "srank_0.01": srank,
    "condition_number": condition_number,
    "alpha_req": alpha_req,
}

__all__ = [
    "OF_SPECTRUM",
    "alpha_req",
    "condition_number",
    "effective_rank",
    "frobenius_norm",
    "nuclear_norm",
    "participation_ratio",
    "rankme",
    "saturation",
    "srank",
    "stable_rank",
    "tunnel_rank",
]
