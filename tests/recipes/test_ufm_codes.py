"""Softmax codes reach the proven bounds, and no classifier beats them."""

from __future__ import annotations

import pytest
import torch

from fastrank.evaluation.softmax_codes import one_vs_rest_margin
from fastrank.recipes.ufm.codes import margin_bound, softmax_code
from fastrank.recipes.ufm.norm_propagation import (
    favoured,
    margin_at_unit_layers,
    product_norm,
    random_product_norm,
)


@pytest.mark.parametrize(
    ("classes", "rank", "name"), [(4, 3, "simplex"), (5, 2, "polygon"), (6, 3, "cross-polytope"), (3, 5, "simplex")]
)
def test_codes_reach_the_bound(classes, rank, name):
    code = softmax_code(classes, rank, starts=4)
    assert code.bound_name == name and abs(code.gap) < 1e-9
    torch.testing.assert_close(code.W.norm(dim=1), torch.ones(classes, dtype=torch.float64))
    gaps = code.logits.diagonal()[:, None] - code.logits
    smallest = (gaps + 10 * torch.eye(classes, dtype=torch.float64)).min()
    assert abs(float(smallest) - code.margin) < 1e-9  # duality: the features attain the distance to the hull


def test_no_code_exceeds_its_bound():
    generator = torch.Generator().manual_seed(0)
    for classes in range(3, 9):
        for rank in range(1, classes + 1):
            W = torch.randn(classes, rank, dtype=torch.float64, generator=generator)
            assert one_vs_rest_margin(W).margin <= margin_bound(classes, rank)[0] + 1e-12


def test_product_norm_is_that_of_aligned_layers():
    for rank, depth in ((1, 4), (3, 2), (5, 6)):
        layer = torch.diag(torch.cat([torch.ones(rank), torch.zeros(2)]).double())
        layer /= layer.norm()
        assert abs(float(torch.linalg.matrix_power(layer, depth).norm()) - product_norm(rank, depth)) < 1e-12
        assert float(random_product_norm(rank, depth, 8, [0, 1]).max()) <= 1  # of any layers of norm 1


def test_depth_favours_codes_of_lower_rank():
    eye = torch.eye(6, dtype=torch.float64)
    simplex, octahedron = eye - 1 / 6, torch.kron(torch.eye(3).double(), torch.tensor([[1.0, -1], [-1, 1]]).double())
    angle = 2 * torch.pi / 6 * torch.arange(6, dtype=torch.float64)
    codes = {5: simplex, 3: octahedron, 2: torch.cos(angle[:, None] - angle)}
    # By hand: s = 1 five times for margin 1; s = 2 three times for 1; s = 3 twice for 1/2.
    labels = torch.arange(6)
    for depth in (1, 2, 4, 9):
        found = [float(margin_at_unit_layers(Z[None], labels, depth)) for Z in codes.values()]
        by_hand = [5 ** (-depth / 2), 3 ** (-depth / 2) / 2, 2 ** (-depth / 2) / 6]
        assert found == pytest.approx(by_hand, rel=1e-12)
    assert [favoured(codes, depth) for depth in (1, 2, 3, 5, 6)] == [5, 5, 3, 3, 2]
