"""The recipes of the unconstrained feature model at their smallest scale, from run directories to figure."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("timm")

from fastrank.recipes import find_recipe
from fastrank.recipes.effects import HELD
from fastrank.recipes.execute import plan_jobs, study_of
from fastrank.recipes.result import result_of
from fastrank.recipes.ufm.recipe_basin import collapsed_below
from fastrank.recipes.ufm.recipe_codes import learned_margin

NAMES = ["ufm-depth", "ufm-spectral", "ufm-basin", "ufm-width", "ufm-codes"]


@pytest.mark.parametrize("name", NAMES)
def test_runs(name, tmp_path):
    recipe = find_recipe(name)
    jobs = plan_jobs(recipe, "smoke", None, tmp_path)
    recipe.run(jobs[1:], torch.device("cpu"))
    recipe.run(jobs[:1], torch.device("cpu"))  # what a killed call left, alone in its batch
    study = study_of(recipe, "smoke", jobs)
    result = result_of(study)
    assert all(axes.has_data() for axes in recipe.draw(study).axes)
    assert all(cells["train accuracy"].mean == 100 for cells in result.table.values())
    if name in ("ufm-depth", "ufm-width"):
        assert result.verdict == HELD


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_no_matrix_of_lower_rank_is_nearer_to_the_simplex(classes):
    simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
    _, vectors = torch.linalg.eigh(simplex)
    nearest = vectors[:, 2:] @ vectors[:, 2:].T  # without the constant direction and one more
    distance = float((nearest / nearest.norm() - simplex / simplex.norm()).norm())
    assert distance == pytest.approx(collapsed_below(classes), rel=1e-12)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        A, B = torch.randn(2, classes, classes - 2, dtype=torch.float64, generator=generator)
        other = simplex @ A @ B.T
        assert float((other / other.norm() - simplex / simplex.norm()).norm()) >= collapsed_below(classes)


def test_margin_of_a_simplex_classifier_is_the_simplex_codes():
    C = 5
    frame = torch.linalg.qr(torch.randn(9, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    classifier = frame @ (torch.eye(C, dtype=torch.float64) - 1 / C) + torch.randn(9, 1).double()  # [d, C], shifted
    assert learned_margin(classifier, C - 1) == pytest.approx(C / (C - 1), rel=1e-10)
