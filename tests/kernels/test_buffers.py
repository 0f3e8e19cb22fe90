"""Large results on the CPU live in memory that an earlier one left."""

import os
import threading

import pytest
import torch
from fastrank.kernels import backend, buffers
from fastrank.kernels.tempered_ce import tempered_cross_entropy

core = backend.core()
pytestmark = pytest.mark.skipif(core is None, reason="the core is not built")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_idle():
    core.drop_idle()
    yield
    core.drop_idle()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_is_a_tensor_like_any_other(dtype):
    x = torch.zeros(3, MIB, dtype=dtype)
    y = buffers.empty_like(x)
    assert (y.shape, y.stride(), y.dtype, y.device) == (x.shape, x.stride(), x.dtype, x.device)
    assert not y.requires_grad and not y._is_view()
    y.copy_(torch.arange(3)[:, None])
    assert torch.equal(y[:, -1].float(), torch.arange(3.0))
    assert torch.equal(y.clone(), y) and torch.equal(torch.from_numpy(y.float().numpy()), y.float())


def test_memory_that_came_back_is_used_again():
    x = torch.zeros(MIB)
    address = buffers.empty_like(x).data_ptr()
    assert core.idle_bytes() == x.nbytes
    again = buffers.empty_like(x)
    assert again.data_ptr() == address
    assert core.idle_bytes() == 0
    assert buffers.empty_like(x).data_ptr() != address  # two in use at once are two
    core.drop_idle()
    again.fill_(1)  # what is in use is not let go


def test_a_view_keeps_the_memory():
    x = torch.zeros(MIB)
    part = buffers.empty_like(x)[5:7]
    assert core.idle_bytes() == 0
    part.fill_(3)
    other = buffers.empty_like(x).fill_(4)
    assert part.tolist() == [3, 3] and other[5] == 4


def test_as_much_is_kept_as_was_in_use_at_once():
    """The inputs of all layers of a step, say."""
    blocks = [buffers.empty_like(torch.zeros(MIB + i)) for i in range(1, 13)]
    before = {y.data_ptr() for y in blocks}
    del blocks
    assert core.idle_bytes() == 12 * (4 * MIB + 64 * 1024)  # not a huge page for the last few bytes of each
    blocks = [buffers.empty_like(torch.zeros(MIB + i)) for i in range(1, 13)]
    assert {y.data_ptr() for y in blocks} == before and core.idle_bytes() == 0


def test_sizes_that_are_no_longer_asked_for_are_let_go():
    blocks = [buffers.empty_like(torch.zeros(MIB + i)) for i in range(1, 13)]
    del blocks
    x = torch.zeros(2 * MIB)
    for _ in range(6):  # other sizes, as many at once
        blocks = [buffers.empty_like(x) for _ in range(6)]
        del blocks
    assert core.idle_bytes() <= 9 / 8 * 12 * (4 * MIB + 64 * 1024)
    for _ in range(1 << 14):
        buffers.empty_like(x)
    assert core.idle_bytes() <= 4 * x.nbytes


def test_small_strided_and_traced_tensors_are_torchs():
    small, strided = torch.zeros(10), torch.zeros(1024, 2048).t()
    assert buffers.empty_like(small).shape == small.shape
    assert buffers.empty_like(strided).stride() == strided.stride()
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(MIB))
        assert type(buffers.empty_like(fake)) is type(fake)
    assert core.idle_bytes() == 0


def test_a_capsule_that_nobody_takes_gives_its_memory_back():
    capsule = core.empty((MIB,), 2, 32)
    del capsule
    assert core.idle_bytes() == 4 * MIB


def test_more_memory_than_there_is_is_refused():
    with pytest.raises(MemoryError):
        core.empty((1 << 50,), 2, 32)


def test_threads_share_it():
    errors = []

    def work(value):
        for _ in range(50):
            y = buffers.empty_like(torch.zeros(MIB // 4))
            y.fill_(value)
            if not bool((y == value).all()):
                errors.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_its_own():
    x = torch.zeros(MIB)
    buffers.empty_like(x)
    pid = os.fork()
    if pid == 0:
        mine = buffers.empty_like(x).numpy()  # torch's own threads did not survive the fork
        mine[:] = 2
        ok = bool((mine == 2).all())
        os._exit(0 if ok else 1)
    mine = buffers.empty_like(x).fill_(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert bool((mine == 1).all())


def test_a_kept_gradient_is_not_overwritten_by_the_next_step():
    z = torch.randn(600, 1000, requires_grad=True)
    y = torch.randint(1000, (600,))
    first = torch.autograd.grad(tempered_cross_entropy(z, y, 2.0), z)[0]
    copy = first.clone()
    torch.autograd.grad(tempered_cross_entropy(z, y, 50.0), z)
    assert torch.equal(first, copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_gradient_written_past_the_caches_is_the_same(dtype, offset):
    """From 32 MiB on. Odd widths put rows at every alignment; the same rows in a small batch are written as usual."""
    c = 21841 + offset
    rows = (33 << 20) // (c * dtype.itemsize) + 1
    z = torch.randn(rows, c).to(dtype).requires_grad_()
    y = torch.randint(c, (rows,))
    y[0], y[1], y[2] = 0, c - 1, -100
    options = dict(reduction="sum", label_smoothing=0.1)
    whole = torch.autograd.grad(tempered_cross_entropy(z, y, 3.0, **options), z)[0]
    assert whole.nbytes >= 32 * MIB
    for part in (slice(0, 20), slice(rows - 20, rows)):
        few = z.detach()[part].clone().requires_grad_()
        assert torch.equal(
            torch.autograd.grad(tempered_cross_entropy(few, y[part], 3.0, **options), few)[0], whole[part]
        )
    again = torch.autograd.grad(2 * tempered_cross_entropy(z, y, 3.0, **options), z)[0]  # through the backward kernel
    assert torch.equal(
        again[:20],
        torch.autograd.grad(
            2 * tempered_cross_entropy(few := z.detach()[:20].clone().requires_grad_(), y[:20], 3.0, **options), few
        )[0],
    )
