"""Lightning and the Trainer on two processes: with `all_ranks=True` their figures are those of one on both batches."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from watched_loop import by_hand, small_batches, small_net

for library in ("lightning", "transformers", "accelerate"):
    pytest.importorskip(library, reason="needs pip install 'fastrank[integrations]'")

TESTS = Path(__file__).parents[1]
STEPS, SIZE = 4, 8


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-P", TESTS / "integrations" / "trained_ranks.py", folder, str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, timeout=200,
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # The pipe ends with the last of the two processes.
    assert (folder / "rank0.pt").exists() and (folder / "rank1.pt").exists(), done.stdout
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    kinds = ["act", "logits", "weight", "grad", "align"]
    return by_hand(small_net(), small_batches(STEPS, SIZE), metrics=kinds, window=2)


@pytest.mark.parametrize("name", ["lightning", "lightning resumed", "trainer", "trainer resumed"])
def test_figures_are_those_of_one_process_on_both_batches(found, alone, name):
    first, second = found
    assert first[name] and not second[name]  # rank 0 writes
    expected = alone[:2] if name == "lightning" else alone[2:] if name.endswith("resumed") else alone
    assert [step for step, *_ in first[name]] == [step for step, *_ in expected]
    for (_, scalars, _), (_, wanted, _) in zip(first[name], expected, strict=True):
        for key, value in wanted.items():
            if key.startswith(("act/", "logits/", "weight/", "grad/", "align/", "window/", "train/accuracy")):
                # Of a warm subspace, to its error.
                loose = {"abs": 1e-2} if key.endswith(("/error", "/max", "/diagonal", "/mean_max")) else {"rel": 2e-5}
                assert scalars[key] == pytest.approx(value, **loose), key


def test_where_one_process_fails_all_end_together(found):
    """Rank 1's second step fails, in which rank 0 would wait for it; training went on to its end."""
    assert [step for step, *_ in found[0]["failing"]] == [0]
    assert [one["said"] for one in found] == [
        ["fastrank: no longer watching: another process failed"], ["fastrank: no longer watching: mine"]
    ]  # fmt: skip
