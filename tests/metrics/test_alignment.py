"""Alignment of many layers in one call."""

import pytest
import torch

from fastrank import InputError, alignment, top_svd


def layers():
    g = torch.Generator().manual_seed(0)
    shapes = [((6, 10), (30, 10)), ((40, 25), (12, 25)), ((3, 7), (5, 7))]
    return [[torch.randn(shape, generator=g) for shape in pair] for pair in shapes]


def test_lists_give_what_each_layer_gives_alone():
    W, A = zip(*layers(), strict=True)
    together = alignment(list(W), list(A), k=4)
    mixed = alignment([top_svd(W[0], 4), *W[1:]], [A[0], *top_svd(list(A[1:]), 4)], k=4)
    for w, a, one, other in zip(W, A, together, mixed, strict=True):
        alone = alignment(w, a, k=4)
        for found in (one, other):
            torch.testing.assert_close(found.cosines, alone.cosines, rtol=0, atol=0)
            assert found.max == alone.max and found.error == alone.error and found.chance == alone.chance


def test_mistakes_are_named():
    W, A = map(list, zip(*layers(), strict=True))
    with pytest.raises(InputError, match="A: expected as many matrices as W, 3, got 2"):
        alignment(W, A[:2])
    with pytest.raises(InputError, match="A: expected as many matrices as W, 3, got no list"):
        alignment(W, A[0])
    with pytest.raises(InputError, match="A: expected 25 features, as W has, got 7"):
        alignment(W, [A[0], A[2], A[2]])
