"""Every op only queues work: no wait for the device, on the stream it is called on, capturable as a CUDA graph."""

import contextlib

import pytest
import torch
from device_calls import CALLS, DEVICE, MISSING

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

gpu_only = pytest.mark.skipif(DEVICE == "cpu", reason="the CPU has no streams")
each_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)


@contextlib.contextmanager
def waiting_is_an_error():
    """torch raises at every call of its own that waits for the device."""
    if DEVICE == "cpu":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def captured(call, inputs):
    """A function that repeats `call.run(*inputs)` on what is in the inputs then, and its outputs."""
    if DEVICE == "cpu":  # no graphs here: a second call stands in, so that the test's own steps are tried
        outputs = call.run(*inputs)

        def again():
            for out, new in zip(outputs, call.run(*inputs), strict=True):
                out.copy_(new)

        return again, outputs
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # first calls compile and load; a capture allows neither
        for _ in range(2):
            call.run(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call.run(*inputs)
    return graph.replay, outputs


@each_call
def test_never_waits_for_the_device(call):
    inputs = call.inputs_on(DEVICE)
    call.run(*inputs)  # the first call may compile
    with waiting_is_an_error():
        call.run(*inputs)


@each_call
def test_a_captured_graph_computes_with_new_data(call):
    inputs, later = call.inputs_on(DEVICE, seed=0), call.inputs_on(DEVICE, seed=1)
    replay, outputs = captured(call, inputs)
    with torch.no_grad():
        for x, new in zip(inputs, later, strict=True):
            x.copy_(new)
    replay()
    for got, expected in zip(outputs, call.run(*later), strict=True):
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@gpu_only
@each_call
def test_runs_on_the_stream_it_is_called_on(call):
    """The inputs become what they are late, on that stream alone: work on any other stream would come too early."""
    inputs, later = call.inputs_on(DEVICE, seed=0), call.inputs_on(DEVICE, seed=1)
    call.run(*inputs)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for x, new in zip(inputs, later, strict=True):
                x.copy_(new)
        outputs = call.run(*inputs)
    torch.cuda.synchronize()
    for got, expected in zip(outputs, call.run(*later), strict=True):
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@gpu_only
@each_call
def test_runs_on_the_device_of_its_tensors(call):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    first, second = (call.run(*call.inputs_on(device)) for device in ("cuda:0", "cuda:1"))  # current device: 0
    for a, b in zip(first, second, strict=True):
        assert b.device.index == 1 and torch.equal(a.cpu().nan_to_num(), b.cpu().nan_to_num())
