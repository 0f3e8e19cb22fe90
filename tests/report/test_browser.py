"""The page in a real browser: it draws everything, without a complaint, and no name comes to life."""

import re
import shutil
import subprocess

import pytest
from report.synthetic import write_run
from report.test_report import HOSTILE, hostile_run

from fastrank.record import RunWriter
from fastrank.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on PATH")

# What a reader does, as a script at the end of the page: up to three options of every chooser, the slider, a click on
# a row, each run hidden and shown.
READER = """
<script>
// Tables are there before Plotly is compiled; and no number of the page makes a format of its own.
document.body.dataset.early = String(!window.Plotly && document.querySelector("#summary tbody tr") !== null);
const localise = Number.prototype.toLocaleString;
let localised = 0;
Number.prototype.toLocaleString = function (...how) { localised += 1; return localise.apply(this, how); };
window.addEventListener("load", async () => {
  const pause = () => new Promise((done) => setTimeout(done, 20));
  await pause();
  const boxes = () => [...document.querySelectorAll("select")];
  for (let i = 0; i < boxes().length; i++) {
    for (let j = 0; j < Math.min(3, boxes()[i].options.length); j++) {
      boxes()[i].selectedIndex = j;
      boxes()[i].dispatchEvent(new Event("change"));
      await pause();
    }
  }
  for (let k = 0; k < 10; k++) {  // in haste: the next choice comes while a picture is still being drawn
    if (boxes().length) boxes()[k % boxes().length].dispatchEvent(new Event("change"));
    await new Promise((done) => setTimeout(done));
  }
  const slider = document.querySelector("input[type=range]");
  if (slider) { slider.value = slider.max; slider.dispatchEvent(new Event("input")); }
  const heatmap = document.querySelector("#map-facets .js-plotly-plot");
  if (heatmap) heatmap.emit("plotly_click", { points: [{ y: 0 }] });
  for (let i = 0; i < document.querySelectorAll("#chips button").length; i++) {
    for (const _ of [0, 1]) { document.querySelectorAll("#chips button")[i].click(); await pause(); }
  }
  document.getElementById("more").open = true;
  await pause();
  document.body.dataset.localised = localised;
  document.body.dataset.read = "all";
});
</script>
"""


def browse(page, tmp_path, script=""):
    """(the document after drawing, the lines of its console)"""
    if script:
        page.write_text(page.read_text().replace("</body>", script + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000",
               "--enable-logging=stderr", "--virtual-time-budget=30000", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def body(document):
    """The document without its scripts, which hold the same names as data."""
    return re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL)


def assert_drawn(document, console):
    assert console == []
    assert 'data-read="all"' in document  # the reader came to its end
    assert '<div id="failure" role="alert" hidden="">' in document


def test_two_runs_are_drawn_and_every_control_works(tmp_path):
    paths = [write_run(tmp_path / f"T{T}", T=T, layers=4, steps=20) for T in (1, 100)]
    document, console = browse(write_report(paths, tmp_path / "page.html"), tmp_path, READER)
    assert_drawn(document, console)
    assert 'data-early="true"' in document and int(re.search(r'data-localised="(\d+)"', document)[1]) < 50
    page = body(document)
    # 6 lines, learning rate, mean and layer alignment, 2 of cost; 2 runs x (map, sigma, alignment, cosines)
    assert len(re.findall(r'class="plot js-plotly-plot"', page)) == 6 + 1 + 2 + 2 + 2 * 4
    assert "not recorded" not in page and "step 15" in page


def test_runs_of_every_kind_share_a_page(tmp_path):
    """Hostile names, no steps, one step, an interrupted run, forty layers with long names, only NaN."""
    wide = [(f"blocks.{i}.a_rather_long_module_name.projection", 64) for i in range(40)]
    nan = float("nan")
    with RunWriter(tmp_path / "nan", {}) as writer:
        scalars = (
            "train/loss",
            "logits/norm",
            "act/a/rank",
            "act/a/frobenius",
            "align/a/max",
            "align/a/chance",
            "cost/share",
        )
        for step in range(3):
            writer.log_step(step, dict.fromkeys(scalars, nan), {"act/a/sigma": [nan, nan], "align/a/cosines": [[nan]]})
    paths = [
        hostile_run(tmp_path),
        write_run(tmp_path / "none", steps=0),
        write_run(tmp_path / "one", layers=3, steps=1),
        write_run(tmp_path / "cut", layers=3, steps=4, close=False),
        write_run(tmp_path / "wide", steps=5, names=wide),
        tmp_path / "nan",
    ]
    document, console = browse(write_report(paths, tmp_path / "page.html"), tmp_path, READER)
    assert_drawn(document, console)
    page = body(document)
    for name in HOSTILE[:3]:
        assert name.replace("<", "&lt;").replace(">", "&gt;") in page
    assert not re.search(r"<(img|b|i|a) [^>]*|<b>", page[page.index("<main") :].replace('<a href="#', ""))
    assert "No step was recorded in none." in page and "this run has no steps" in page
    assert ">interrupted<" in page and "not recorded in this run" in page


@pytest.mark.parametrize("kind", ["nothing but NaN", "few sections", "no steps"])
def test_one_run_alone_is_drawn(tmp_path, kind):
    with RunWriter(tmp_path / "run", {}) as writer:
        for step in range({"no steps": 0}.get(kind, 4)):
            if kind == "few sections":
                writer.log_step(step, {"train/loss": 1.0 / (step + 1), "mine/a/thing": step, "other": 1})
            else:
                writer.log_step(step, {"act/a/rank": float("nan")}, {"act/a/sigma": [float("nan")]})
    document, console = browse(write_report([tmp_path / "run"], tmp_path / "page.html"), tmp_path, READER)
    assert_drawn(document, console)
    page = body(document)
    assert page.count("not recorded") > 5
    # loss, the map of mine/a/thing, and `other` among the other series
    assert page.count('class="plot js-plotly-plot"') == {"few sections": 3}.get(kind, 0)
