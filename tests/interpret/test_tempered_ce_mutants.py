"""Mistakes in the Triton kernels' source that show in plain results: each must be seen. (Those of masks, barriers and
offsets are planted in tests/emulate, where memory is watched.)"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is chosen at import: run TRITON_INTERPRET=1 pytest tests/interpret",
                allow_module_level=True)  # fmt: skip
pytest.importorskip("triton")

from collections.abc import Callable

import torch
from emulate.mistakes import replaced
from emulate.test_mutants_ptx import check, mixed, outputs, problem, split

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def probabilities(n: int, c: int) -> Callable[[str], tuple]:
    """Behind a row stride that is not the logits'."""
    z, _, T, options = problem(n, c)
    q = torch.rand(n, c + 3, generator=torch.Generator().manual_seed(1))[:, :c]
    return lambda impl: outputs(impl, z, q, T, **options, label_smoothing=0.2)


#: (name, text of the kernels' source, its replacement, the call that shows it).
MUTANTS = [
    ("gradient over T for T^2", "scale = scale * temperature", "scale = scale * inverse", "mixed"),
    ("the mean of mixed targets by weight", 'if TARGET != "index":\n                denominator',
     'if TARGET == "probabilities":\n                denominator', "mixed"),
    ("shares swapped", "tl.where(one, mass, share * mass), tl.where(one, 0.0, (1 - share) * mass)",
     "tl.where(one, mass, (1 - share) * mass), tl.where(one, 0.0, share * mass)", "mixed"),
    ("rank of the smaller share", "share < 0.5, y2, y", "share < 0.5, y, y2", "mixed"),
    ("one label twice", "one = y2 == y\n", "one = y2 != y2\n", "mixed"),
    ("second label among the others", "summed = summed & (j[None, :] != y2[:, None])", "summed = summed", "mixed"),
    ("p - 1 at the second label", "own = tl.where(is_second, (mass2 * (others + e1) / total)",
     "own = tl.where(is_second, (mass2 * others / total)", "mixed"),
    ("probabilities at the logits' stride", "q.stride(0) // align", "view.stride(0) // align", "probabilities"),
    ("probabilities not smoothed", "t = t * hard + soft", "t = t * hard", "probabilities"),
    ("probabilities' sums not shifted", "shift * weight_seen + tl.sum(tl.where(inside, t * x",
     "tl.sum(tl.where(inside, t * x", "soft tiles"),
    ("a rank of the last tile's most probable", "tl.where(largest > best, first, at)", "first", "soft tiles"),
    ("parts that overlap", "last = tl.minimum(first + span * CLASSES, C)", "last = C", "split"),
    ("parts not rescaled", "others = tl.sum(rescale * e, 1)", "others = tl.sum(e, 1)", "split"),
    ("parts' moments not shifted", "mask=inside, other=0.0) + shift * e), 1)", "mask=inside, other=0.0)), 1)", "split"),
    ("one part too many", "(s < parts)", "(s <= parts)", "split"),
    ("parts of other rows", "at = part_ptr + r[:, None] * parts", "at = part_ptr + r[:, None] * (parts - 1)", "split"),
]  # fmt: skip
CALLS = {
    "mixed": mixed(9, 94),
    "probabilities": probabilities(9, 94),
    "soft tiles": probabilities(3, 5001),
    "split": split(mixed(5, 300)),
}


@pytest.mark.parametrize("name", CALLS)
def test_without_a_mutant_all_is_well(name):
    check(CALLS[name], CALLS[name]("reference"))


@pytest.mark.parametrize(("name", "old", "new", "shown_by"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutants_of_the_source_are_caught(name, old, new, shown_by, tmp_path):
    call = CALLS[shown_by]
    expected = call("reference")
    with replaced("tempered_ce", old, new, tmp_path / "mutant"), pytest.raises((AssertionError, IndexError)):
        check(call, expected)
