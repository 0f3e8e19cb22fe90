"""Threads: torch's small operations on one, our kernels on all, and the caller's number as it was."""

import threading

import pytest
import torch
from fastrank.kernels import backend
from torch import nn

import fastrank
from fastrank.precision import all_threads, one_thread


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def counts():
    return torch.get_num_threads(), backend.threads()


def test_one_thread_is_torchs_alone(two_threads):
    assert counts() == (2, 2)
    with one_thread():
        assert counts() == (1, 2)
        with one_thread(), all_threads():
            assert counts() == (2, 2)
            with one_thread():
                assert counts() == (1, 2)
        assert counts() == (1, 2)
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert counts() == (2, 2)


def test_one_thread_of_one(two_threads):
    torch.set_num_threads(1)
    with one_thread(), all_threads():
        assert counts() == (1, 1)


def test_threads_that_begin_meanwhile_have_their_own(two_threads):
    seen = []
    with one_thread():
        thread = threading.Thread(target=lambda: seen.append((torch.ones(3) + 1).numel() and counts()))
        thread.start()
        thread.join()
    assert seen == [(2, 2)] and counts() == (2, 2)


def test_a_decorated_function_in_several_threads(two_threads):
    meet = threading.Barrier(2, timeout=60)
    after = []

    @one_thread()
    def work():
        meet.wait()
        inside = counts()
        meet.wait()
        return inside

    def run():
        torch.set_num_threads(2)
        after.append((work(), counts()))

    others = [threading.Thread(target=run) for _ in range(2)]
    [thread.start() for thread in others]
    [thread.join() for thread in others]
    assert after == [((1, 2), (2, 2))] * 2


def test_what_the_caller_runs_in_a_tracked_step_keeps_its_threads(two_threads):
    seen = []
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[1].register_forward_hook(lambda *_: seen.append(counts()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with fastrank.watch(model, log=lambda *_: seen.append(counts())) as w:
        for _ in range(2):
            model(torch.randn(5, 8)).square().sum().backward()
            optimizer.step()
            w.step()
    assert seen == [(2, 2)] * 4
