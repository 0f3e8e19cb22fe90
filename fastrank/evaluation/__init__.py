"""Figures of whole data sets: solution rank, neural collapse, linear probes, out-of-distribution data."""

from fastrank.evaluation.assess import evaluate
from fastrank.evaluation.collapse import Collapse
from fastrank.evaluation.ood import Detection, OutOfDistribution
from fastrank.evaluation.probes import ProbeProtocol
from fastrank.evaluation.result import Evaluation, Probes
from fastrank.evaluation.solution_rank import SetRank, SolutionRank

__all__ = [
    "Collapse",
    "Detection",
    "Evaluation",
    "OutOfDistribution",
    "ProbeProtocol",
    "Probes",
    "SetRank",
    "SolutionRank",
    "evaluate",
]
