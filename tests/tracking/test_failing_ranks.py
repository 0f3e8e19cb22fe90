"""One of two processes fails in what it measures: neither waits for the other, and all that both have is measured."""

import pytest
import torch
from failing_ranks import DEADLINE, HURTS, STEPS
from watched_loop import run_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

INPUTS = {"align/0", "align/2", "align/4"}
ROWS = INPUTS | {"logits", "target"}
WINDOWS = {"window/1", "window/3", "window/logits"}
ALWAYS = range(STEPS)

#: What is missing, in which steps, and what the run says of it.
MISSING = {
    "activation": ({"act/1", "window/1"}, ALWAYS, "disabled: on process 1: RuntimeError: mine"),
    "input": ({"align/2"}, ALWAYS, "disabled: on process 1: RuntimeError: mine"),
    "message": (ROWS | {"act/1", "act/3"}, ALWAYS, "disabled: on process 1: RuntimeError: mine"),
    "rows on rank 0": (ROWS, ALWAYS, "disabled: RuntimeError: mine"),
    "window": ({"window/1"}, ALWAYS, "disabled: on process 1: RuntimeError: mine"),
    "window on rank 0": (WINDOWS, ALWAYS, "disabled: RuntimeError: mine"),
    "figures": ({"act/1", "act/3"} | WINDOWS, ALWAYS, "disabled: RuntimeError: mine"),
    "spectra": ({"act/1", "act/3"}, ALWAYS, "disabled: RuntimeError: mine"),
    # Of layer 0: the others' weights are whole at the end of a forward. Without its subspace no alignment.
    "weight in shards": ({"weight/0", "align/0"}, ALWAYS, "disabled: on process 1: RuntimeError: mine"),
    "memory for shards": (
        {"weight/0", "align/0", "grad/0", "grad/2", "grad/4"} | WINDOWS, ALWAYS,
        "disabled: on process 1: RuntimeError: mine",
    ),
    "gradient in shards": ({"grad/0"}, [1], "left out: not there on process 1"),
    "evaluation": (ROWS | {"act/1", "act/3"}, [1], "left out: not there on process 1"),
    "evaluation of shards": (ROWS | {"act/1", "act/3", "weight/0"}, [1], "left out: not there on process 1"),
    "argument": ({"logits", "target"}, [1], "left out: not there on process 1"),
}  # fmt: skip
DISABLED = [name for name in MISSING if "mine" in MISSING[name][2]]
#: What that is said of, where it is not every figure: what several have in common.
SAID_OF = {
    "window on rank 0": {"window"},
    "spectra": {"act"},
    "figures": {"act/1", "act/3", "window"},
    "weight in shards": {"weight/0"},
    "memory for shards": MISSING["memory for shards"][0] - {"align/0"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    found, said = run_ranks("failing_ranks.py", folder)
    assert all(one and "refused" in one for one in found), said
    return found


def unhurt(runs, name):
    return runs[0]["nothing sharded" if HURTS[name][0] == "fsdp" else "nothing"]


def of(key):
    """What a figure is of, such as act/1."""
    return "target" if key == "train/accuracy" else "logits" if key.startswith("logits/") else key.rpartition("/")[0]


@pytest.mark.parametrize("name", HURTS)
def test_training_goes_on_and_nobody_waits(runs, name):
    for one in runs:
        assert one[name]["seconds"] < DEADLINE / 2
        for found, expected in zip(one[name]["trained"], unhurt(runs, name)["trained"], strict=True):
            assert torch.equal(found, expected)
    assert not runs[1][name]["records"]


@pytest.mark.parametrize("name", MISSING)
def test_what_one_process_lacks_is_left_out_and_all_else_is_as_it_was(runs, name):
    missing, steps, reason = MISSING[name]
    found = runs[0][name]
    assert [step for step, *_ in found["records"]] == list(ALWAYS)
    for (step, scalars, _), (_, expected, _) in zip(found["records"], unhurt(runs, name)["records"], strict=True):
        gone = missing if step in steps else set()
        # After a step without inputs their subspaces are others, to their error, and a window has fewer rows.
        once = steps != ALWAYS
        other = ("cost/", "align/mean_max", "train/loss") + (("window/",) if once else ())
        for key, value in expected.items():
            if of(key) in gone:
                assert key not in scalars
            elif not key.startswith(other):
                loose = {"abs": 2e-2} if once and key.startswith("align/") else {"rel": 0}
                assert scalars[key] == pytest.approx(value, **loose, nan_ok=True), key
    notes = [(key, text) for _, key, text in found["notes"] if key not in ("watch", "cost")]
    assert notes and sorted(notes) == sorted({(key, reason) for key in SAID_OF.get(name, missing)})


@pytest.mark.parametrize("name", DISABLED)
def test_the_process_that_failed_warns_once_of_each_figure(runs, name):
    failing, missing = HURTS[name][1], SAID_OF.get(name, MISSING[name][0])
    assert not runs[1 - failing][name]["said"]
    said = sorted(text.partition(" is no longer measured: ")[0] for text in runs[failing][name]["said"])
    assert said == sorted(f"fastrank: {key}" for key in missing)


def test_a_process_that_cannot_record_ends_the_measuring_of_all(runs):
    first, second = (one["record"] for one in runs)
    assert not first["records"] and not second["said"]
    assert first["said"] == ["fastrank: record is no longer measured: mine"]


def test_a_step_that_one_process_pauses_is_measured_by_none(runs):
    found = runs[0]["pause"]
    assert [step for step, *_ in found["records"]] == [0, 2, 3]
    notes = [note for note in found["notes"] if note[1] not in ("watch", "cost")]
    assert notes == [(1, "all_ranks", "not measured: process 1 did not")]
    # The window goes on: all rows of rank 0, and of rank 1 those of the three steps that it measured.
    assert found["records"][-1][1]["window/3/rows"] == 40 + 20 + 40 + 40


def test_a_mistake_in_an_argument_is_raised_once_the_others_have_been_met(runs):
    assert not runs[0]["argument"]["raised"]
    assert runs[1]["argument"]["raised"] == [(1, "loss: expected one number, got a tensor of shape (2,)")]


def test_options_that_differ_are_refused_by_all(runs):
    first, second = (one["refused"] for one in runs)
    for name, options in (("every", "1 as on rank 0, got 2 on 1"), ("budget", "0.02 as on rank 0, got None on 1")):
        assert first[name] == second[name] == ("InputError", f"{name}: expected the same on every process, {options}")
    assert first["log"][0] == "InputError" and "a directory that holds no run" in first["log"][1]
    assert second["log"][0] == "RuntimeError" and second["log"][1].startswith("process 0 failed: InputError: path: ")
    assert first["function"] is second["function"] is None
