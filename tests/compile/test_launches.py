"""What a training step launches on CUDA, and that its launch path reads nothing from the device: so a CUDA graph can
capture it. (The launches themselves are recorded, not run.)"""

import itertools

import gpu_builds
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.skipif(
    not gpu_builds.COMPILES_TRITON,
    reason="Triton's launches are not recorded without triton, or under TRITON_INTERPRET=1",
)

#: What torch does on the host alone: nothing is launched.
HOST = {"empty", "empty_like", "new_empty", "empty_strided", "view", "unsqueeze", "alias", "detach", "expand", "t",
        "select", "slice", "as_strided", "_unsafe_view", "transpose", "permute", "reshape"}  # fmt: skip


class Watched(TorchDispatchMode):
    """Refuses to read a tensor's values on the host; collects what else torch would launch."""

    READS = frozenset(
        {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2"}
    )

    def __init__(self):
        super().__init__()
        self.launched: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.READS, f"{name} waits for the device"
        if name not in HOST:
            self.launched.append(name)
        return func(*args, **(kwargs or {}))


def step(kind: str, reduction: str, options: bool, shape: tuple[int, ...]):
    """(torch's and Triton's launches of the forward pass, the same of the gradient's)."""
    from fastrank.kernels.tempered_ce import triton as kernels
    from fastrank.kernels.tempered_loss.register import temperature_grad

    logits, samples = torch.empty(shape, dtype=torch.bfloat16), shape[:1] + shape[2:]
    target, second, share = torch.zeros(samples, dtype=torch.int64), None, None
    if kind == "mixed":
        second, share = target.clone(), torch.empty(shape[0])
    elif kind == "probabilities":
        target = torch.empty(shape)
    T = torch.empty(shape[0]) if options else torch.empty(())
    weight, smoothing, power = (torch.empty(shape[1]), 0.1, 2) if options else (None, 0.0, 0)
    found = []
    with Watched() as watched, gpu_builds.launches() as launched:
        loss, rows, denominator, _ = kernels.forward(
            logits, target, second, share, 1.0, T, weight, -100, reduction, smoothing, power, options, False
        )
        found.append((list(watched.launched), [launch["kernel"].__name__ for launch in launched]))
        watched.launched.clear()
        launched.clear()
        kernels.backward(
            loss, logits, target, second, share, rows, denominator, 1.0, T, weight, -100, smoothing, power
        )  # fmt: skip
        found.append((list(watched.launched), [launch["kernel"].__name__ for launch in launched]))
        temperature_grad(loss, logits, rows, denominator, T)
    return found


@pytest.mark.parametrize("shape", [(64, 1000), (4, 128256), (8, 19, 3, 5)], ids=str)
def test_one_launch_forward_and_one_for_the_gradient(shape):
    """Beside them torch's fill of the denominator, whose memory counts the programs, and for the gradient of smoothed
    labels the sum of the weights."""
    for kind, reduction, options in itertools.product(
        ("index", "mixed", "probabilities"), ("none", "mean", "sum"), (False, True)
    ):
        forward, backward = step(kind, reduction, options, shape)
        assert forward == (["fill_"], ["forward_kernel"]), (kind, reduction, options)
        summed = ["sum"] if options and kind != "probabilities" else []
        assert backward == (summed, ["backward_kernel"]), (kind, reduction, options)


def test_launches_of_millions_of_rows():
    """There torch sums what the programs leave: one program would take longer than its three launches."""
    forward, _ = step("index", "mean", False, (2**18, 19))
    assert forward == (["fill_", "sum", "copy_", "sum", "div"], ["forward_kernel"])


def test_a_read_of_the_device_is_seen(monkeypatch):
    from fastrank.kernels.tempered_ce import triton as kernels

    real = kernels.alignment
    monkeypatch.setattr(kernels, "alignment", lambda *views: real(*views) + 0 * int(views[0][0, 0, 0]))
    with pytest.raises(AssertionError, match="waits for the device"):
        step("index", "mean", False, (64, 1000))
