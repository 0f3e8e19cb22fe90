"""softmax-rank: scaling a low-rank matrix raises its rank after the softmax (Masarczyk et al. 2025, Fig. 6 and 21)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastrank.ranks import matrix_rank
from fastrank.recipes.effects import Effect, of_values, proportion
from fastrank.recipes.figures import colours, line, panels
from fastrank.recipes.recipe import Column, Job, Recipe, Scale, Study, evaluated, rank_column
from fastrank.recipes.training import recipe_facts
from fastrank.record import RunWriter
from fastrank.spectra import spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: c = 1/T from 1e-5 to 1e6: both ends must be reached, equal columns below and one-hot ones above.
SCALES_OF_C = (-5.0, 6.0)


def _settings(n: int, points: int, ranks: Sequence[int]) -> dict[str, dict[str, float]]:
    return {f"k={k}": {"n": n, "k": k, "points": points} for k in ranks}


def run(jobs: Sequence[Job], device: torch.device) -> None:
    for job in jobs:
        with RunWriter(job.path, recipe_facts(job), resume=(job.path / "run.db").is_file()) as writer:
            writer.truncate(-1)
            _measure(job, writer)


def _measure(job: Job, writer: RunWriter) -> None:
    n, k, points = (int(job.settings[name]) for name in ("n", "k", "points"))
    generator = torch.Generator().manual_seed(job.seed)
    A, B = (2 * torch.rand(n, k, generator=generator, dtype=torch.float64) - 1 for _ in range(2))
    scales = np.logspace(*SCALES_OF_C, points)
    M = A @ B.T
    softmaxed = [torch.softmax(c * M, 0) for c in scales.tolist()]  # column by column, as in Proposition 3.1
    # Computed in float64, counted in float32 with torch's default tolerance, as the paper's are.
    before, ranks = matrix_rank(M.float()), matrix_rank([S.float() for S in softmaxed])
    worst, broken = -np.inf, 0
    for step, (c, S, rank, s) in enumerate(zip(scales.tolist(), softmaxed, ranks, spectrum(softmaxed), strict=True)):
        gap, error = float(s.sigma[0] - s.sigma[-1]), float(s.bound[0] + s.bound[-1])
        bound = gap_bound(S)
        # Rounding of the bound itself: n products and sums of numbers below 1.
        broken += gap - error > bound * (1 + n * torch.finfo(S.dtype).eps)
        worst = max(worst, gap / bound)
        figures = {
            "scale": c,
            "rank": rank.rank,
            "rank_lo": rank.lo,
            "rank_hi": rank.hi,
            "gap": gap,
            "gap_bound": bound,
        }
        writer.log_step(step, {f"softmax/{name}": value for name, value in figures.items()})
    best = max(range(points), key=lambda i: ranks[i].rank)
    writer.set_evaluation({
        "rank_before": _rank(before), "rank_smallest_c": _rank(ranks[0]), "rank_best": _rank(ranks[best]),
        "best_c": scales[best], "rank_largest_c": _rank(ranks[-1]), "points": points, "bound_broken": int(broken),
        "largest_gap_over_bound": worst, "rank_two": _rank_two(n, generator),
    })  # fmt: skip


def gap_bound(S: Tensor) -> float:
    """Proposition 3.1: sigma_1(S) - sigma_n(S) <= sqrt(1 + r) - sqrt(max(1/n - r, 0)) for columns of probabilities.

    r is the largest sum of a column's inner products with all others. S: [n, n] float64.
    """
    G = S.T @ S
    r = (G.sum(0) - G.diagonal()).max()
    return float((1 + r).sqrt() - (1 / len(S) - r).clamp_min(0).sqrt())


def _rank_two(n: int, generator: torch.Generator) -> dict[str, float]:
    """Proposition K.1: B = cosines between n random directions of the plane; the smallest c = 10^(i/4) of full rank."""
    A = torch.nn.functional.normalize(torch.randn(n, 2, generator=generator, dtype=torch.float64), dim=1)
    B = A @ A.T
    before = int(matrix_rank(B.float()))
    for power in np.arange(0, 12.25, 0.25).tolist():
        rank = matrix_rank(torch.softmax(10**power * B, 1).float())
        if rank.lo == n:
            return {"before": before, "full_at_c": 10**power}
    return {"before": before}


def _rank(rank) -> dict[str, float]:
    return {"rank": int(rank), "lo": rank.lo, "hi": rank.hi}


def effects(study: Study) -> list[Effect]:
    found = []
    for label in study.labels:
        values = {name: study.values(label, name) for name in ("best", "smallest c", "largest c")}
        errors = {name: study.half_widths(label, name) for name in values}
        for end in ("smallest c", "largest c"):
            found.append(of_values(
                f"{label}: post-softmax rank at the best c minus at the {end}", ">", values["best"] - values[end],
                half_widths=errors["best"] + errors[end],
            ))  # fmt: skip
    runs = [run for label in study.labels for run in study.of(label)]
    matrices = sum(run.evaluation["points"] for run in runs)
    broken = sum(run.evaluation["bound_broken"] for run in runs)
    full = sum("full_at_c" in run.evaluation["rank_two"] and run.evaluation["rank_two"]["before"] == 2 for run in runs)
    # A proposition has no exceptions; the null value is what even one run in a hundred would leave.
    found.append(proportion("share of matrices within Proposition 3.1's bound", ">", matrices - broken, matrices, 0.99))
    found.append(proportion("share of rank-2 constructions of full rank after the softmax", ">", full, len(runs), 0.5))
    return found


def draw(study: Study) -> Figure:
    """Fig. 6: rank after the softmax against c, one line a rank k; beside it the gap and its bound (Fig. 21, top)."""
    figure, axes = panels(1, 2, (4.6, 3.4))
    for label, colour in zip(study.labels, colours(len(study.labels)), strict=True):
        _, c = study.series(label, "softmax/scale")
        line(axes[0, 0], c[0], study.series(label, "softmax/rank")[1], label, color=colour)
        line(axes[0, 1], c[0], study.series(label, "softmax/gap")[1], label, color=colour)
        axes[0, 1].plot(c[0], study.series(label, "softmax/gap_bound")[1].mean(0), color=colour, linestyle="--")
    axes[0, 0].set(xscale="log", xlabel="c (inverse temperature)", ylabel="rank(softmax(c M))")
    axes[0, 1].set(xscale="log", yscale="log", xlabel="c (inverse temperature)", ylabel="$\\sigma_1 - \\sigma_n$")
    axes[0, 0].legend(fontsize=8, title="rank of M")
    axes[0, 1].set_title("dashed: bound of Proposition 3.1", fontsize=9)
    return figure


def notes(study: Study) -> list[str]:
    runs = [run for label in study.labels for run in study.of(label)]
    largest = max(run.evaluation["largest_gap_over_bound"] for run in runs)
    return [f"Proposition 3.1: over these matrices the gap comes to at most {largest:.1%} of its bound."]


RECIPE = Recipe(
    name="softmax-rank",
    claim="Scaling a low-rank matrix raises its rank after the softmax; an intermediate temperature has the highest; "
    "the gap between first and last singular value obeys Proposition 3.1; rank 2 suffices for full rank after it.",
    source="Masarczyk et al. 2025, Fig. 6 and 21, Propositions 3.1 and K.1",
    rule="For each rank k of M the rank at the best c exceeds that at both ends of the range of c; no matrix breaks "
    "the bound; more than half of the random rank-2 constructions reach full rank at some c.",
    scales={
        "smoke": Scale(_settings(12, 9, (1, 2)), 2, "seconds"),
        "quick": Scale(_settings(100, 61, range(1, 6)), 10, "under a minute"),
        "full": Scale(_settings(1000, 121, range(1, 6)), 10, "about an hour on two cores"),
    },
    columns=(
        rank_column("before", "rank_before"),
        rank_column("smallest c", "rank_smallest_c"),
        rank_column("best", "rank_best"),
        Column("best c", evaluated("best_c")),
        rank_column("largest c", "rank_largest_c"),
        Column("rank-2 construction is full at c", evaluated("rank_two", "full_at_c")),
    ),
    run=run,
    effects=effects,
    draw=draw,
    trained=None,
    notes=notes,
)  # fmt: skip
