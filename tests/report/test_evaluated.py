"""What the page shows of `fastrank evaluate`: points of the curve and marks are those of the figures' definitions."""

import json
import math

import torch
from report.test_browser import assert_drawn, body, browse
from report.test_browser import pytestmark as needs_browser
from report.test_report import Page
from torch import nn

import fastrank
from fastrank.evaluation.probes import ProbeProtocol
from fastrank.record import RunWriter
from fastrank.report import write_report
from fastrank.report.evaluated import evaluated_content


def found():
    torch.manual_seed(0)
    y = torch.arange(90) % 4
    x = torch.randn(4, 6)[y] + 0.5 * torch.randn(90, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    other = {"<b>far</b>": [(x + 2, y % 3)], "unlabelled": [x - 2]}
    return fastrank.evaluate(model, [(x, y)], ood=other, protocol=ProbeProtocol(epochs=3))


def test_points_and_marks():
    one = found()
    content = evaluated_content(one.to_dict())
    for when, rank in (("before", one.solution_rank.before), ("after", one.solution_rank.after)):
        curve = content["ranks"][when]
        assert curve["at"] == rank.rtol and curve["found"] == rank.rank and len(curve["rank"]) == 4
        for x, count in zip(curve["tolerance"], curve["rank"], strict=True):
            assert rank.at(0.999 * x) == count and rank.at(1.001 * x) == count - 1
    for how, kappa in (("adam", one.probes.kappa), ("ridge", one.probes.ridge_kappa)):
        part = content["probes"][how]
        assert part["layers"] == ["1", "3"] and part["kappa"] == kappa == (part["mark"] + 1) / 2
    assert list(content["ood"]) == ["<b>far</b>"]
    accuracies = content["ood"]["<b>far</b>"]["ridge"]["accuracies"]
    assert content["ood"]["<b>far</b>"]["ridge"]["mark"] == accuracies.index(max(accuracies))


def test_what_has_another_form_is_left_out():
    assert evaluated_content({}) is None and evaluated_content({"solution_rank": 3, "probes": [], "ood": None}) is None
    assert evaluated_content({"solution_rank": {"rank": 3, "sigma": [0.0, 0.0]}}) is None
    nan = {"probes": {"adam": {"a": math.nan, "b": 0.5}, "ridge": {"a": "nan"}, "kappa": "nan", "threshold": 0.99}}
    part = evaluated_content(nan)["probes"]
    assert list(part) == ["adam"] and part["adam"]["mark"] is None and part["adam"]["kappa"] is None
    json.dumps(part, allow_nan=False)


@needs_browser
def test_it_is_drawn(tmp_path):
    for name, evaluation in (("with", found().to_dict()), ("without", {"train_accuracy": 1.0})):
        with RunWriter(tmp_path / name, {}) as writer:
            writer.log_step(0, {"train/loss": 1.0})
            writer.set_evaluation(evaluation)
    page = write_report([tmp_path / "with", tmp_path / "without"], tmp_path / "page.html")
    assert Page(page.read_text()).data["runs"][1]["evaluated"] is None
    script = '<script>window.addEventListener("load", () => (document.body.dataset.read = "all"))</script>'
    document, console = browse(page, tmp_path, script)
    assert_drawn(document, console)
    section = body(document).split('id="evaluated"')[1].split("</section>")[0]
    assert section.count("js-plotly-plot") == 3 and "linear probes on other data: &lt;b&gt;far" in section
