"""What other fused cross-entropies got wrong (tempered_ce_failures.py), for every implementation on the CPU; and the
proof that each check sees the mistake it is named after."""

from functools import partial

import pytest
import torch
from fastrank.kernels.linear_tempered_ce import linear_tempered_cross_entropy
from fastrank.kernels.tempered_ce import tempered_cross_entropy
from tempered_ce_failures import FAILURES, Symptom, the_host_reads_no_tensor
from tempered_ce_textbook import Textbook


def linear(z, y, T=1.0, **options):
    """Of the same logits, as a product with the identity."""
    return linear_tempered_cross_entropy(z, torch.eye(z.shape[1], dtype=z.dtype), y, None, T, **options)


@pytest.mark.parametrize("impl", ["reference", "native", "linear"])
@pytest.mark.parametrize("name", FAILURES)
def test_none_is_ours(name, impl):
    failure = FAILURES[name]
    if impl == "linear" and not failure.linear:
        pytest.skip("for logits that no product with the identity gives")
    if name == the_host_reads_no_tensor.__name__ and impl == "native":
        pytest.skip("the CPU's kernel is on the host")
    failure.check(linear if impl == "linear" else partial(tempered_cross_entropy, impl=impl))


BROKEN = [pytest.param(name, broken, id=broken.__name__) for name, f in FAILURES.items() for broken in f.broken]


@pytest.mark.parametrize(("name", "broken"), BROKEN)
def test_each_is_seen(name, broken):
    with pytest.raises(Symptom):
        FAILURES[name].check(broken() if isinstance(broken, type) else broken)


@pytest.mark.parametrize("name", [name for name, failure in FAILURES.items() if failure.textbook])
def test_the_textbook_has_none(name):
    """So that what a check sees in a broken version is its mistake, and nothing else about it."""
    FAILURES[name].check(Textbook())


def test_twenty():
    assert len(FAILURES) == 20
