"""The arithmetic of kernels/cost.py on launches small enough to do by hand."""

import pytest
from fastrank.kernels.cost import DEVICES, Device, Launch, limiter, predict, roofline, total

DEVICE = Device("toy", bandwidth=100.0, flops={"fp32": 10.0, "fp64": 5.0}, launch=1.0, memory=0, l2=0, sms=4, source="")


def test_roofline_is_the_slower_of_memory_and_arithmetic():
    assert roofline([Launch("a", 150, 50, {"fp32": 10})], DEVICE) == 2.0
    assert roofline([Launch("a", 150, 50, {"fp32": 10, "fp64": 20})], DEVICE) == 4.0
    assert roofline([Launch("a", 150, 50), Launch("b", 0, 0, {"fp64": 5})], DEVICE) == 3.0
    assert limiter(Launch("a", 150, 50, {"fp32": 10}), DEVICE) == "memory"
    assert limiter(Launch("a", 150, 50, {"fp64": 11}), DEVICE) == "fp64"


@pytest.mark.parametrize(("blocks", "seconds"), [(None, 2), (1, 8), (2, 4), (4, 2), (5, 2 * 8 / 5), (8, 2), (400, 2)])
def test_prediction_counts_idle_multiprocessors(blocks, seconds):
    """Of 5 blocks on 4 multiprocessors the busiest has 2: the time of 8."""
    assert predict([Launch("a", 0, 0, {"fp32": 20}, blocks=blocks)], DEVICE) == pytest.approx(1 + seconds)


def test_prediction_counts_padding_and_launches():
    launches = [Launch("a", 0, 0, {"fp32": 10}, issued={"fp32": 30}), Launch("b", 100, 0)]
    assert (roofline(launches, DEVICE), predict(launches, DEVICE)) == (2.0, 2 + 3 + 1)
    assert total(launches, "flops") == {"fp32": 10} and total(launches, "issued") == {"fp32": 30}


def test_an_unknown_unit_is_not_free():
    with pytest.raises(KeyError, match="fp8"):
        roofline([Launch("a", 0, 0, {"fp8": 1})], DEVICE)


def test_devices_agree_with_their_multiprocessors():
    """fp32 flops are 2 a clock and lane, at clocks that such chips have; fp64 is half of it."""
    for name, lanes in (("a100", 64), ("h100", 128), ("h200", 128), ("b200", 128)):
        device = DEVICES[name]
        clock = device.flops["fp32"] / (2 * lanes * device.sms)
        assert 1.3e9 < clock < 2.1e9, (name, clock)
        assert device.flops["fp64"] == pytest.approx(device.flops["fp32"] / 2, rel=0.03)
        assert device.flops["sfu"] == pytest.approx(16 * device.sms * clock)
