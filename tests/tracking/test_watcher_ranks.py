"""Two processes of torch.distributed: their figures are those of one process on both their batches."""

import pytest
import torch
from watched_loop import Records, assert_same, run_ranks, small_batches, small_net
from watched_ranks import OPTIONS

import fastrank
from fastrank import InputError
from fastrank.tracking.all_ranks import Ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    found, said = run_ranks("watched_ranks.py", folder)
    assert all(found), said
    return folder, found


def alone():
    """One process, on the batches of both ranks."""
    model, records = small_net(), Records()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with fastrank.watch(model, log=records, **OPTIONS) as w:
        for number, batch in enumerate(small_batches(6), 1):
            x, y = batch
            loss = torch.nn.functional.cross_entropy(model(x), y, reduction="sum") / len(x)
            loss.backward()
            if number % 2 == 0:
                optimizer.step()
                w.step(target=y)
                optimizer.zero_grad()
    return records


def compare(found, expected, kinds):
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    for (_, scalars, arrays), (_, wanted, wanted_arrays) in zip(found, expected, strict=True):
        keys = [key for key in wanted if key.startswith(kinds)]
        assert keys and {key for key in scalars if key.startswith(kinds)} == set(keys)
        for key in keys:
            if key.rpartition("/")[2] in ("error", "max", "diagonal", "mean_max"):  # of a warm subspace, to its error
                assert scalars[key] == pytest.approx(wanted[key], abs=1e-2), key
            else:
                assert scalars[key] == pytest.approx(wanted[key], rel=2e-5), key
        for key in wanted_arrays:
            if key.startswith(kinds) and key.endswith("sigma"):
                assert arrays[key] == pytest.approx(wanted_arrays[key], rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("name", ["ddp", "fsdp", "budget"])
def test_figures_of_all_ranks_are_those_of_one_process_on_the_union_batch(runs, name):
    _, (first, second) = runs
    assert first[name][0] and not second[name][0]  # rank 0 writes
    kinds = ("act/", "logits/", "weight/", "grad/", "align/", "window/", "train/accuracy")
    compare(first[name][0], alone(), kinds)
    assert not [note for note in first[name][1] if note[1] not in ("watch", "cost", "budget")]


def test_an_adapter_measures_the_batches_of_all_ranks(runs):
    _, (first, second) = runs
    assert first["adapter"][0] and not second["adapter"][0]
    compare(first["adapter"][0], alone(), ("act/", "logits/", "weight/", "grad/", "align/", "window/"))


def test_rank_0_alone_measures_its_own_batch(runs):
    _, (first, second) = runs
    records, notes = first["rank 0"]
    assert not second["rank 0"][0]
    compare(records, alone(), ("weight/", "grad/"))
    assert records[0][1]["act/1/rank_hi"] <= 4 < len(small_batches(1)[0][0])
    # Sharded weights cannot be had by one process alone, and it says so.
    records, notes = first["fsdp rank 0"]
    assert any(key == "weight/0" and "all_ranks=True" in text for _, key, text in notes)
    assert "act/1/rank" in records[0][1] and "weight/0/rank" not in records[0][1]


def test_a_dying_worker_loses_no_finished_step(runs):
    run = fastrank.load_run(runs[0] / "dying")
    assert run.status == "interrupted"
    assert list(run.series("act/1/rank")[0]) == [0, 1]


def test_alone_all_ranks_changes_nothing():
    def once(**options):
        records = Records()
        model = small_net()
        with fastrank.watch(model, log=records, **OPTIONS, **options) as w:
            for x, y in small_batches(2):
                torch.nn.functional.cross_entropy(model(x), y).backward()
                w.step(target=y)
        return records

    assert_same(once(all_ranks=True), once())
    assert not Ranks(True).together and Ranks(True).measures
    with pytest.raises(InputError, match=r"^metrics: expected kinds that all_ranks=True measures: all but bound"):
        fastrank.watch(small_net(), metrics=["bound"], all_ranks=True)
