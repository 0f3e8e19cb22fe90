"""The roofline's numbers: which roof a point stands under."""

import plot
import pytest

PEAKS = {"copy": 10e9, "copy_cached": 80e9, "fp32": 100e9, "fp64": 50e9}


def benchmark(moved, flops):
    seconds = {"median": 1.0, "low": 1.0, "high": 1.0, "samples": 5}
    ours = {"ours": True, "seconds": seconds, "speed": seconds, "read": moved, "written": 0, "flops": flops}
    theirs = ours | {"ours": False}
    return {"cases": {"case": {"baseline": "torch", "results": {"torch": theirs, "fastrank": ours}}}}


@pytest.mark.parametrize(
    ("moved", "flops", "roof", "unit"),
    [
        (10, {"fp32": 20}, 20e9, "fp32"),  # 2 flops a byte: memory
        (1, {"fp32": 20}, 100e9, "fp32"),  # 20 flops a byte: arithmetic
        (1, {"fp32": 20, "fp64": 15}, 50e9, "fp64"),  # the unit that takes longer
        (10, {"fp32": 20, "sfu": 900}, 920e9, "fp32"),  # a unit without a measured peak draws no roof of its own
    ],
)
def test_the_roof(moved, flops, roof, unit):
    (point,) = plot.points_of(benchmark(moved, flops), PEAKS)
    assert (point.contender, point.unit) == ("fastrank", unit)
    assert point.roof == pytest.approx(min(roof, PEAKS[unit]))
    assert point.rate == sum(flops.values())


def test_what_the_model_does_not_describe_is_not_drawn(tmp_path):
    assert plot.points_of(benchmark(0, {}), PEAKS) == []
    assert plot.draw({"benchmarks": {"x": benchmark(0, {})}, "peaks": PEAKS}, tmp_path) == []
